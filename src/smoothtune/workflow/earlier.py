"""What an earlier process left of a run, and whether a run may go on from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoothtune.config.experiment import Experiment
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.training.checkpoint import FORMAT, Checkpoints
from smoothtune.workflow.advice import resume_command
from smoothtune.workflow.identity import Identity, compare, configuration_of
from smoothtune.workflow.run import CHECKPOINTS, RECIPE, read_experiment
from smoothtune.workflow.saving import RunState, run_state

_MACHINE = ("processor", "python", "packages")


@dataclass(frozen=True, slots=True)
class Earlier:
    """The run's experiment and its last whole checkpoint: `folder`, `state` and `stage` are None and empty without one.

    `damaged` says what is wrong with checkpoints after it; `allowed` are the kinds of difference to go on with.
    """

    run: Path
    experiment: Experiment
    damaged: list[str]
    allowed: Collection[str]
    folder: Path | None = None
    format: int = FORMAT
    again: str = "the same command and"
    state: RunState | None = None
    stage: Mapping[str, Any] = field(default_factory=dict)

    def compare(self, identity: Identity, machine: Mapping[str, Any]) -> list[str]:
        """Why the result may not be that of a run that never stopped. Raises `UsageError` for what is not allowed."""
        assert self.state is not None
        differs = compare(
            {**self.state.identity, "format": self.format},
            {**identity, "format": FORMAT},
            self.allowed,
            str(self.run),
            self.again,
        )
        then = self.state.machine
        self._check_labels(identity)
        return differs + [f"{name}: {then.get(name)} then, {machine[name]} now" for name in _MACHINE
                          if then.get(name) != machine[name]]  # fmt: skip

    def _check_labels(self, identity: Identity) -> None:
        """Raise `UsageError` for labels that the model does not answer with, whatever is allowed."""
        assert self.state is not None
        before = self.state.identity.get("data")
        for task, found in identity["data"].items():
            then = before.get(task) if isinstance(before, Mapping) else None
            if not isinstance(then, Mapping) or then.get("labels") != found["labels"]:
                raise UsageError(
                    f"{self.run}: the labels of task {task} are not those that the run began with; a model keeps the labels "
                    "that it began with: put the data back, or begin another run"
                )


def as_of_run(folder: Path, run: Experiment, experiment: Experiment) -> Experiment:
    """`experiment` with what it leaves open as the `run` in `folder` has it: what the recipe chose, and what younger keys say.

    The defaults of the hold-out, of class labels and of special tokens were others when older runs began.
    """
    left = {"hold_out", "class_labels"} - experiment.model_fields_set
    changes: dict[str, Any] = {key: getattr(run, key) for key in left}
    if "special_tokens" not in experiment.encoder.model_fields_set:
        own = {"special_tokens": run.encoder.special_tokens}
        changes["encoder"] = experiment.encoder.model_copy(update=own)
    if experiment.recipe == "auto" and (folder / RECIPE).is_file():
        changes |= _chosen(run, experiment)
    return experiment.model_copy(update=changes)


def _chosen(run: Experiment, experiment: Experiment) -> dict[str, Any]:
    """Stages, trunks, class weights and temperatures of the run, where the experiment leaves them to the recipe."""
    trunks, tasks = dict(experiment.trunks), dict(experiment.tasks)
    for name, task in experiment.tasks.items():
        own = run.tasks.get(name)
        if own is None:
            continue
        changes: dict[str, Any] = {}
        if task.trunk is None and own.trunk == name and name not in trunks:
            trunks[name], changes["trunk"] = run.trunks[name], name
        for key in ("class_weights", "temperature"):
            if getattr(task, key, "none") is None:
                changes[key] = getattr(own, key, None)
        tasks[name] = task.model_copy(update=changes)
    lora = {} if "lora" in experiment.model_fields_set else {"lora": run.lora}
    return {"recipe": "none", "refit": run.refit, "stages": run.stages, "trunks": trunks, "tasks": tasks, **lora}


def read_earlier(run: Path, experiment: Experiment | None, allowed: Collection[str]) -> Earlier:
    """What is left in the folder `run`; with `experiment`, which is to take the place of the run's own.

    Raises `ModelFileError` where the folder is no run or no checkpoint of it is whole, and `UsageError` where the experiment is
    another.
    """
    own = read_experiment(run)
    wanted = own if experiment is None else as_of_run(run, own, experiment)
    then, now = ({"configuration": configuration_of(one)} for one in (own, wanted))
    # without an experiment the run goes on with its own; with another one, it is that which has to be given again
    again = resume_command(run) if experiment is None else "the same command and"
    compare(then, now, allowed, str(run), again)
    checkpoint, damaged = Checkpoints(run / CHECKPOINTS).newest()
    if checkpoint is None:
        if damaged:
            told = "; ".join(damaged)
            raise ModelFileError(f"{told}; no other checkpoint is whole: remove {run / CHECKPOINTS} to start over")
        return Earlier(run, wanted, damaged, allowed, again=again)
    # before it is read as one of this release's: what does not fit then would be called damaged
    compare({"format": checkpoint.format}, {"format": FORMAT}, allowed, str(run), again)
    state, stage = run_state(checkpoint, len(wanted.stages))
    return Earlier(run, wanted, damaged, allowed, checkpoint.folder, checkpoint.format, again, state, stage)
