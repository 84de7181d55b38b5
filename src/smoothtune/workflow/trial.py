"""Probe against fine-tuning on held-out rows: both learn from some folds of the training rows and answer the others.

Knows nothing of run folders; the model of the run is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from smoothtune.config.experiment import Experiment
from smoothtune.config.stage import Stage
from smoothtune.evaluation import linear_probe
from smoothtune.evaluation.linear_probe import ProbeTargets, folds_of
from smoothtune.evaluation.metrics import FUNCTIONS, Floats, Rows
from smoothtune.evaluation.temperature import fit_temperature
from smoothtune.inference.answering import decide
from smoothtune.workflow.probe_fit import ProbeRows
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.trial_fold import Fold, run_fold

FEW_ROWS = 100
"""Fewer training rows are tried in three folds, more in two: half of few rows says little of all of them."""
MOST_ROWS = 2000
"""The rows of a task that a trial takes at most."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A task's main metric and mean loss on held-out rows, of the probe and fine-tuned.

    `temperature` is what the fine-tuned logits are best divided by; 1 for a regression. Whether fine-tuning is `better`, which
    has to gain more than `least_gain`: the probe can be fitted on the dev rows too, fine-tuning does not learn from them.
    """

    metric: str
    probe: float
    tuned: float
    probe_loss: float
    tuned_loss: float
    temperature: float = 1.0
    least_gain: float = 0.0
    better: bool = False

    @property
    def gain(self) -> float:
        """How much better the metric is fine-tuned; 0 where it cannot be computed."""
        difference = self.tuned - self.probe
        return difference if np.isfinite(difference) else 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """The comparison by task, over all rows of `folds` folds, and whether fine-tuning all of them together is `better`."""

    tasks: dict[str, Comparison]
    folds: int
    better: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folds": self.folds, "better": self.better, "tasks": {k: asdict(v) for k, v in self.tasks.items()}}


def run_trial(
    inputs: RecipeInputs,
    experiment: Experiment,
    stage_of: Callable[[Mapping[str, int]], Stage],
    tasks: tuple[str, ...],
    listen: Callable[[int, int], None],
) -> Trial | None:
    """Fine-tune `tasks` in each fold, beginning with a probe of the same rows, and compare the answers to the others.

    `stage_of` gives the stage for so many rows by task. Tasks with too few rows for folds are left out; None where none is
    left. Cost: about as many steps as folds times those of the stage.
    """
    rows = {task: inputs.probe_rows(task, experiment).sample(MOST_ROWS, experiment.seed) for task in tasks}
    folds = 3 if min(len(part.examples) for part in rows.values()) < FEW_ROWS else 2
    targets = {task: inputs.probe_targets(task, part) for task, part in rows.items()}
    splits = {task: folds_of(targets[task], seed=experiment.seed, folds=folds) for task in rows}
    rows = {task: part for task, part in rows.items() if len(splits[task]) >= folds}
    if not rows:
        return None
    stage = _stage_of_fold(stage_of({task: len(part.examples) for task, part in rows.items()}), folds, inputs.processes)
    answers = {task: (_space(targets[task]), _space(targets[task])) for task in rows}
    steps = stage.stop.max_steps or 0
    for number in range(folds):
        split = {task: splits[task][number] for task in rows}
        fold = Fold({task: rows[task].part(split[task][0]) for task in rows}, _held_out(rows, split))
        before, after = run_fold(
            inputs, experiment, stage, fold, partial(_listen_after, listen, number * steps, folds * steps)
        )
        for task in rows:
            answers[task][0][split[task][1]], answers[task][1][split[task][1]] = before[task], after[task]
    compared = {task: _comparison(experiment, task, targets[task], answers[task]) for task in rows}
    compared = {task: _judged(inputs, task, part, len(rows[task].examples)) for task, part in compared.items()}
    fewest = min(len(part.examples) for part in rows.values())
    return Trial(compared, folds, _better(compared, fewest))


def _listen_after(listen: Callable[[int, int], None], done: int, total: int, step: int) -> None:
    listen(done + step, total)


def _held_out(rows: Mapping[str, ProbeRows], split: Mapping[str, tuple[Rows, Rows]]) -> dict[str, ProbeRows]:
    return {task: part.part(split[task][1]) for task, part in rows.items()}


def _stage_of_fold(stage: Stage, folds: int, processes: int) -> Stage:
    """The stage with as many passes over the rows of a fold as it has over all rows; one process does the batch of all."""
    steps = max(round((stage.stop.max_steps or 0) * (folds - 1) / folds), 1)
    epochs = stage.stop.max_epochs * folds  # folds have fewer batches an epoch
    whole = {"keep": "last", "no_task_below_start": False, "per_task": False}
    stop = stage.stop.model_copy(update={**whole, "max_steps": steps, "max_epochs": epochs})
    return stage.model_copy(update={"stop": stop, "batch_size": stage.batch_size * processes})


def _judged(inputs: RecipeInputs, task: str, compared: Comparison, rows: int) -> Comparison:
    """The comparison of a task with its verdict."""
    compared = replace(compared, least_gain=inputs.dev_excess(task))
    return replace(compared, better=_better({task: compared}, rows))


def _better(tasks: Mapping[str, Comparison], rows: int) -> bool:
    """Whether fine-tuning is better: by the metric, by the loss where that is equal, and by both where `rows` are few.

    A gain counts as far as it exceeds the least one, in the mean over the tasks.
    """
    gain = float(np.mean([comparison.gain - comparison.least_gain for comparison in tasks.values()]))
    lower = sum(part.tuned_loss - part.probe_loss for part in tasks.values()) < 0
    return (gain > 0 and lower) if rows < linear_probe.FEW_ROWS else (gain > 0 or (gain == 0 and lower))


def _space(targets: ProbeTargets) -> Floats:
    return np.zeros((len(targets.targets), targets.classes if targets.kind == "classification" else 1))


def _comparison(experiment: Experiment, task: str, rows: ProbeTargets, answers: tuple[Rows, Rows]) -> Comparison:
    kind, metric = experiment.tasks[task].kind, experiment.tasks[task].metric
    logits = [part if kind == "classification" else part[:, 0] for part in answers]
    losses = [linear_probe.score(part, rows).loss for part in answers]
    probe, tuned = (float(FUNCTIONS[metric](decide(kind, part), rows.targets)) for part in logits)
    temperature = 1.0 if kind == "regression" else fit_temperature(logits[1], rows.targets)
    return Comparison(metric, probe, tuned, losses[0], losses[1], temperature)
