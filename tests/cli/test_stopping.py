"""Signals to this process at chosen places. tests/cli/test_signals.py has signals to real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.cli.main import main
from metarl.cli.stopping import Stopped, StopSignals
from metarl.core import step_scale, trainer
from metarl.report import plots
from metarl.runs import best, checkpoint, load, recorder, reports, tracking, train
from metarl.runs.tracking import Tracker, read_metrics

SETTINGS = (
    "train bandit --quiet --iterations 4 --evaluation.every 3 --checkpoint-every 50 --meta-batch-size 2 --device cpu "
    "--agent.num-trajectories 2 --agent.hidden-sizes 4 --evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1"
)
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module", autouse=True)
def _blank_pictures() -> Iterator[None]:
    """No pictures: drawing takes most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "adaptation_figure", lambda report: Figure())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*SETTINGS.split(), "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _handlers_untouched() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


class Calls:
    """A function that sends this process `number` before its `nth` call."""

    def __init__(self, function: Callable[..., Any], nth: int, number: int) -> None:
        self.function, self.nth, self.number = function, nth, number
        self.count = 0

    def __call__(self, *values: Any, **settings: Any) -> Any:
        self.count += 1
        if self.count == self.nth:
            os.kill(os.getpid(), self.number)
        return self.function(*values, **settings)


def signalled(patch: pytest.MonkeyPatch, place: Any, name: str, *, nth: int = 1, number: int = signal.SIGTERM) -> Calls:
    function = getattr(place, name)
    calls = Calls(function, nth, number)
    # A method gets its object only from a function.
    patch.setattr(place, name, (lambda *a, **k: calls(*a, **k)) if isinstance(place, type) else calls)
    return calls


def records(run_dir: Path) -> list[Any]:
    """The results, which must not depend on interruptions: rows, TensorBoard's points, checkpoints and the report."""

    def untimed(tag: str) -> bool:
        return tag != "wall_s" and (not tag.startswith("time/") or tag == "time/env_steps")

    rows = [{tag: value for tag, value in row.items() if untimed(tag)} for row in read_metrics(run_dir)]
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0}).Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if untimed(tag)}
    pictures = [event.step for event in events.Images("meta_test/adaptation_curve")]
    sums = {
        iteration: checkpoint.load(folder).manifest["parameters_sha256"]
        for iteration, folder in checkpoint.list_checkpoints(run_dir).items()
    }
    return [rows, points, pictures, sums, json.loads((run_dir / "adaptation.json").read_text())]


