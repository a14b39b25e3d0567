"""`metarl evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from metarl.cli.console import complain, say
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.files import require_output
from metarl.report.text import report_lines
from metarl.runs.config import load_config, path_settings, read_saved


def evaluate(
    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")],
    tasks: int | None = None,
    adaptation_steps: int | None = None,
    seed: int | None = None,
    checkpoint: str = "latest",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    on: str | None = None,
    choose_step_size: bool = False,
    trust: bool = False,
    task_flags: Annotated[tuple[str, ...], tyro.conf.Suppress, tyro.conf.Fixed] = (),
) -> int:
    """Adaptation curve of a trained run on test tasks.

    --task.NAME VALUE, after RUN_DIR, changes a setting of the evaluated family. Example: --task.test-low 2
    --task.test-high 3, for goals held out of training. `metarl train FAMILY --help` lists the settings.

    Args:
        run_dir: a folder that `metarl train` filled.
        tasks: episodes in all; None = the run's setting. A finite family is covered with replicates.
        adaptation_steps: last step of the curve; None = the run's setting.
        seed: of evaluation's tasks and random numbers; None = the run's.
        checkpoint: latest, best (by the score on validation tasks, see --evaluation.every), or an iteration.
        json_file: also write the result to this file, in the format of adaptation.json.
        on: another family to evaluate on, with the same observations and actions, or images and classes. Horizon,
            action range, ways and shots are the run's; other settings are the family's.
        choose_step_size: first choose the size of the test-time steps, from 1/4 to 8 times the run's, on validation
            tasks. They are drawn from the training split, as many as test tasks.
        trust: import the task or agent class that the folder, or `on`, names as module:Class.
        task_flags: the --task.* flags.
    """
    settings = {"num_tasks": tasks, "num_adaptation_steps": adaptation_steps}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    # Checked before torch is imported and before minutes of evaluation.
    EvaluationConfig(**given)
    TrainerConfig(seed=0 if seed is None else seed)
    read_saved(run_dir)
    run_dir = run_dir.absolute()  # users' modules and environments may change the working directory
    if json_file is not None:
        require_output(json_file, "--json")
        json_file = json_file.absolute()

    from metarl.cli.flags import parse_task_flags, task_values
    from metarl.core.evaluation import coverage
    from metarl.runs import reports
    from metarl.runs.load import load_trainer
    from metarl.runs.other_tasks import Target, describe_transfer, target_family

    values = {} if on is not None else task_values(task_flags)  # with `on`, they belong to another family
    target, saved = None, load_config(run_dir, trusted=trust, paths=values)
    paths = {name: value for name, value in values.items() if name in path_settings(type(saved.task))}
    if on is not None or task_flags:
        family = target_family(saved, on, trusted=trust)
        task = parse_task_flags(family.task, task_flags)
        moved = on is None and values == paths  # the data was only moved
        target = None if moved else Target(family.name, task)
    trainer = load_trainer(run_dir, checkpoint=checkpoint, trusted=trust, seed=seed, on=target, paths=paths, **given)
    if tasks is not None:
        reason = coverage(trainer.distribution, tasks)[1]
        if reason:
            complain(f"note: --tasks = {tasks}: {reason}")
    scale = reports.choose_step_size(trainer) if choose_step_size else None
    report = reports.describe(trainer, trainer.evaluate(), controls=trainer.evaluation.controls)
    if scale is not None:
        report["step_scale"], report["validation"] = scale
    if target is not None:
        report = describe_transfer(report, saved, target)
    for line in report_lines(report):
        say(line)
    if json_file is not None:
        reports.write_json(report, json_file)
    return 0
