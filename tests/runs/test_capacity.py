from __future__ import annotations

from typing import Any

import pytest

from metarl.cli.flags import parse_train
from metarl.core.errors import InputError
from metarl.runs import capacity
from metarl.runs.capacity import require_capacity

FLAGS = ["--meta-batch-size=10", "--agent.num-trajectories=20", "--evaluation.num-tasks=5"]


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "total_memory", lambda: 10**9)


def config(*flags: str) -> Any:
    return parse_train(["point-nav", *FLAGS, *flags]).config


@pytest.mark.parametrize(
    ("flag", "most", "beside"),
    [
        # Bytes of a step: 20 and an observation's 4.
        ("--task.horizon", 10**9 // (24 * 10 * 20), "agent.num_trajectories = 20, trainer.meta_batch_size = 10"),
        ("--evaluation.min-live-steps", 10**9 // (24 * 5), "trainer.meta_batch_size = 5"),
        (
            "--agent.num-adaptation-steps",
            10**9 // (24 * 10 * 20 * 100),
            "agent.num_trajectories = 20, task.horizon = 100",
        ),
        ("--evaluation.num-trajectories", 10**9 // (24 * 5 * 100), "task.horizon = 100, trainer.meta_batch_size = 5"),
        ("--agent.hidden-sizes", 10**9 // (32 * 10), ""),
    ],
)
def test_what_cannot_fit_is_refused_and_what_can_is_not(flag: str, most: int, beside: str) -> None:
    require_capacity(config(f"{flag}={most}"))
    with pytest.raises(InputError) as caught:
        require_capacity(config(f"{flag}={most + 1}"))
    name = flag.removeprefix("--").replace("-", "_")
    assert str(caught.value).startswith(
        f"{name} = {most + 1}: must be at most {most}{' with ' if beside else ': '}{beside}"
    )
    assert str(caught.value).endswith(": this machine has 1 GB of memory, and the run needs at least 1 GB")


def test_the_size_of_observations_counts_where_it_is_known() -> None:
    require_capacity(config("--task.horizon=200000"))
    with pytest.raises(InputError, match=r"^task.horizon = 200000: must be at most 125000 with"):
        require_capacity(config("--task.horizon=200000"), observation_size=5)


def test_squares_count_as_such() -> None:
    with pytest.raises(InputError, match=r"^agent.num_filters = 5001: must be at most 5000: this machine has 1 GB"):
        parse_train(["glyphs", "--agent", "proto", "--meta-batch-size=10", "--agent.num-filters=5001"])
