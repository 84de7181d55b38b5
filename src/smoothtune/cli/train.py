"""`smoothtune train` and `smoothtune resume`: live progress on stderr, the tables of results on stdout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from smoothtune.cli.options import Allow, DataDir, Experiment, PerClass, Set
from smoothtune.cli.watcher import Watcher

if TYPE_CHECKING:
    from smoothtune.workflow.run import Run


def train(
    experiment: Experiment,
    data_dir: DataDir = None,
    run_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--run-dir", help="Folder to create for the run; default: runs/NAME-DATE."),
    ] = None,
    override: Set = None,
    seed: Annotated[Optional[int], typer.Option("--seed", min=0, help="Seed; default: the experiment's.")] = None,  # noqa: UP045
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir where there is one, else begin it.")
    ] = False,
    allow: Allow = None,
    per_class: PerClass = False,
) -> None:
    """Train an experiment and leave a run folder with its model.

    \b
    Examples:
      smoothtune train demo
      smoothtune train quick --data-dir data --run-dir runs/first
      smoothtune train my.toml --seed 2 --set stages.0.batch_size=16
      smoothtune train my.toml --run-dir runs/long --resume
    """  # noqa: D301 - click reads \b
    from smoothtune.workflow.train import train as run_training

    def training(watcher: Watcher) -> Run:
        return run_training(
            experiment,
            data_dir=data_dir,
            run_dir=run_dir,
            overrides=override or (),
            seed=seed,
            resume=go_on,
            allow=allow or (),
            listen=watcher,
        )

    _show(training, per_class=per_class)


def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    allow: Allow = None,
    per_class: PerClass = False,
) -> None:
    """Go on with a run that was ended, from its last checkpoint, as if it had never stopped.

    A run that is finished is only shown; one without a checkpoint starts over.

    \b
    Examples:
      smoothtune resume runs/long
      smoothtune resume runs/long --allow device
    """  # noqa: D301 - click reads \b
    from smoothtune.workflow.train import resume as go_on

    _show(lambda watcher: go_on(run_dir, allow=allow or (), listen=watcher), per_class=per_class)


def _show(train: Callable[[Watcher], Run], *, per_class: bool) -> None:
    """Live progress, then the tables of results, from the first process alone."""
    from smoothtune.cli.evaluation_tables import print_evaluation
    from smoothtune.cli.tables import out, say
    from smoothtune.runtime.processes import launched
    from smoothtune.workflow.advice import going_on, resume_command

    watcher = Watcher()
    try:
        run = train(watcher)
    finally:
        watcher.close()
    processes = launched()
    if run.interrupted:
        if processes.is_main:
            say(
                f"interrupted; the best model so far (before a first evaluation: as it stood) is in {run.folder / 'model'}; "
                f"{going_on(run.folder, resume_command(run.folder))}"
            )
        raise typer.Exit(130)
    if not processes.is_main:
        return
    assert run.evaluation is not None
    print_evaluation(run.evaluation, "dev", per_class=per_class)
    for line in _temperatures(run):
        say(line)
    out().print(f"model: {run.folder / 'model'}{_origin(run)}", soft_wrap=True)


def _temperatures(run: Run) -> list[str]:
    """A line of the temperatures that the logits are divided by, if any."""
    from smoothtune.nn.folder import read_json
    from smoothtune.workflow.run import STATE

    numbers = read_json(run.folder / STATE).get("temperatures", {})
    parts = ", ".join(f"{task} {number:g}" for task, number in numbers.items())
    return [f"temperature of the probabilities: {parts}"] if parts else []


def _origin(run: Run) -> str:
    """Which of its two models a recipe ended with, by task where there are several; nothing where there was no recipe."""
    from smoothtune.nn.folder import read_json
    from smoothtune.workflow.run import STATE

    state = read_json(run.folder / STATE)
    again = ", fitted again on training and dev rows" if state.get("refit") else ""
    origins = {"probe": f"the linear probe{again}", "fine-tuned": "fine-tuned from the linear probe"}
    model = state.get("recipe", {}).get("model")
    if not isinstance(model, dict):
        return f" ({origins[model]})" if model in origins else ""
    parts = [
        f"{', '.join(name for name, kind in model.items() if kind == one)}: {words}"
        for one, words in origins.items()
        if one in model.values()
    ]
    return f" ({'; '.join(parts)})" if parts else ""
