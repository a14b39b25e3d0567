"""Many MuJoCo simulations of one model as one vector environment.

The physics runs on `mujoco.batch.Batch` (MuJoCo >= 3.17), a pool of C++ threads. With an older MuJoCo it runs in a loop
of `mj_step`. In both cases, results are bit-identical to gymnasium's MuJoCo environments, for any number of threads.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.random_numbers import RandomNumbers
from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv

_HEADLESS = (
    "on a machine without a display set MUJOCO_GL=egl (apt package libegl1) or MUJOCO_GL=osmesa (apt package "
    "libosmesa6) before Python starts"
)

try:
    import mujoco
except (AttributeError, ImportError) as error:  # PyOpenGL raises AttributeError if a library is missing
    if "MUJOCO_GL" not in os.environ:
        raise
    raise RuntimeError(f"MUJOCO_GL = {os.environ['MUJOCO_GL']!r} does not work here ({error}); {_HEADLESS}") from error

# MuJoCo resets a simulation that becomes unstable, and continues. Only these counters show it.
_BREAKDOWNS = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADCTRL) + 1)
_MOST_RENDERERS = 16  # kept open at a time; each has an OpenGL context, which takes a second to create
_STATE_FIELDS = ("qpos", "qvel", "act", "ctrl", "qfrc_applied", "xfrc_applied", "mocap_pos", "mocap_quat")

_logger = logging.getLogger(__name__)


class Simulator:
    """`num_simulations` simulations of one model, stepped together on `mujoco.batch.Batch`.

    Not safe to use from several Python threads at once. Live arrays always show the current state. Values written
    into them take effect at the next call.

    Attributes:
        model: the model that the simulations share.
        qpos: positions, [num_simulations, nq], live.
        qvel: velocities, [num_simulations, nv], live.
        ctrl: controls, [num_simulations, nu], live.
    """

    def __init__(self, model: Any, num_simulations: int, num_threads: int) -> None:
        self.model = model
        self._batch = _batch_class()(model, num_simulations, num_threads)
        self._breakdowns = self._batch.warning[:, _BREAKDOWNS, 1]
        self.qpos, self.qvel, self.ctrl = (self.bind(name) for name in ("qpos", "qvel", "ctrl"))

    def bind(self, field: str) -> NDArray[Any]:
        """A live array [num_simulations, ...] of an `MjData` field. Derived fields lag a physics step, as in MuJoCo."""
        return self._batch.bind(field)  # type: ignore[no-any-return]

    def set_model_field(self, field: str, ids: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Gives the simulations `ids` their own values [len(ids), ...] of an `MjModel` field such as "body_mass"."""
        self._batch.expand(field)[ids] = values

    def set_constants(self, ids: NDArray[np.intp]) -> None:
        """Recomputes derived constants (`mj_setConst`). Call it after `set_model_field` and before a reset."""
        self._batch.set_const(ids)

    def reset(self, ids: NDArray[np.intp], qpos: Floats, qvel: Floats) -> None:
        """Resets to the model's defaults, then sets positions [len(ids), nq] and velocities [len(ids), nv]."""
        self._batch.reset(ids, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        self.qpos[ids], self.qvel[ids] = qpos, qvel
        self._batch.forward(ids)

    def step(self, num_steps: int, ids: Ids) -> Bools:
        """Runs `num_steps` physics steps; returns which of the simulations `ids` broke down, [len(ids)]."""
        self._breakdowns[...] = 0
        self._batch.step(None if isinstance(ids, slice) else ids, num_steps)
        if not self._breakdowns.any():  # `any` along rows takes numpy many times as long
            return np.zeros(len(self.qpos[ids]), bool)
        return self._breakdowns[ids].any(1)  # type: ignore[no-any-return]

    def snapshot(self, index: int) -> tuple[Any, Any]:
        """Copies of the `MjModel` and `MjData` of one simulation. Derived fields are not computed."""
        return self._batch.get_model(index), self._batch.get_data(index)

    def close(self) -> None:
        """Ends the threads, once no live array is in use any more."""
        del self._batch, self._breakdowns, self.qpos, self.qvel, self.ctrl


class LoopSimulator:
    """`Simulator` for MuJoCo before 3.17: same interface, bit-identical results, one `MjData` per simulation."""

    def __init__(self, model: Any, num_simulations: int, num_threads: int) -> None:
        self.model = model
        self._models = [model] * num_simulations
        self._data = [mujoco.MjData(model) for _ in range(num_simulations)]
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._fields: dict[str, NDArray[Any]] = {}
        self.qpos, self.qvel, self.ctrl = (self.bind(name) for name in ("qpos", "qvel", "ctrl"))

    def bind(self, field: str) -> NDArray[Any]:
        """As `Simulator.bind`."""
        if field not in self._fields:
            self._fields[field] = np.stack([getattr(data, field) for data in self._data])
        return self._fields[field]

    def set_model_field(self, field: str, ids: NDArray[np.intp], values: NDArray[Any]) -> None:
        """As `Simulator.set_model_field`."""
        for i, value in zip(ids, values, strict=True):
            if self._models[i] is self.model:
                self._models[i] = copy.copy(self.model)
            getattr(self._models[i], field)[...] = value

    def set_constants(self, ids: NDArray[np.intp]) -> None:
        """As `Simulator.set_constants`."""
        for i in ids:
            mujoco.mj_setConst(self._models[i], mujoco.MjData(self._models[i]))

    def reset(self, ids: NDArray[np.intp], qpos: Floats, qvel: Floats) -> None:
        """As `Simulator.reset`."""
        self._run(ids, mujoco.mj_resetData)
        self.qpos[ids], self.qvel[ids] = qpos, qvel
        self._run(ids, mujoco.mj_forward)

    def step(self, num_steps: int, ids: Ids) -> Bools:
        """As `Simulator.step`."""
        every = np.arange(len(self._data))[ids]
        kinds = range(_BREAKDOWNS.start, _BREAKDOWNS.stop)
        for i in every:
            for kind in kinds:
                self._data[i].warning[kind].number = 0
        self._run(every, lambda model, data: mujoco.mj_step(model, data, num_steps))
        return np.array([any(self._data[i].warning[kind].number for kind in kinds) for i in every], bool)

    def snapshot(self, index: int) -> tuple[Any, Any]:
        """As `Simulator.snapshot`."""
        return copy.copy(self._models[index]), copy.copy(self._data[index])

    def close(self) -> None:
        """As `Simulator.close`."""
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self, ids: NDArray[np.intp], call: Callable[[Any, Any], None]) -> None:
        def run(part: NDArray[np.intp]) -> None:
            for i in part:
                data = self._data[i]
                for name in self._fields.keys() & set(_STATE_FIELDS):
                    getattr(data, name)[...] = self._fields[name][i]
                call(self._models[i], data)
                for name, array in self._fields.items():
                    array[i] = getattr(data, name)

        if self._pool is None:
            run(ids)
        else:
            list(self._pool.map(run, np.array_split(ids, self._num_threads)))


