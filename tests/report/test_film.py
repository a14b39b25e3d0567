"""The content of films, and families that cannot be filmed. Only the last test uses MuJoCo's renderer."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metarl.cli.main import main
from metarl.core import files
from metarl.core.episode import run_episodes
from metarl.core.errors import InputError
from metarl.core.seeds import EVALUATION_ITERATION, Purpose, Seeds, generator
from metarl.envs.batch import BatchEnv
from metarl.envs.half_cheetah import HalfCheetahDir, HalfCheetahVel
from metarl.report import film as video
from metarl.report.film import Film, FilmSettings, Panel, compose, make_film, save_film
from metarl.runs.load import load_trainer

METARL = Path(sys.executable).with_name("metarl")
HORIZON = 7
TINY = [
    "--iterations=1",
    "--meta-batch-size=2",
    "--device=cpu",
    "--agent.num-trajectories=2",
    "--evaluation.num-tasks=2",
    "--evaluation.num-adaptation-steps=1",
    "--evaluation.no-controls",
    "--quiet",
]


def trained(folder: Path, family: str, *flags: str) -> Path:
    assert main(["train", family, *TINY, *flags, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cheetah"
    # A step large enough that adaptation shows within seven steps.
    return trained(folder, "half-cheetah-dir", f"--task.horizon={HORIZON}", "--agent.inner-lr=100")


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Replaces the renderer: the first pixels hold the simulation's state. Returns the cameras that were used."""
    seen: list[float | None] = []

    def render(env: Any, index: int, *, width: int, height: int, side_view: float | None = None) -> NDArray[np.uint8]:
        seen.append(side_view)
        picture = np.zeros((height, width, 3), np.uint8)
        state = np.frombuffer(env.simulator.qpos[index].tobytes(), np.uint8)
        picture.reshape(-1)[: len(state)] = state
        return picture

    monkeypatch.setattr(BatchEnv, "render_simulation", render)
    return seen


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(first, second))


def test_a_film_shows_each_task_before_and_after_adaptation(cheetah: Path, views: list[float | None]) -> None:
    trainer = load_trainer(cheetah)
    calls: list[tuple[int, int]] = []
    film = make_film(trainer, FilmSettings(size=(70, 64)), on_frame=lambda *call: calls.append(call))
    shown = [[(panel.task, panel.when, len(panel.frames)) for panel in row] for row in film.panels]
    tasks = ["Direction(sign=-1)", "Direction(sign=1)"]
    assert shown == [
        [(task, when, HORIZON + 1) for task in tasks] for when in ("before adaptation", "after 1 gradient step")
    ]
    assert film.panels[0][0].frames[0].shape == (64, 70, 3)
    assert film.fps == pytest.approx(20.0)  # 0.05 s of simulated time from frame to frame
    assert calls == [(number, 4 * (HORIZON + 1)) for number in range(1, 4 * (HORIZON + 1) + 1)]
    for before, after in zip(*film.panels, strict=True):
        assert same(before.frames[0], after.frames[0])  # one start
        assert not same(before.frames[-1], after.frames[-1])  # different routes
        assert all(not same(*pair) for pair in zip(before.frames, before.frames[1:], strict=False))


