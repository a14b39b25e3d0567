"""The simulations of one MuJoCo model: controls in, physics steps, states out.

Simulations run on `mujoco.batch.Batch` (MuJoCo >= 3.17), a pool of C++ threads. With an older MuJoCo they run in a loop
of `mj_step`. Both give results that are bit-identical to gymnasium's MuJoCo environments, for any number of threads.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metarl.envs.vector import Bools, Floats, Ids

HEADLESS = (
    "on a machine without a display set MUJOCO_GL=egl (apt package libegl1) or MUJOCO_GL=osmesa (apt package "
    "libosmesa6) before Python starts"
)

try:
    import mujoco as mujoco  # other modules take it from here, with a clear error if it does not load
except (AttributeError, ImportError) as error:  # PyOpenGL raises AttributeError if a library is missing
    if "MUJOCO_GL" not in os.environ:
        raise
    raise RuntimeError(f"MUJOCO_GL = {os.environ['MUJOCO_GL']!r} does not work here ({error}); {HEADLESS}") from error

# MuJoCo resets a simulation that becomes unstable, and continues. Only these counters show it.
_BREAKDOWNS = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADCTRL) + 1)
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
    """Compiles the `MjModel` of an XML file, with MuJoCo's warnings sent to the logger `metarl.envs.simulator`.

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


def warn_of_solver_bug(model: Any) -> None:
    if mujoco.__version__ == "4.0.0" and mujoco.mj_isSparse(model):
        warnings.warn(
            "MuJoCo 4.0.0 computes wrong accelerations for models with a sparse constraint Jacobian, such as this one; "
            "install another version (4.0.1 is correct) or set <option jacobian='dense'/>",
            RuntimeWarning,
            stacklevel=3,
        )