AnySimulator: TypeAlias = Simulator | LoopSimulator


def make_simulator(model: Any, num_simulations: int, num_threads: int) -> AnySimulator:
    """The fastest simulator that the installed MuJoCo has.

    Args:
        model: an `MjModel`.
        num_simulations: how many run together.
        num_threads: threads to run them on, 0 for all cores of this process; does not change the results.

    Raises:
        ValueError: num_threads is negative.
    """
    if num_threads < 0:
        raise ValueError(f"num_threads = {num_threads}: must be 0 (all cores) or more")
    _log_mujoco_warnings()
    threads = min(num_threads or num_cores(), num_simulations)
    kind = LoopSimulator if _batch_class() is None else Simulator
    return kind(model, num_simulations, threads)


def load_model(path: str | os.PathLike[str]) -> Any:
    """Compiles the `MjModel` of an XML file, with MuJoCo's warnings sent to the logger `metarl.envs.batch`.

    If a handler was set before with `mujoco.set_mju_user_warning`, it stays.
    """
    _log_mujoco_warnings()
    return mujoco.MjModel.from_xml_path(os.fspath(path))


def _log_mujoco_warnings() -> None:
    # Without a handler, MuJoCo prints warnings and writes MUJOCO_LOG.TXT into the working directory.
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_logger.debug)


