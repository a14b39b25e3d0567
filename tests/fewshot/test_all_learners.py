"""What every registered few-shot learner must do, whatever its algorithm, on small synthetic characters."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from metarl.cli.progress import ProgressCallback
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.episode import run_episodes
from metarl.core.errors import InputError
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.settings import fields_of
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.core.trees import tree_map
from metarl.fewshot.base.examples import ExampleCollector, ExampleSpaces, ExampleTaskDistribution
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.data.described import DescribedTasks
from metarl.report.plots import learning_figure
from metarl.runs.registry import LEARNERS, load_learner

WAYS, QUERIES = 3, 4
# Those settings that a learner has are made small; Reptile's mini-batches are the whole support.
SMALL: dict[str, Any] = {
    "num_filters": 4,
    "num_adaptation_steps": 2,
    "hidden_sizes": (8,),
    "inner_batch_size": 100,
    "test_batch_size": None,
    "schedule_iterations": 8,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in LEARNERS},
    "proto-cosine": ("proto", {"distance": "cosine"}),
    "matching-fce": ("matching", {"full_context": True, "learn_scale": True}),
    "relation-ce": ("relation", {"loss": "cross-entropy"}),
    "fine-tune-cosine": ("fine-tune", {"head": "cosine"}),
    "reptile-reset": ("reptile", {"reset_moments": True}),
}
EVERY = pytest.mark.parametrize("name", sorted(VARIANTS))
WITHOUT_SUPPORT_IMAGES = {"proto-zero-shot"}
SCORED_BY_EPISODE = sorted(set(VARIANTS) - {"fine-tune", "fine-tune-cosine", "multi-task"})


def kind_and_config(name: str, **settings: Any) -> tuple[Any, Any]:
    learner, own = VARIANTS[name]
    kind = load_learner(learner)
    fields = fields_of(kind.Config)
    wanted = {**SMALL, **own, **settings}
    return kind, kind.Config(**{key: value for key, value in wanted.items() if key in fields})


def tasks_for(name: str, characters: Any, **sizes: Any) -> ExampleTaskDistribution[Any]:
    images = characters(**{"num_ways": WAYS, "num_shots": 2, "num_queries": QUERIES, **sizes})
    if name not in WITHOUT_SUPPORT_IMAGES:
        return images  # type: ignore[no-any-return]
    return DescribedTasks(images, np.random.default_rng(0).normal(size=(len(images.data.counts), 5)))


def make_trainer(name: str, characters: Any, *, seed: int = 1, iterations: int = 4, **settings: Any) -> Trainer:
    distribution = tasks_for(name, characters)
    collector = ExampleCollector(distribution)
    kind, config = kind_and_config(name, **settings)
    return Trainer(
        kind(config, collector.spaces, generator=torch.Generator().manual_seed(seed)),
        collector,
        distribution,
        TrainerConfig(iterations=iterations, meta_batch_size=3, seed=1),
        EvaluationConfig(num_tasks=6, num_adaptation_steps=2, controls=False),
    )


def reloaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@EVERY
def test_a_resumed_run_is_the_uninterrupted_one(name: str, characters: Any, same_bits: Any) -> None:
    whole, before = make_trainer(name, characters), make_trainer(name, characters)
    rows = [whole.train_iteration().scalars for _ in range(4)]
    told = {tag: value for row in rows for tag, value in row.items() if not tag.startswith("time/")}
    assert all(math.isfinite(value) for value in told.values())
    assert [row["health/nonfinite_skips"] for row in rows] == [0.0] * 4
    for _ in range(2):
        before.train_iteration()
    after = make_trainer(name, characters, seed=2)
    assert not same_bits(dict(after.learner.parameters), dict(before.learner.parameters))
    after.learner.load_state_dict(reloaded(before.learner.state_dict()))
    after.iteration = 2
    again = [after.train_iteration().scalars for _ in range(2)]
    assert same_bits(after.learner.state_dict(), whole.learner.state_dict())
    assert not same_bits(after.learner.state_dict(), before.learner.state_dict())
    untimed = [
        [{t: v for t, v in row.items() if not t.startswith("time/")} for row in part] for part in (rows[2:], again)
    ]
    assert untimed[0] == untimed[1]
    assert np.array_equal(whole.evaluate().values, after.evaluate().values)


@EVERY
def test_evaluation_changes_nothing_in_the_learner(name: str, characters: Any, same_bits: Any) -> None:
    trainer = make_trainer(name, characters)
    trainer.train_iteration()
    before = tree_map(Tensor.clone, trainer.learner.state_dict())
    first, second = trainer.evaluate(), trainer.evaluate()
    assert same_bits(trainer.learner.state_dict(), before)
    assert np.array_equal(first.values, second.values)


@EVERY
def test_reordering_the_meta_batch_changes_no_bit(name: str, characters: Any, same_bits: Any) -> None:
    ends = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        trainer = make_trainer(name, characters, execution="loop")
        tasks = trainer.distribution.sample(4, generator(5, 0, Purpose.TASKS))
        chosen, seeds = [tasks[slot] for slot in order], Seeds(5, 0, tuple(order))
        learner: Any = trainer.learner
        steps = learner.num_adaptation_steps
        episodes = run_episodes(learner, trainer.collector, chosen, seeds, num_steps=steps)
        metrics = learner.meta_update(episodes)
        ends.append((episodes.scores, episodes.state, learner.state_dict(), metrics))
    assert same_bits(ends[0][:3], ends[1][:3])
    assert ends[0][3] == ends[1][3]


def adapted(name: str, characters: Any, mode: str, **settings: Any) -> tuple[Any, Any, ExampleBatch, ExampleBatch]:
    """A learner after an update, its state for two tasks after two steps, and their support and query."""
    trainer = make_trainer(name, characters, batch_norm=mode, **settings)
    trainer.train_iteration()
    learner: Any = trainer.learner
    tasks = trainer.distribution.sample(2, generator(3, 0, Purpose.TASKS), split="test")
    seeds = Seeds.first(2, seed=3, evaluation=True)
    support = learner.prepare(trainer.distribution.support(tasks, seeds))  # type: ignore[attr-defined]
    query = learner.prepare(trainer.distribution.query(tasks, seeds))  # type: ignore[attr-defined]
    state = learner.begin(2)
    for step in range(2):
        state = learner.adapt(state, support, step=step)
    return learner, state, support, query


def rows_of(batch: ExampleBatch, rows: Any) -> ExampleBatch:
    return ExampleBatch(*(part[:, rows] for part in batch))


def modes_of(name: str) -> list[str]:
    """Those of images that are normalised by something: descriptions normalise nothing."""
    return [mode for mode in ("support", "running", "none") if (name, mode) != ("proto-zero-shot", "support")]


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in sorted(VARIANTS) for mode in modes_of(name)])
def test_without_transduction_a_prediction_is_of_its_query_alone(
    name: str, mode: str, characters: Any, logits_of: Any
) -> None:
    learner, state, _, query = adapted(name, characters, mode)
    whole = logits_of(learner, state, query)
    count = whole.shape[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    close = {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(logits_of(learner, state, rows_of(query, order)), whole[:, order], **close)
    hits = []
    for i in range(count):
        alone = rows_of(query, slice(i, i + 1))
        torch.testing.assert_close(logits_of(learner, state, alone), whole[:, i : i + 1], **close)
        hits.append(learner.score(state, alone))
    torch.testing.assert_close(torch.stack(hits).mean(0), learner.score(state, query))
    assert float((whole[0, 0] - whole[0, 1]).abs().max()) > 1e-4  # queries do differ


@EVERY
def test_with_transduction_it_depends_on_the_company(name: str, characters: Any, logits_of: Any) -> None:
    """Else the test above could not fail."""
    learner, state, _, query = adapted(name, characters, "transductive")
    whole, half = (logits_of(learner, state, part) for part in (query, rows_of(query, slice(0, 4))))
    assert float((whole[:, :4] - half).abs().max()) > 1e-3 * float(whole.std())


@EVERY
def test_query_targets_do_not_reach_the_predictions(name: str, characters: Any, logits_of: Any) -> None:
    learner, state, _, query = adapted(name, characters, "transductive")
    other = query._replace(targets=(query.targets + 1) % WAYS, classes=query.classes.flip(1))
    assert torch.equal(logits_of(learner, state, query), logits_of(learner, state, other))
    guesses = logits_of(learner, state, query).argmax(-1)
    for part in (query, other):
        torch.testing.assert_close(learner.score(state, part), (guesses == part.targets).float().mean(1))
    certain = query._replace(targets=guesses)
    assert learner.score(state, certain).tolist() == [1.0, 1.0]


@EVERY
def test_the_supports_order_does_not_matter(name: str, characters: Any, logits_of: Any) -> None:
    """But for the LSTM of full-context embeddings, which reads it."""
    learner, state, support, query = adapted(name, characters, "running", inner_lr=0.01)
    turned, backwards = learner.begin(2), torch.arange(support.targets.shape[1]).flip(0)
    for step in range(2):
        turned = learner.adapt(turned, rows_of(support, backwards), step=step)
    difference = float((logits_of(learner, state, query) - logits_of(learner, turned, query)).abs().max())
    if name == "matching-fce":
        assert difference > 1e-4
    else:
        assert difference < 1e-4


VECTORS = ExampleSpaces((6,), WAYS, True, train_ways=WAYS, train_classes=tuple(range(9)))
# What compares by a fixed rule tells separate classes apart before any training, and so does a head that is tuned, but
# not by steps as small as Reptile's and Meta-SGD's first ones.
LEARNS_FIRST = {"relation", "relation-ce", "proto-zero-shot", "matching-fce", "reptile", "reptile-reset", "meta-sgd"}


@EVERY
def test_with_shuffled_support_labels_accuracy_is_chance(name: str, new_batches: Any) -> None:
    """Over 600 episodes, within 4 standard errors of 1 / ways. With the right labels it is not, for learners that
    work without training."""
    support, query = new_batches(tasks=600, ways=WAYS, shots=2, queries=QUERIES)
    spaces = VECTORS
    if name in WITHOUT_SUPPORT_IMAGES:
        spaces = dataclasses.replace(spaces, description_size=6)
    kind, config = kind_and_config(name, inner_lr=0.1, hidden_sizes=(32,))
    learner = kind(config, spaces, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    orders = torch.stack([torch.randperm(WAYS, generator=rng) for _ in range(600)])
    positions = torch.stack([torch.randperm(2 * WAYS, generator=rng) for _ in range(600)])
    # Labels exchanged among classes, and among examples: both leave nothing that the query's labels could match.
    exchanged = [orders.gather(1, support.targets), support.targets.gather(1, positions)]
    scores = []
    for labels in (support.targets, *exchanged):
        state = learner.begin(600)
        for step in range(2):
            state = learner.adapt(state, support._replace(targets=labels), step=step)
        scores.append(learner.score(state, query).double())
    for score in scores[1:]:
        assert float(score.mean()) == pytest.approx(1 / WAYS, abs=4 * float(score.std()) / math.sqrt(600))
    if name not in LEARNS_FIRST:
        assert float(scores[0].mean()) > 1 / WAYS + 0.1


@pytest.mark.parametrize("name", SCORED_BY_EPISODE)
def test_an_update_reports_the_score_of_run_episodes(name: str, characters: Any) -> None:
    """At the same weights; and the trainer, whose update adapts, logs it without a second adaptation."""
    trainer = make_trainer(name, characters, batch_norm="none")
    learner: Any = trainer.learner
    tasks = trainer.distribution.sample(3, generator(1, 0, Purpose.TASKS), split="train")
    steps = learner.num_adaptation_steps
    episodes = run_episodes(learner, trainer.collector, tasks, Seeds.first(3, seed=1), num_steps=steps)
    progressed = trainer.train_iteration()
    expected = float(episodes.scores[-1].mean())
    assert progressed.scalars[f"adapt/step_{steps}"] == pytest.approx(expected)
    assert progressed.scalars["rollout/post_adapt/ep_rew_mean"] == pytest.approx(expected)
    assert progressed.episodes.scores == ()
    assert not any(tag.startswith("train/adapt") for tag in progressed.scalars)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - set(SCORED_BY_EPISODE)))
def test_joint_training_reports_no_adaptation(name: str, characters: Any) -> None:
    """Its accuracy is that on training classes, under a tag and in a progress line that say so."""
    trainer = make_trainer(name, characters, iterations=1)
    file, rows = io.StringIO(), []

    class Recorder(Callback):
        def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
            rows.append(progressed.scalars)

    trainer.callbacks = (Recorder(), ProgressCallback(Console(file=file)))
    trainer.run()
    assert not [tag for tag in rows[0] if tag.startswith(("adapt/", "rollout/"))]
    score = rows[0]["train/accuracy"]
    assert file.getvalue().startswith(f"iteration 1/1  accuracy in joint training {score:.4g}  ")
    assert "adaptation" not in file.getvalue()
    assert any(label.get_text() == "joint training" for label in legend_of(rows))


def legend_of(rows: list[dict[str, float]]) -> Any:
    (axes,) = learning_figure({"run": [{"iteration": 1, "env_steps": 10, **rows[0]}]}).axes
    return axes.get_legend().get_texts()


@pytest.mark.parametrize("name", ["fine-tune", "maml", "proto"])
def test_descriptions_are_for_who_reads_them(name: str, characters: Any) -> None:
    distribution = tasks_for("proto-zero-shot", characters)
    kind, config = kind_and_config(name)
    with pytest.raises(InputError, match=r"^agent = '\w+': must be proto-zero-shot: the support .* is descriptions"):
        kind(config, distribution.spaces, generator=torch.Generator())


@pytest.mark.parametrize("name", ["proto", "maml"])
def test_training_gives_all_shots_and_testing_one_after_another(name: str, characters: Any) -> None:
    distribution = tasks_for(name, characters, train_shots=4, num_shots=3)
    collector = ExampleCollector(distribution)
    kind, config = kind_and_config(name)
    learner = kind(config, collector.spaces, generator=torch.Generator())
    sizes = {}
    for evaluation in (False, True):
        tasks = distribution.sample(2, generator(0, 0, Purpose.TASKS))
        seeds = Seeds.first(2, evaluation=evaluation)
        episodes = run_episodes(learner, collector, tasks, seeds, num_steps=2, adapting=evaluation)
        sizes[evaluation] = [batch.targets.shape[1] for batch in episodes.support]
    assert sizes[False] == [4 * WAYS, 4 * WAYS]
    assert sizes[True] == ([WAYS, WAYS] if name == "proto" else [3 * WAYS, 3 * WAYS])
