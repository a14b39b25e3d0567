"""Many MuJoCo simulations of one model as one vector environment."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.random_numbers import RandomNumbers
from metarl.envs.simulator import HEADLESS, load_model, make_simulator, mujoco, warn_of_solver_bug
from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv

_MOST_RENDERERS = 16  # kept open at a time; each has an OpenGL context, which takes a second to create


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
        raise RuntimeError(f"no OpenGL context for rendering ({error}); {HEADLESS}") from error


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
        warn_of_solver_bug(model)
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
