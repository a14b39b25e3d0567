"""A film of the agent in test tasks before and after adaptation, with the same starts and random numbers.

Panels stand in a grid: a column per task, a row per number of adaptation steps. Only MuJoCo families can be filmed.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metarl.core.errors import ENVIRONMENT, InputError, one_line, require, users_code
from metarl.core.files import require_output, write_atomically, writing
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.tasks import TaskDistribution, draw, list_tasks
from metarl.report.text import endpoints
from metarl.rl.stepping import reset_all
from metarl.rl.tasks import EnvTaskDistribution, TaskVectorEnv, unwrapped

if TYPE_CHECKING:
    from metarl.core.trainer import Trainer


SUFFIXES = (".mp4", ".gif", ".webp")
MOST_TASKS = 8
MARGIN = 8  # pixels around a panel; its caption is two lines of text above the image
FONT_SIZE = 14
LINE = 19
GIF_FRAME = 20  # milliseconds, the shortest that viewers show as given
WEBP_QUALITY = 70

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class FilmSettings:
    """What a film shows.

    Attributes:
        num_tasks: columns, 1 to 8, and at most the tasks of a finite family.
        num_adaptation_steps: of the second row, >= 0; None = as many as in meta-training.
        size: width and height of a panel's image, in pixels.
        stride: environment steps from frame to frame, >= 1.
        fps: frames per second; None = simulated time.
        side_view: metres between the start and a camera that stands still; None = the family's own camera, which may
            follow the robot.
    """

    num_tasks: int = 2
    num_adaptation_steps: int | None = None
    size: tuple[int, int] = (320, 240)
    stride: int = 1
    fps: float | None = None
    side_view: float | None = None

    def __post_init__(self) -> None:
        require(1 <= self.num_tasks <= MOST_TASKS, "--tasks", self.num_tasks, f"an integer from 1 to {MOST_TASKS}")
        steps = self.num_adaptation_steps
        require(steps is None or 0 <= steps <= 1000, "--adaptation-steps", steps, "an integer from 0 to 1000")
        require(
            min(self.size) >= 64 and max(self.size) <= 2000, "--size", self.size, "two numbers of pixels, 64 to 2000"
        )
        require(self.stride >= 1, "--stride", self.stride, "an integer >= 1")
        require(self.fps is None or 0.0 < self.fps <= 100.0, "--fps", self.fps, "above 0 and at most 100")
        view = self.side_view
        require(view is None or 0.0 < view <= 1000.0, "--side-view", view, "above 0 and at most 1000")


@dataclass(frozen=True)
class Panel:
    """One trajectory.

    Attributes:
        task: the task as text.
        when: how far the agent has adapted to it: "after 1 gradient step".
        total_reward: the trajectory's return, undiscounted.
        frames: RGB images [height, width, 3]; a shorter trajectory has fewer.
    """

    task: str
    when: str
    total_reward: float
    frames: tuple[Frame, ...]

    @property
    def caption(self) -> str:
        """Two lines."""
        return f"{self.task}\n{self.when}: return {self.total_reward:.1f}"


@dataclass(frozen=True)
class Film:
    """Panels [rows][columns], and frames shown per second."""

    panels: tuple[tuple[Panel, ...], ...]
    fps: float

    @property
    def num_frames(self) -> int:
        return max(len(panel.frames) for row in self.panels for panel in row)


@runtime_checkable
class RenderedEnv(TaskVectorEnv, Protocol):
    """A vector environment that can be drawn, such as `metarl.envs.batch.BatchEnv`."""

    dt: float

    def render_simulation(self, index: int, *, width: int, height: int, side_view: float | None = None) -> Frame: ...


def check_path(path: Path) -> None:
    """Raises `InputError` if no film can be written to `path`. Called before minutes are spent on a film."""
    require(path.suffix in SUFFIXES, "--out", str(path), f"a file ending in {', '.join(SUFFIXES)}")
    require_output(path, "--out")
    if path.suffix == ".mp4" and importlib.util.find_spec("av") is None:
        remedy = 'pip install "metarl-toolkit[video]", or name a .gif or .webp file'
        raise InputError(f"--out = {str(path)!r}: .mp4 needs the package av: {remedy}")


def make_film(trainer: Trainer, settings: FilmSettings, *, on_frame: Callable[[int, int], None] | None = None) -> Film:
    """Adapts to test tasks as an evaluation does, and films one more trajectory of each before and after.

    A column's trajectories share their start and the noise of their actions.

    Args:
        trainer: of a trained run, as `metarl.runs.load.load_trainer` returns it.
        settings: what to show.
        on_frame: called with (images drawn, the most that will be drawn).

    Raises:
        InputError: the family cannot be drawn; there is no OpenGL context.
    """
    # Imported late: torch takes seconds, and wrong settings should not wait for it.
    from metarl.core.episode import run_episodes
    from metarl.core.seeds import EVALUATION_ITERATION
    from metarl.rl.rollout import RolloutCollector

    learner: Any = trainer.learner
    seed, threads = trainer.config.seed, trainer.config.num_threads
    tasks = _choose_tasks(trainer.distribution, settings.num_tasks, generator(seed, EVALUATION_ITERATION, _TASKS))
    distribution, dt = _check_rendering(trainer.distribution, tasks[0], settings.size)
    collector = trainer.evaluation_collector
    assert isinstance(collector, RolloutCollector)
    width = collector.num_trajectories  # the state of a memory agent such as RL² has this many trajectories
    seeds = Seeds.first(len(tasks), seed=seed, iteration=EVALUATION_ITERATION, evaluation=True)
    last = learner.num_adaptation_steps if settings.num_adaptation_steps is None else settings.num_adaptation_steps
    states = {0: learner.begin(len(tasks))}
    if last > 0:
        states[last] = run_episodes(learner, collector, tasks, seeds, num_steps=last).state
    most = len(states) * len(tasks) * (distribution.horizon // settings.stride + 1)
    camera = _Camera(len(tasks), width, settings, lambda drawn: on_frame(drawn, most) if on_frame else None)
    filming = RolloutCollector(distribution, num_trajectories=width, num_threads=threads, watch=camera.shoot)
    rows = []
    try:
        for step, state in states.items():
            data = filming.query(tasks, learner, state, seeds)
            returns = (data.rewards * data.mask)[:, 0].sum(-1).tolist()
            when = _when(step, learner.traits.unit)
            shots = zip(tasks, returns, camera.cut(), strict=True)
            rows.append(tuple(Panel(one_line(task), when, total, frames) for task, total, frames in shots))
    finally:
        filming.close()
    return Film(tuple(rows), settings.fps or 1.0 / (dt * settings.stride))


def compose(film: Film) -> Iterator[Image.Image]:
    """The film's pictures, of even width and height. A panel whose trajectory has ended shows its last frame."""
    height, width, _ = film.panels[0][0].frames[0].shape
    cell_width, cell_height = width + MARGIN, 2 * LINE + height + MARGIN
    rows, columns = len(film.panels), len(film.panels[0])
    size = (columns * cell_width + MARGIN, rows * cell_height + MARGIN)
    sheet = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), "white")  # video codecs need even sizes
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    corners = [(MARGIN + x * cell_width, MARGIN + y * cell_height) for y in range(rows) for x in range(columns)]
    panels = [panel for row in film.panels for panel in row]
    for (x, y), panel in zip(corners, panels, strict=True):
        for number, line in enumerate(panel.caption.split("\n")):
            draw.text((x, y + number * LINE), _fitting(line, font, width), fill="black", font=font)
    for number in range(film.num_frames):
        for (x, y), panel in zip(corners, panels, strict=True):
            sheet.paste(Image.fromarray(panel.frames[min(number, len(panel.frames) - 1)]), (x, y + 2 * LINE))
        yield sheet.copy()