@functools.cache
def _batch_class() -> Any:
    try:
        from mujoco.batch import Batch
    except ImportError:
        warnings.warn(
            f"MuJoCo {mujoco.__version__} has no mujoco.batch: simulations run in a slower loop; install mujoco>=3.17",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return Batch


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _warn_of_solver_bug(model: Any) -> None:
    if mujoco.__version__ == "4.0.0" and mujoco.mj_isSparse(model):
        warnings.warn(
            "MuJoCo 4.0.0 computes wrong accelerations for models with a sparse constraint Jacobian, such as this one; "
            "install another version (4.0.1 is correct) or set <option jacobian='dense'/>",
            RuntimeWarning,
            stacklevel=3,
        )


def _side_camera(distance: float) -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0.0, 0.0, 0.5)
    camera.distance, camera.azimuth, camera.elevation = distance, 90.0, -12.0
    return camera


def _make_renderer(model: Any, width: int, height: int) -> Any:
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mujoco.Renderer(model, height, width)
    except Exception as error:  # depends on the back end: FatalError, AttributeError, ImportError, RuntimeError
        raise RuntimeError(f"no OpenGL context for rendering ({error}); {_HEADLESS}") from error


class BatchEnv(TaskBatchEnv):
    """A MuJoCo model as a batch of environments with tasks.

    A simulation has diverged if MuJoCo warns of bad numbers, or if a position or velocity is not finite. Its trajectory
    is truncated, with reward 0.

    A family implements `_assign_tasks` and `_rewards`. It overrides `_initial_states`, `_tracked_positions`,
    `_terminated` and `_observe` where the defaults do not fit.

    Attributes:
        simulator: the simulations. Families read `simulator.qpos` and `simulator.qvel`.
        dt: seconds per environment step.
        default_camera: name of the camera that `render_simulation` uses; None for the free camera.
    """

    default_camera: str | None = None

    def __init__(
        self,
        model: Any,
        num_envs: int,
        *,
        frame_skip: int,
        horizon: int,
        observation_size: int | None = None,
        action_limit: float | None = None,
        reset_noise: float = 0.1,
        num_threads: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            model: an `MjModel`, or the path of an XML file.
            num_envs: number of simulations.
            frame_skip: physics steps per environment step, with the same controls.
            horizon: environment steps after which a trajectory is truncated.
            observation_size: numbers per observation of `_observe`; by default nq + nv.
            action_limit: actions in [-action_limit, action_limit] are scaled to the range of the controls and clipped;
                None: actions are controls, clipped to their range.
            reset_noise: size of the default initial noise, uniform in positions and normal in velocities.
            num_threads: threads of the simulator, 0 for all cores; does not change the results.
            autoreset_mode: as in `TaskBatchEnv`.

        Warns:
            RuntimeWarning: the installed MuJoCo version has a known bug with this model.
        """
        model = load_model(model) if isinstance(model, (str, Path)) else model
        _warn_of_solver_bug(model)
        self.simulator = make_simulator(model, num_envs, num_threads)
        self.frame_skip = frame_skip
        self.dt: float = model.opt.timestep * frame_skip
        self.reset_noise = reset_noise
        self._initial_qpos, self._initial_qvel = model.qpos0.copy(), np.zeros(model.nv)
        low, high = np.where(model.actuator_ctrllimited[:, None], model.actuator_ctrlrange, (-np.inf, np.inf)).T
        self._control_low, self._control_high = low, high
        self._control_scale, self._control_centre = np.ones(model.nu), np.zeros(model.nu)
        if action_limit is not None:
            if not np.isfinite(low).all():
                raise ValueError("action_limit needs a model whose controls are all limited")
            self._control_scale, self._control_centre = (high - low) / (2.0 * action_limit), (high + low) / 2.0
            low, high = np.full((2, model.nu), action_limit) * [[-1.0], [1.0]]
            self.metadata = {**self.metadata, "own_units": True}  # a policy's actions then need no rescaling
        self._renderers: dict[tuple[int, int, int], Any] = {}
        size = model.nq + model.nv if observation_size is None else observation_size
        super().__init__(
            num_envs,
            Box(-np.inf, np.inf, (size,), np.float64),
            Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32),
            horizon=horizon,
            autoreset_mode=autoreset_mode,
        )

    @abstractmethod
    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        """Rewards [len(ids)] of the step that was just simulated.

        Args:
            ids: the simulations.
            velocities: change of `_tracked_positions` per second, [len(ids), k].
            controls: the controls that were applied, [len(ids), nu].
        """

    def _tracked_positions(self, ids: Ids) -> Floats:
        """The positions whose velocities `_rewards` receives, [len(ids), k]; by default the first position."""
        return self.simulator.qpos[ids, :1]

    def _terminated(self, ids: Ids) -> Bools | bool:
        """Whether the step ended the MDP, [len(ids)], or False for all."""
        return False

    def _initial_states(self, rngs: RandomNumbers) -> tuple[Floats, Floats]:
        """Initial positions [len(rngs), nq] and velocities [len(rngs), nv]."""
        noise, nq, nv = self.reset_noise, self.simulator.model.nq, self.simulator.model.nv
        drawn = [(rng.uniform(-noise, noise, nq), noise * rng.standard_normal(nv)) for rng in rngs]
        qpos, qvel = (np.stack(parts) for parts in zip(*drawn, strict=True))
        return self._initial_qpos + qpos, self._initial_qvel + qvel

    def _observe(self) -> NDArray[Any]:
        return np.concatenate((self.simulator.qpos, self.simulator.qvel), 1)

    def _reset(self, ids: NDArray[np.intp], rngs: RandomNumbers) -> None:
        self._close_renderers()  # they hold the old models; the tasks may have changed them
        self.simulator.reset(ids, *self._initial_states(rngs))

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        scaled = self._control_centre + self._control_scale * actions
        controls = np.minimum(np.maximum(scaled, self._control_low), self._control_high)
        self.simulator.ctrl[ids] = controls
        before = self._tracked_positions(ids).copy()
        diverged = self.simulator.step(self.frame_skip, ids)
        # MuJoCo checks when a physics step begins, not in RK4's inner stages: it misses the last step's result.
        for state in (self.simulator.qpos, self.simulator.qvel):
            finite = np.isfinite(state[ids])
            if not finite.all():
                diverged = diverged | ~finite.all(1)
        velocities = (self._tracked_positions(ids) - before) / self.dt
        return self._rewards(ids, velocities, controls), self._terminated(ids), diverged

    def render_simulation(
        self,
        index: int,
        *,
        width: int = 480,
        height: int = 480,
        camera: int | str | None = None,
        side_view: float | None = None,
    ) -> NDArray[np.uint8]:
        """Draws one simulation.

        Args:
            index: which one.
            width: in pixels.
            height: in pixels.
            camera: a camera of the model, by name or number; None for the family's default.
            side_view: distance in metres; a camera at rest this far from the origin replaces `camera`. It looks from
                the side, with x growing to the right.

        Returns:
            RGB image [height, width, 3].

        Raises:
            RuntimeError: no OpenGL context can be made; the message says what to install.
        """
        model, data = self.simulator.snapshot(index)
        mujoco.mj_forward(model, data)
        key = (index, width, height)
        if key not in self._renderers:
            if len(self._renderers) >= _MOST_RENDERERS:
                self._close_renderers()
            self._renderers[key] = _make_renderer(model, width, height)
        chosen = self.default_camera if camera is None else camera
        if side_view is not None:
            chosen = _side_camera(side_view)
        self._renderers[key].update_scene(data, -1 if chosen is None else chosen)
        return self._renderers[key].render()  # type: ignore[no-any-return]

    def _close_renderers(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the simulator's threads and the renderers."""
        self._close_renderers()
        self.simulator.close()
