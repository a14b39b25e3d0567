"""`run_episodes` for learners that adapt in their update, on data that counts what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.core.config import TrainerConfig
from metarl.core.data import Episodes, Examples
from metarl.core.episode import run_episodes
from metarl.core.learner import ScoreName, Traits
from metarl.core.seeds import Seeds
from metarl.core.trainer import Trainer


class Given:
    """Task i's examples are all i; it notes what it is asked for."""

    acts = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def support(self, tasks: Sequence[int], learner: Any, state: Any, seeds: Seeds, *, step: int) -> Examples:
        self.asked.append(f"support {step}")
        return self._of(tasks)

    def query(self, tasks: Sequence[int], learner: Any, state: Any, seeds: Seeds) -> Examples:
        self.asked.append("query")
        return self._of(tasks)

    def _of(self, tasks: Sequence[int]) -> Examples:
        values = torch.tensor(tasks).float().unsqueeze(1)
        return Examples(values, values)


class Acting(Given):
    acts = True


class Watched:
    """A learner whose state counts its adaptations."""

    score_name: ScoreName = "mse"
    num_adaptation_steps = 2
    device = torch.device("cpu")
    parameters: dict[str, Tensor] = {}  # noqa: RUF012
    scalars: dict[str, float] = {"loss": 1.0, "adapt/step_2": 0.25}  # noqa: RUF012

    def __init__(self, *, in_update: bool) -> None:
        self.traits = Traits(unit="gradient steps", adapts_in_update=in_update)
        self.calls: list[str] = []
        self.seen: Episodes[Any, Any] | None = None

    def begin(self, num_tasks: int, *, parameters: Any = None) -> Tensor:
        return torch.zeros(num_tasks)

    def prepare(self, data: Examples) -> Examples:
        return data

    def adapt(self, state: Tensor, support: Examples, *, step: int, differentiable: bool = False) -> Tensor:
        self.calls.append("adapt")
        return state + 1.0

    def score(self, state: Tensor, query: Examples) -> Tensor:
        self.calls.append("score")
        return state + query.targets[:, 0]

    def meta_update(self, episodes: Episodes[Any, Any]) -> dict[str, float]:
        self.seen = episodes
        return dict(self.scalars)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...

    def to(self, device: Any) -> Watched:
        return self


def test_without_adapting_the_data_alone_is_brought() -> None:
    learner, collector = Watched(in_update=True), Given()
    seen: list[int] = []
    episodes = run_episodes(
        learner,
        collector,
        [7, 5, 6],
        Seeds(0, 0, (2, 0, 1)),
        num_steps=2,
        adapting=False,
        on_scored=lambda step, data: seen.append(step),
    )
    assert learner.calls == []
    assert seen == []
    assert episodes.scores == ()
    assert episodes.state.tolist() == [0.0, 0.0, 0.0]
    assert episodes.tasks == (5, 6, 7)  # slot order
    assert [batch.targets[:, 0].tolist() for batch in episodes.support] == [[5.0, 6.0, 7.0]] * 2
    assert episodes.query.targets[:, 0].tolist() == [5.0, 6.0, 7.0]
    assert sorted(collector.asked) == ["query", "support 0", "support 1"]
    adapted = run_episodes(learner, Given(), [7, 5, 6], Seeds(0, 0, (2, 0, 1)), num_steps=2)
    assert (episodes.num_steps, episodes.support_steps) == (adapted.num_steps, adapted.support_steps)
    assert [score.tolist() for score in adapted.scores] == [[5 + k, 6 + k, 7 + k] for k in range(3)]


def test_a_collector_that_acts_cannot_do_without_adapting() -> None:
    learner, collector = Watched(in_update=True), Acting()
    with pytest.raises(ValueError, match="adapting = False: must be True for a learner that acts"):
        run_episodes(learner, collector, [1, 2], Seeds.first(2), num_steps=1, adapting=False)
    assert collector.asked == []


class Tasks:
    splits = "disjoint"

    def sample(self, num_tasks: int, rng: Any, *, split: str = "train") -> list[int]:
        return list(range(num_tasks))


@pytest.mark.parametrize("in_update", [True, False])
def test_the_trainer_takes_scores_from_an_update_that_tells_them(in_update: bool) -> None:
    learner = Watched(in_update=in_update)
    config = TrainerConfig(iterations=1, meta_batch_size=4)
    scalars = Trainer(learner, Given(), Tasks(), config).train_iteration().scalars  # type: ignore[arg-type]
    assert learner.seen is not None
    assert len(learner.seen.scores) == (0 if in_update else 3)
    assert ("adapt" in learner.calls) is not in_update
    told = {tag: value for tag, value in scalars.items() if tag.startswith(("adapt/", "rollout/"))}
    assert told == {"adapt/step_2": 0.25, "rollout/post_adapt/ep_rew_mean": 0.25}  # nothing is known of before
    assert scalars["train/loss"] == 1.0
    assert not any(tag.startswith("train/adapt") for tag in scalars)


def test_the_trainer_takes_scores_from_the_episodes_where_the_update_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Watched(in_update=False)
    monkeypatch.setattr(learner, "scalars", {"loss": 1.0})
    config = TrainerConfig(iterations=1, meta_batch_size=4)
    scalars = Trainer(learner, Given(), Tasks(), config).train_iteration().scalars  # type: ignore[arg-type]
    assert [scalars[f"adapt/step_{step}"] for step in range(3)] == [1.5, 2.5, 3.5]  # the mean of 0, 1, 2, 3, plus k
    assert scalars["adapt/gain"] == -2.0  # of an error that rises