def save_film(film: Film, path: Path) -> None:
    """Writes `film` as mp4, gif or webp, by the suffix of `path`. An interrupted write leaves the old file.

    Raises:
        InputError: as `check_path`; or the file cannot be written.
        WriteError: the disk is full.
    """
    check_path(path)
    encode = _encode_mp4 if path.suffix == ".mp4" else _encode_picture
    data = encode(compose(film), film.fps, path.suffix[1:])
    with writing(path):
        write_atomically(path, data)


_TASKS = Purpose.EVALUATION_TASKS


class _Camera:
    """Draws the first trajectory of every task while a collector steps all of them."""

    def __init__(
        self, num_tasks: int, num_trajectories: int, settings: FilmSettings, on_frame: Callable[[int], None]
    ) -> None:
        self._shown = [task * num_trajectories for task in range(num_tasks)]
        self._settings = settings
        self._on_frame = on_frame
        self._drawn = 0
        self._start()

    def shoot(self, env: TaskVectorEnv, moved: NDArray[np.bool_]) -> None:
        """Draws every `stride`-th state of the shown trajectories, from the first on."""
        width, height = self._settings.size
        view, draw = self._settings.side_view, cast(RenderedEnv, unwrapped(env)).render_simulation
        for frames, index in zip(self._frames, self._shown, strict=True):
            if moved[index] and self._step % self._settings.stride == 0:
                with users_code("render_simulation", step=self._step, whose=ENVIRONMENT):
                    frames.append(draw(index, width=width, height=height, side_view=view))
                self._drawn += 1
                self._on_frame(self._drawn)
        self._step += 1

    def cut(self) -> list[tuple[Frame, ...]]:
        """The frames of every task since the last cut."""
        frames = [tuple(frames) for frames in self._frames]
        self._start()
        return frames

    def _start(self) -> None:
        self._step = 0
        self._frames: list[list[Frame]] = [[] for _ in self._shown]