def test_a_panels_return_is_of_the_first_trajectory_by_the_adapted_state(
    cheetah: Path, views: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, closed = load_trainer(cheetah, seed=5), []
    monkeypatch.setattr(BatchEnv, "close_extras", lambda env, **settings: closed.append(env.num_envs))
    film = make_film(trainer, FilmSettings(num_adaptation_steps=2))
    assert closed == [1, 1, 4]  # what tried to draw, and what was filmed
    learner: Any = trainer.learner
    collector: Any = trainer.evaluation_collector
    tasks, seeds = trainer.distribution.all_tasks(), Seeds(5, EVALUATION_ITERATION, (0, 1), evaluation=True)
    assert tasks is not None
    states = [learner.begin(2), run_episodes(learner, collector, tasks, seeds, num_steps=2).state]
    data = [collector.query(tasks, learner, state, seeds) for state in states]
    returns = [part.rewards[:, 0].sum(-1) for part in data]
    assert [[panel.total_reward for panel in row] for row in film.panels] == [row.tolist() for row in returns]
    for row, part in zip(film.panels, data, strict=True):
        for number, panel in enumerate(row):
            positions = [np.frombuffer(frame.tobytes()[:72])[1:] for frame in panel.frames[:HORIZON]]
            np.testing.assert_allclose(positions, part.observations[number, 0, :, :8], rtol=1e-6)
    assert film.panels[1][0].caption == f"Direction(sign=-1)\nafter 2 gradient steps: return {returns[1][0]:.1f}"


def test_a_stride_leaves_frames_out_and_time_goes_on_as_fast(cheetah: Path, views: list[float | None]) -> None:
    whole, thin = (make_film(load_trainer(cheetah), FilmSettings(stride=stride)) for stride in (1, 3))
    for full, few in zip(whole.panels[1], thin.panels[1], strict=True):
        assert len(few.frames) == 3
        assert all(same(*pair) for pair in zip(full.frames[::3], few.frames, strict=True))
        assert full.total_reward == few.total_reward
    assert thin.fps == pytest.approx(20.0 / 3.0)


def test_a_memory_is_filmed_in_its_first_and_in_a_later_trajectory(tmp_path: Path, views: list[float | None]) -> None:
    flags = (f"--task.horizon={HORIZON}", "--agent.hidden-size=4", "--agent.trajectories-per-trial=3")
    held_out = ("--task.test-low=2", "--task.test-high=3")
    run = trained(tmp_path / "rl2", "half-cheetah-vel", "--agent=rl2", *flags, *held_out)
    film = make_film(load_trainer(run), FilmSettings(num_tasks=3))
    assert [[panel.when for panel in row] for row in film.panels] == [["first trajectory"] * 3, ["trajectory 3"] * 3]
    rng = generator(0, EVALUATION_ITERATION, Purpose.EVALUATION_TASKS)
    tasks = HalfCheetahVel(test_low=2.0, test_high=3.0).sample(3, rng, split="test")  # an evaluation's
    assert [panel.task for panel in film.panels[0]] == [str(task) for task in tasks]


def test_no_adaptation_is_one_row(cheetah: Path, views: list[float | None]) -> None:
    film = make_film(load_trainer(cheetah), FilmSettings(num_tasks=1, num_adaptation_steps=0, fps=5.0))
    assert [len(row) for row in film.panels] == [1]
    assert film.fps == 5.0


def panel(*shades: int, task: str = "Task()") -> Panel:
    return Panel(task, "before adaptation", 1.25, tuple(np.full((64, 81, 3), shade, np.uint8) for shade in shades))


def test_an_ended_trajectory_stands_still_below_its_caption() -> None:
    film = Film(((panel(10, 20, 30), panel(99)), (panel(40, 50), panel(60, 70))), 10.0)
    pictures = [np.asarray(picture) for picture in compose(film)]
    assert [picture.shape for picture in pictures] == [(2 * (64 + 38 + 8) + 8, 2 * (81 + 8) + 8, 3)] * 3
    middles = [
        [picture[8 + 38 + 32 + y * 110, 8 + 40 + x * 89, 0] for y in (0, 1) for x in (0, 1)] for picture in pictures
    ]
    assert middles == [[10, 99, 40, 60], [20, 99, 50, 70], [30, 99, 50, 70]]
    for x in (8, 97):
        caption = pictures[0][8:46, x : x + 81]
        assert (caption[:19] < 128).any()  # the task
        assert (caption[19:] < 128).any()  # the return
    odd = next(compose(Film(((panel(1),),), 10.0)))
    assert (odd.width % 2, odd.height % 2) == (0, 0)


def test_a_caption_stays_within_its_panel() -> None:
    film = Film(((panel(255, task="Task(with=many, words=in, it=all, of=them)"), panel(255, task="")),), 10.0)
    (picture,) = (np.asarray(picture) for picture in compose(film))
    assert (picture[8:27, 97:] == 255).all()
    assert (picture[8:27, 70:89] < 128).any()  # shortened, not left out


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_command_writes_a_moving_picture_and_says_what_it_shows(
    suffix: str, cheetah: Path, views: list[float | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["video", str(cheetah), "--out", f"a{suffix}", "--size", "80", "64", "--side-view", "6"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    *progress, before, _, _, after, last = said.out.splitlines()
    assert progress[0].startswith("drawn ")
    assert progress[-1] == "drawn 32/32"
    assert before.startswith("Direction(sign=-1), before adaptation: return ")
    assert after.startswith("Direction(sign=1), after 1 gradient step: return ")
    assert last == f"a{suffix}: 8 frames, 20 a second"
    with Image.open(f"a{suffix}") as picture:
        assert (picture.n_frames, picture.size) == (HORIZON + 1, (184, 228))
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == 50
        assert picture.info["loop"] == 0
    assert {*views} == {None, 6.0}  # None: the first picture, which tests the renderer


def test_an_mp4_has_the_frames(cheetah: Path, views: list[float | None]) -> None:
    av = pytest.importorskip("av", reason="PyAV, of the extra video, is not installed")
    assert main(["video", str(cheetah), "--out", "a.mp4", "--size", "81", "64", "--fps", "12.5"]) == 0
    with av.open("a.mp4") as film:
        (stream,) = film.streams.video
        assert stream.average_rate == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
    assert [frame.shape for frame in frames] == [(228, 186, 3)] * (HORIZON + 1)
    assert not same(frames[0], frames[-1])


@pytest.mark.parametrize("left", [None, b"old"])
def test_a_film_that_cannot_be_written_whole_is_not_written(
    left: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if left is not None:
        Path("a.gif").write_bytes(left)

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_durably", full)
    with pytest.raises(files.WriteError, match=r"a\.gif: cannot be written: No space left on device"):
        save_film(Film(((panel(1, 2),),), 10.0), Path("a.gif"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({} if left is None else {"a.gif": left})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--out a.avi", "--out = 'a.avi': must be a file ending in .mp4, .gif, .webp"),
        ("--out absent/a.gif", "--out = 'absent/a.gif': must be a file in a folder that exists"),
        ("--out a.gif --tasks 0", "--tasks = 0: must be an integer from 1 to 8"),
        ("--out a.gif --tasks 9", "--tasks = 9: must be an integer from 1 to 8"),
        ("--out a.gif --adaptation-steps -1", "--adaptation-steps = -1: must be an integer from 0 to 1000"),
        ("--out a.gif --size 63 80", "--size = (63, 80): must be two numbers of pixels, 64 to 2000"),
        ("--out a.gif --size 80 2001", "--size = (80, 2001): must be two numbers of pixels, 64 to 2000"),
        ("--out a.gif --stride 0", "--stride = 0: must be an integer >= 1"),
        ("--out a.gif --fps nan", "--fps = nan: must be above 0 and at most 100"),
        ("--out a.gif --side-view 0", "--side-view = 0.0: must be above 0 and at most 1000"),
        ("--out a.gif --seed -1", "trainer.seed = -1: must be an integer from 0 to 9223372036854775807"),
        ("--out a.gif --checkpoint 9", "checkpoint = '9': must be latest, best or an iteration, one of 1"),
        ("", "--out: missing; the film, .mp4 (extra `video`), .gif or .webp."),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    flags: str, said: str, cheetah: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["video", str(cheetah), *flags.split()]) == 2
    assert capsys.readouterr().err == f"metarl: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_an_mp4_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'needs the package av: pip install "metarl-toolkit\[video\]", or name a .gif'
    ):
        video.check_path(Path("a.mp4"))
    video.check_path(Path("a.webp"))


@pytest.mark.parametrize(("family", "name"), [("point-nav", "PointNav"), ("sinusoid", "Sinusoid")])
def test_only_mujoco_families_can_be_filmed(
    family: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag for flag in TINY if "trajectories" not in flag or family == "point-nav"]
    assert main(["train", family, *flags, "--run-dir", "run"]) == 0
    assert main(["video", "run", "--out", "a.gif"]) == 2
    said = f"metarl: {name} cannot be filmed: only MuJoCo families on metarl.envs.batch.BatchEnv can be drawn\n"
    assert capsys.readouterr().err == said


def test_without_an_opengl_context_one_line_says_so_before_any_adaptation(
    cheetah: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def render(*given: Any, **settings: Any) -> None:
        raise RuntimeError("no OpenGL context for rendering (none\nhere); set MUJOCO_GL=egl")

    monkeypatch.setattr(BatchEnv, "render_simulation", render)
    monkeypatch.setattr("metarl.core.episode.run_episodes", lambda *given, **settings: pytest.fail("adapted"))
    assert main(["video", str(cheetah), "--out", "a.gif"]) == 2
    assert capsys.readouterr().err == "metarl: no OpenGL context for rendering (none here); set MUJOCO_GL=egl\n"


@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize(
    ("home", "method", "said"),
    [
        (BatchEnv, "render_simulation", "the environment's render_simulation raised SystemExit: 0"),
        (BatchEnv, "step", "the environment's step raised SystemExit: 0"),
        (HalfCheetahDir, "all_tasks", "the task distribution's all_tasks('test') raised SystemExit: 0"),
    ],
)
def test_a_fault_of_a_familys_own_code_is_said_alike(
    home: type[Any],
    method: str,
    said: str,
    good: int,
    cheetah: Path,
    views: list[float | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, calls = getattr(home, method), []

    def leave(*given: Any, **settings: Any) -> Any:
        calls.append(method)
        if len(calls) > good or method == "all_tasks":
            sys.exit(0)
        return own(*given, **settings)

    monkeypatch.setattr(home, method, leave)
    assert main(["video", str(cheetah), "--out", "a.gif"]) == 1
    above, last = capsys.readouterr().err.rsplit("metarl: ", 1)
    assert above.startswith("Traceback")
    assert last.startswith(said)
    assert "step" in last or method == "all_tasks"
    assert not Path("a.gif").exists()


def test_mujoco_draws_the_film(cheetah: Path, tmp_path: Path) -> None:
    """With the first back end that works here. The process must end without a message of the renderers."""
    for back_end in ("osmesa", "egl"):
        environment = {**os.environ, "MUJOCO_GL": back_end, "OMP_NUM_THREADS": "1"}
        command = [METARL, "video", cheetah, "--out", "a.webp", "--size", "100", "80", "--stride", "3"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
    else:
        pytest.skip(f"MuJoCo finds no OpenGL here: {done.stderr}")
    assert done.stderr == ""
    with Image.open("a.webp") as picture:
        assert picture.n_frames == 3
        pictures = []
        for number in range(3):
            picture.seek(number)
            pictures.append(np.asarray(picture.convert("RGB")).copy())
    drawn = [picture[46:126, 8:108] for picture in pictures]
    assert all(part.std() > 5 for part in drawn)
    assert not same(drawn[0], drawn[2])
