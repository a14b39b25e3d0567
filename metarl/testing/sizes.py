"""Notes on observations that are too large for a network, and on actions that are clipped."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import numpy as np
import torch

from metarl.core.data import Trajectories
from metarl.rl.tasks import AnySpace

LARGE = 10.0  # root mean square of an observation; larger ones saturate layers with usual initial weights
MOSTLY = 0.9  # of the steps


def size_notes(data: Trajectories, action_space: AnySpace) -> Iterator[str]:
    """The notes on `data`, one line each. Its actions are standard normal noise."""
    live = data.mask.bool()
    seen = data.observations[live]
    sizes = seen.double().square().mean(0).sqrt()
    if len(seen) and float(sizes.max()) > LARGE:
        column = int(sizes.argmax())
        low, high = (float(end(seen[:, column])) for end in (torch.min, torch.max))
        found = f"observation[{column}] ranges from {low:.4g} to {high:.4g}"
        advice = "use the setting agent.normalize_observations (--agent.normalize-observations), or rescale them"
        yield f"observations larger than {LARGE:g} make learning slow; {found}: {advice}"
    if isinstance(action_space, gymnasium.spaces.Box) and len(seen):
        actions = data.actions[live].numpy()
        clipped = ((actions < action_space.low) | (actions > action_space.high)).mean(0)
        if (clipped > MOSTLY).any():
            column = int(np.argmax(clipped))
            bounds = f"[{action_space.low[column]:g}, {action_space.high[column]:g}]"
            found = f"{clipped[column]:.0%} of the random actions, drawn from N(0, 1), have action[{column}] outside"
            yield f"{found} {bounds} and are clipped: let the environment rescale actions of about [-1, 1]"