def _choose_tasks(distribution: TaskDistribution[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """The first tasks of an evaluation, or tasks that are evenly spread over a finite family."""
    every = list_tasks(distribution, "test")
    if every is None:
        return draw(distribution, count, rng, split="test")
    return [every[i] for i in np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)]


def _check_rendering(
    distribution: TaskDistribution[Any], task: Any, size: tuple[int, int]
) -> tuple[EnvTaskDistribution[Any], float]:
    """Draws one picture, so that errors come before the adaptation. Returns `distribution` and seconds per step."""
    name = type(distribution).__name__
    env = distribution.make_vector_env(1, num_threads=1) if isinstance(distribution, EnvTaskDistribution) else None
    rendered = None if env is None else unwrapped(env)
    if not isinstance(distribution, EnvTaskDistribution) or not isinstance(rendered, RenderedEnv):
        raise InputError(f"{name} cannot be filmed: only MuJoCo families on metarl.envs.batch.BatchEnv can be drawn")
    try:
        with users_code("set_tasks", task=task, whose=ENVIRONMENT):
            rendered.set_tasks([task])
        reset_all(rendered, seed=[0])
        with users_code("render_simulation", task=task, step=0, whose=ENVIRONMENT):
            _draw_once(rendered, size)
    finally:
        rendered.close()
    return distribution, rendered.dt


def _draw_once(env: RenderedEnv, size: tuple[int, int]) -> None:
    try:
        env.render_simulation(0, width=size[0], height=size[1])
    except RuntimeError as error:  # no OpenGL context
        raise InputError(one_line(error, max_length=600)) from None


def _when(step: int, unit: str) -> str:
    if step == 0:
        return endpoints(unit)[0]
    if unit == "trajectories":
        return f"trajectory {step + 1}"
    return f"after {step} {unit if step > 1 else unit.removesuffix('s')}"


def _fitting(text: str, font: Any, width: int) -> str:
    """`text`, shortened until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _encode_picture(pictures: Iterator[Image.Image], fps: float, kind: str) -> bytes:
    first, *others = pictures
    buffer = io.BytesIO()
    quality = {"quality": WEBP_QUALITY, "method": 4} if kind == "webp" else {}
    duration = round(1000.0 / fps)  # milliseconds
    if kind == "gif" and duration < GIF_FRAME:  # viewers would show shorter frames at a tenth of the speed
        every = -(-GIF_FRAME // max(1, duration))
        others = others[every - 1 :: every]
        duration = every * duration
    first.save(buffer, format=kind, save_all=True, append_images=others, duration=duration, loop=0, **quality)
    return buffer.getvalue()


def _encode_mp4(pictures: Iterator[Image.Image], fps: float, kind: str) -> bytes:
    av: Any = importlib.import_module("av")  # an optional package, typed only where it is installed
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        if stream is not None:
            container.mux(stream.encode())
    return buffer.getvalue()
