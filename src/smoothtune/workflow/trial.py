"""Probe against fine-tuning on held-out rows: both learn from some folds of the training rows and answer the others.

Knows nothing of run folders; the model of the run is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from smoothtune.config.experiment import Experiment
from smoothtune.config.stage import Stage
from smoothtune.config.tasks import shape_of
from smoothtune.evaluation import linear_probe
from smoothtune.evaluation.linear_probe import ProbeScore, ProbeTargets, folds_of
from smoothtune.evaluation.metrics import FUNCTIONS, Floats, Rows
from smoothtune.inference.answering import answer_examples, decide
from smoothtune.nn.building import build_model
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.weighting import TaskFacts
from smoothtune.training.loop import StepReport
from smoothtune.training.stage import StageRun
from smoothtune.workflow.probe_fit import ProbeRows, set_probes
from smoothtune.workflow.recipe_inputs import RecipeInputs

FEW_ROWS = 100
"""Fewer training rows are tried in three folds, more in two: half of few rows says little of all of them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A task's main metric and mean loss on held-out rows, of the probe and fine-tuned."""

    metric: str
    probe: float
    tuned: float
    probe_loss: float
    tuned_loss: float

    @property
    def gain(self) -> float:
        """How much better the metric is fine-tuned; 0 where it cannot be computed."""
        difference = self.tuned - self.probe
        return difference if np.isfinite(difference) else 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """The comparison by task, over all rows of `folds` folds, and whether fine-tuning is `better`."""

    tasks: dict[str, Comparison]
    folds: int
    better: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folds": self.folds, "better": self.better, "tasks": {k: asdict(v) for k, v in self.tasks.items()}}


class _Silence:
    """Scores of a stage that nobody judges."""

    main: Mapping[str, float] = {}
    loss = math.nan

    def value(self, metric: str) -> float:
        """The same for every state."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class _NoEvaluation:
    """In a fold the last state is the one that answers."""

    def __call__(self, model: MultiTaskModel) -> _Silence:
        return _Silence()

    def scores_of(self, state: Mapping[str, Any]) -> _Silence:
        """As above."""
        return _Silence()


def run_trial(
    inputs: RecipeInputs, experiment: Experiment, stage: Stage, listen: Callable[[int, int], None]
) -> Trial | None:
    """Fine-tune by `stage` in each fold, beginning with a probe of the same rows, and compare the answers to the others.

    None where a task has too few rows for folds. Cost: about as many steps as folds times those of the stage.
    """
    rows = {task: inputs.probe_rows(task, experiment) for task in experiment.tasks}
    count = 3 if min(len(part.examples) for part in rows.values()) < FEW_ROWS else 2
    about = {task: inputs.probe_targets(task, part) for task, part in rows.items()}
    folds = {task: folds_of(about[task], seed=experiment.seed, folds=count) for task in rows}
    if any(len(pairs) < count for pairs in folds.values()):
        return None
    answers = {task: (_space(about[task]), _space(about[task])) for task in rows}
    steps = round((stage.stop.max_steps or 0) * (count - 1) / count)  # as many passes as over all rows
    ends = {
        "max_steps": max(steps, 1),
        "max_epochs": stage.stop.max_epochs * count,
    }  # folds have fewer batches an epoch
    stop = stage.stop.model_copy(update={"keep": "last", "no_task_below_start": False, **ends})
    batch = stage.batch_size * inputs.processes
    last, total = stage.model_copy(update={"stop": stop, "batch_size": batch}), count * steps
    for number in range(count):
        split = {task: folds[task][number] for task in rows}
        before = number * steps
        fold = {task: rows[task].part(split[task][0]) for task in rows}
        held = {task: rows[task].part(split[task][1]) for task in rows}
        model = _model(inputs, experiment)
        set_probes(model, fold, dtype=inputs.dtype, seed=experiment.seed)
        _answer(model, held, split, answers, 0, inputs.dtype)
        run = StageRun(
            model=model,
            stage=last,
            examples={task: part.examples for task, part in fold.items()},
            facts={
                task: TaskFacts(len(part.examples), experiment.tasks[task].loss_weight) for task, part in fold.items()
            },
            evaluate=_NoEvaluation(),
            seed=experiment.seed,
            dtype=inputs.dtype,
            accelerator=inputs.accelerator,
            class_weights={
                task: torch.from_numpy(part.weights.astype(np.float32))
                for task, part in rows.items()
                if part.weights is not None
            },
        )
        for event in run.events():
            if isinstance(event, StepReport):
                listen(before + event.step, total)
        _answer(model, held, split, answers, 1, inputs.dtype)
    tasks = {task: _comparison(experiment, task, about[task], answers[task]) for task in rows}
    few = min(len(part.examples) for part in rows.values()) < linear_probe.FEW_ROWS
    return Trial(tasks, count, _better(tasks, few=few))


def _better(tasks: Mapping[str, Comparison], *, few: bool) -> bool:
    """Whether fine-tuning is better: by the metric, by the loss where that is equal, and by both where rows are `few`."""
    gain = float(np.mean([comparison.gain for comparison in tasks.values()]))
    lower = sum(part.tuned_loss - part.probe_loss for part in tasks.values()) < 0
    return (gain > 0 and lower) if few else (gain > 0 or (gain == 0 and lower))


def _model(inputs: RecipeInputs, experiment: Experiment) -> MultiTaskModel:
    shapes = {name: shape_of(task) for name, task in experiment.tasks.items()}
    model = build_model(deepcopy(inputs.encoder), shapes, experiment.trunks, inputs.labels, seed=experiment.seed)
    return model.to(inputs.device)


def _answer(
    model: MultiTaskModel,
    held: Mapping[str, ProbeRows],
    split: Mapping[str, tuple[Rows, Rows]],
    answers: Mapping[str, tuple[Rows, Rows]],
    which: int,
    dtype: torch.dtype,
) -> None:
    for task, part in held.items():
        logits = answer_examples(model, part.examples, dtype=dtype)
        answers[task][which][split[task][1]] = logits.reshape(len(logits), -1)


def _space(about: ProbeTargets) -> Floats:
    return np.zeros((len(about.targets), about.classes if about.kind == "classification" else 1))


def _comparison(experiment: Experiment, task: str, about: ProbeTargets, answers: tuple[Rows, Rows]) -> Comparison:
    kind, metric = experiment.tasks[task].kind, experiment.tasks[task].metric
    scores: list[ProbeScore] = [linear_probe.score(logits, about) for logits in answers]
    predictions = [decide(kind, logits if kind == "classification" else logits[:, 0]) for logits in answers]
    probe, tuned = (float(FUNCTIONS[metric](part, about.targets)) for part in predictions)
    return Comparison(metric, probe, tuned, scores[0].loss, scores[1].loss)