@pytest.mark.parametrize(
    ("place", "name", "nth", "saved", "evaluated"),
    [
        (trainer, "evaluate", 2, 3, 2),  # the periodic evaluation, which the resumed run does first
        (trainer, "evaluate", 3, 4, 1),
        (Tracker, "evaluation", 1, 3, 1),  # while it is written: writing ends, then the run stops
        (Tracker, "evaluation", 2, 4, 1),
        (reports, "adaptation_controls", 1, 4, 1),
        (train, "write_report", 1, 4, 1),
        (Tracker, "log", 2, 2, 2),  # in an iteration: the iteration is finished
        (checkpoint, "save", 1, 3, 2),
    ],
)
def test_a_stopped_run_has_every_iteration_and_goes_on_like_one_that_was_not(
    place: Any, name: str, nth: int, saved: int, evaluated: int, whole: Path, tmp_path: Path, capfd: Any
) -> None:
    run_dir = tmp_path / "run"
    number = list(SIGNALS)[(nth + saved) % 3]
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, place, name, nth=nth, number=number)
        assert main([*SETTINGS.split(), "--run-dir", str(run_dir)]) == SIGNALS[number]
    assert capfd.readouterr().err.endswith(f"metarl: stopped; metarl train --resume {run_dir} goes on\n")
    assert checkpoint.latest(run_dir).iteration == saved
    assert [row["iteration"] for row in read_metrics(run_dir)] == list(range(1, saved + 1))
    assert not (run_dir / "adaptation.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        calls = signalled(patch, trainer, "evaluate", nth=0)
        assert main(["train", "--quiet", "--resume", str(run_dir)]) == 0
    assert calls.count == 2 * evaluated  # on test tasks and on validation tasks
    found, expected = records(run_dir), records(whole)
    if name == "log":  # stopping there saved one checkpoint more
        assert found[3].pop(2)
    assert found == expected


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("place", "name", "command"),
    [
        (train, "build", f"{SETTINGS} --run-dir run"),
        (load, "load_trainer", "evaluate WHOLE"),
        (trainer, "evaluate", "evaluate WHOLE --json out.json"),
        (step_scale, "evaluate", "evaluate WHOLE --choose-step-size --json out.json"),
    ],
)
def test_a_signal_before_training_or_in_an_evaluation_leaves_nothing_behind(
    place: Any, name: str, command: str, number: signal.Signals, whole: Path, tmp_path: Path, capfd: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        signalled(patch, place, name, number=number)
        assert main([str(whole) if word == "WHOLE" else word for word in command.split()]) == SIGNALS[number]
    expected = "stopped; no iteration was finished" if name == "build" else f"stopped by {number.name}"
    assert capfd.readouterr().err == f"metarl: {expected}\n"
    assert not [*tmp_path.iterdir()]


def test_a_second_signal_saves_the_state_after_the_last_whole_iteration(whole: Path, tmp_path: Path) -> None:
    """The third update is broken off after it has changed the parameters."""
    run_dir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        find = trainer.nonfinite.find
        calls: list[int] = []

        def twice(*values: Any) -> Any:
            calls.append(0)
            for _ in range(2 * (len(calls) == 3)):
                os.kill(os.getpid(), signal.SIGINT)
            return find(*values)

        patch.setattr(trainer.nonfinite, "find", twice)
        assert main([*SETTINGS.split(), "--run-dir", str(run_dir)]) == 130
    assert checkpoint.latest(run_dir).iteration == 2
    assert main(["train", "--quiet", "--resume", str(run_dir)]) == 0
    assert records(run_dir)[0] == records(whole)[0]


class Killed(BaseException):
    pass


def test_an_evaluation_that_a_kill_left_in_one_record_is_in_both_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    write, calls = tracking.write_atomically, []

    def kill(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if calls.count("metrics.jsonl") == 2:  # the first one begins the file
            raise Killed
        write(path, data)

    monkeypatch.setattr(tracking, "write_atomically", kill)
    assert main([*SETTINGS.split(), "--run-dir", str(run_dir)]) == 1
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "adaptation_figure", lambda report: Figure())
        assert main(["train", "--quiet", "--resume", str(run_dir)]) == 0
    assert records(run_dir) == records(whole)


def test_signals_raise_once_and_the_first_one_can_wait() -> None:
    done: list[str] = []
    with StopSignals() as signals:
        signals.finish_first(lambda: done.append("first"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert (done, signals.received) == (["first"], signal.SIGTERM)
        with pytest.raises(Stopped) as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.value.number == signal.SIGINT
    with StopSignals() as signals:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)  # it does not interrupt the ending
        with pytest.raises(Stopped):  # raised again after code that swallowed it
            signals.stop_at_once()


def test_a_third_signal_ends_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that ends the run hangs."""
    sent: list[Any] = []
    with StopSignals() as signals:
        signals.finish_first(lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        kill = os.kill
        monkeypatch.setattr(os, "kill", lambda *_: sent.append(signal.getsignal(signal.SIGTERM)))
        kill(os.getpid(), signal.SIGTERM)
    assert sent == [signal.SIG_DFL]


def test_sighup_stays_ignored_under_nohup_and_other_threads_have_no_handlers() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["list", "--json"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:1] + lines[2:], "1 of 3 rows are lost, the first of iteration 2"),
        (lambda lines: lines[:2], "1 of 3 rows are lost, the first of iteration 3"),
        (lambda lines: [*lines[:2], lines[2][:40]], "1 of 3 rows are lost, the first of iteration 3"),
        (lambda lines: [lines[0], *lines], "iteration 1 is there twice"),
        (lambda lines: [lines[0], "\0" * 30 + "\n", *lines[1:]], "line 2 is damaged"),
        (lambda lines: [], "3 of 3 rows are lost, the first of iteration 1"),
        (lambda lines: lines[:3], "1 of 4 rows are lost, the first of iteration 4"),
    ],
    ids=["lost", "last lost", "torn", "twice", "damaged", "all lost", "lost after the end"],
)
def test_what_is_wrong_with_the_rows_of_a_resumed_run_is_said(
    damage: Callable[[list[str]], list[str]], said: str, whole: Path, tmp_path: Path, caplog: Any
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if "of 4" not in said:
        shutil.rmtree(run_dir / "checkpoints" / "iteration_000004")
        del lines[3]
    path.write_text("".join(damage(lines)))
    assert main(["train", "--quiet", "--resume", str(run_dir)]) == 0
    (message,) = [record.message for record in caplog.records if record.name == recorder.__name__]
    assert message == f"{path}: {said}; going on"
    rows = read_metrics(run_dir)
    assert [row["iteration"] for row in rows] == sorted({row["iteration"] for row in rows})
    assert rows[-1]["iteration"] == 4
    assert all("meta_test/step_0" in row for row in rows if row["iteration"] in (3, 4))


def test_rows_are_on_the_disk_before_their_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    synced: list[int] = []
    missing: list[str] = []
    fsync, save = os.fsync, checkpoint.save

    def saving(*values: Any, **settings: Any) -> Any:
        files = [run_dir / "metrics.jsonl", *run_dir.glob("events*")]
        missing.extend(path.name for path in files if path.stat().st_ino not in synced)
        synced.clear()
        return save(*values, **settings)

    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number))[1])
    monkeypatch.setattr(checkpoint, "save", saving)
    settings = SETTINGS.replace("--evaluation.every 3", "--evaluation.every 0").replace("every 50", "every 1")
    assert main([*settings.split(), "--run-dir", str(run_dir), "--evaluation.no-controls"]) == 0
    assert not missing


def test_the_records_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "read_metrics", None)
    settings = SETTINGS.replace("--evaluation.every 3", "--evaluation.every 1 --evaluation.no-controls")
    assert main([*settings.split(), "--run-dir", str(tmp_path / "run")]) == 0
