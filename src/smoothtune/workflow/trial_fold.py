"""One fold of a trial: a fresh model becomes a probe of some rows, then is fine-tuned on them; both answer the other rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smoothtune.config.experiment import Experiment
from smoothtune.config.stage import Stage
from smoothtune.config.tasks import shape_of
from smoothtune.evaluation.metrics import Rows
from smoothtune.inference.answering import answer_examples
from smoothtune.nn.building import build_model
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.weighting import TaskFacts
from smoothtune.training.loop import StepReport
from smoothtune.training.stage import StageRun
from smoothtune.workflow.probe_fit import ProbeRows, set_probes
from smoothtune.workflow.recipe_inputs import RecipeInputs


@dataclass(frozen=True, slots=True)
class Fold:
    """The rows of each task to `learn` from, and those `held` out."""

    learn: Mapping[str, ProbeRows]
    held: Mapping[str, ProbeRows]


class _Silence:
    """Scores of a stage that nobody judges."""

    main: Mapping[str, float] = {}
    scoreless: tuple[str, ...] = ()
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


def run_fold(
    inputs: RecipeInputs, experiment: Experiment, stage: Stage, fold: Fold, listen: Callable[[int], None]
) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """The answers (n, C), or (n, 1), to the held-out rows by task: of the probe, and of the model after `stage`."""
    model = _model(inputs, experiment, stage, tuple(fold.learn))
    set_probes(model, fold.learn, dtype=inputs.dtype, seed=experiment.seed)
    before = _answers(model, fold.held, inputs.dtype)
    for event in _stage_run(inputs, experiment, stage, fold, model).events():
        if isinstance(event, StepReport):
            listen(event.step)
    return before, _answers(model, fold.held, inputs.dtype)


def _model(inputs: RecipeInputs, experiment: Experiment, stage: Stage, tasks: tuple[str, ...]) -> MultiTaskModel:
    shapes = {name: shape_of(experiment.tasks[name]) for name in tasks}
    lora = dict.fromkeys(tasks, experiment.lora) if "lora" in stage.train else {}
    encoder = deepcopy(inputs.encoder)
    model = build_model(encoder, shapes, experiment.trunks, inputs.labels, seed=experiment.seed, lora=lora)
    return model.to(inputs.device)


def _stage_run(
    inputs: RecipeInputs, experiment: Experiment, stage: Stage, fold: Fold, model: MultiTaskModel
) -> StageRun:
    tasks = experiment.tasks
    weights = {task: part.weights for task, part in fold.learn.items() if part.weights is not None}
    return StageRun(
        model=model,
        stage=stage.model_copy(update={"tasks": tuple(fold.learn)}),
        examples={task: part.examples for task, part in fold.learn.items()},
        facts={task: TaskFacts(len(part.examples), tasks[task].loss_weight) for task, part in fold.learn.items()},
        evaluate=_NoEvaluation(),
        seed=experiment.seed,
        dtype=inputs.dtype,
        accelerator=inputs.accelerator,
        class_weights={task: torch.from_numpy(part.astype(np.float32)) for task, part in weights.items()},
    )


def _answers(model: MultiTaskModel, held: Mapping[str, ProbeRows], dtype: torch.dtype) -> dict[str, Rows]:
    answers = {task: answer_examples(model, part.examples, dtype=dtype) for task, part in held.items()}
    return {task: logits.reshape(len(logits), -1) for task, logits in answers.items()}
