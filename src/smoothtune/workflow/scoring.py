"""Turns a model and examples into answers that evaluation understands: the one bridge between the two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from smoothtune.config.tasks import AnyTask
from smoothtune.data.batching import Examples
from smoothtune.evaluation.metrics import METRICS, why_undefined
from smoothtune.evaluation.scores import PointScores, TaskAnswers, point_scores
from smoothtune.inference.answering import answer_examples, decide
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.losses import example_losses
from smoothtune.runtime.random import numpy_stream

TRAIN_SAMPLE = 2000


def answers_of(
    model: MultiTaskModel, examples: Mapping[str, Examples], tasks: Mapping[str, AnyTask], *, dtype: torch.dtype
) -> dict[str, TaskAnswers]:
    """The model's answers to labelled examples, by task."""
    return answers_from(logits_of(model, examples, dtype=dtype), examples, tasks)


def logits_of(model: MultiTaskModel, examples: Mapping[str, Examples], *, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The model's logits for examples, (n, C) or (n,), by task."""
    return {name: answer_examples(model, part, dtype=dtype) for name, part in examples.items()}


def answers_from(
    logits: Mapping[str, np.ndarray], examples: Mapping[str, Examples], tasks: Mapping[str, AnyTask]
) -> dict[str, TaskAnswers]:
    """The answers that logits stand for, beside the labels of the examples, by task."""
    answers: dict[str, TaskAnswers] = {}
    for name, part in examples.items():
        assert part.labels is not None
        task = tasks[name]
        answers[name] = TaskAnswers(task.kind, task.metric, decide(task.kind, logits[name]), part.labels[part.chosen])
    return answers


@dataclass(frozen=True, slots=True)
class EpochScores:
    """Scores of one epoch on dev and on a fixed sample of the training rows; why scores on dev are `nan`, by `TASK.METRIC`.

    `loss` is the mean over tasks of their mean losses on dev (of a regression over its squared span), `nan` where nobody asked.
    """

    dev: PointScores
    train: PointScores
    undefined: dict[str, str]
    loss: float = math.nan

    @property
    def score(self) -> float:
        """Mean over the tasks on dev, correlations as (r + 1) / 2."""
        return self.dev.score

    @property
    def plain_mean(self) -> float:
        """Plain mean over the tasks on dev."""
        return self.dev.plain_mean

    @property
    def scoreless(self) -> tuple[str, ...]:
        """The tasks on whose dev rows no model has a score."""
        return tuple(self.dev.scoreless)

    @property
    def main(self) -> Mapping[str, float]:
        """Main metric by task on dev."""
        return self.dev.main

    def value(self, metric: str) -> float:
        """The value of a stage's `stop.metric` on dev: `score`, `plain_mean`, `TASK` or `TASK.METRIC`."""
        if metric in ("score", "plain_mean"):
            return self.score if metric == "score" else self.plain_mean
        task, _, name = metric.partition(".")
        return self.dev.tasks[task][name] if name else self.dev.main[task]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def undefined(answers: Mapping[str, TaskAnswers]) -> dict[str, str]:
    """Why metrics of the answers are `nan`, as a clause by `TASK.METRIC`."""
    found = {
        f"{name}.{metric}": why_undefined(metric, task.predictions, task.targets)
        for name, task in answers.items()
        for metric in METRICS[task.kind]
    }
    return {name: why for name, why in found.items() if why is not None}


class EpochEvaluation:
    """Scores a model on the dev examples and on a fixed, seeded sample of at most 2,000 training rows per task."""

    def __init__(
        self,
        dev: Mapping[str, Examples],
        train: Mapping[str, Examples],
        tasks: Mapping[str, AnyTask],
        *,
        seed: int,
        dtype: torch.dtype,
        with_loss: bool = False,
    ) -> None:
        self._with_loss = with_loss
        self._dev = dev
        self._train = {name: sample(part, TRAIN_SAMPLE, seed) for name, part in train.items()}
        self._tasks = tasks
        self._dtype = dtype

    def __call__(self, model: MultiTaskModel) -> EpochScores:
        """The scores now."""
        logits = logits_of(model, self._dev, dtype=self._dtype)
        dev = answers_from(logits, self._dev, self._tasks)
        train = answers_of(model, self._train, self._tasks, dtype=self._dtype)
        loss = self._mean_loss(model, logits) if self._with_loss else math.nan
        return EpochScores(point_scores(dev), point_scores(train), undefined(dev), loss)

    def _mean_loss(self, model: MultiTaskModel, logits: Mapping[str, np.ndarray]) -> float:
        losses = []
        for name, part in self._dev.items():
            assert part.labels is not None
            node, labels = model.tasks[name], torch.from_numpy(part.labels[part.chosen])
            mean = example_losses(node.kind, torch.from_numpy(logits[name]), labels).mean().item()
            losses.append(mean / node.span**2)
        return float(np.mean(losses))

    def scores_of(self, state: Mapping[str, Any]) -> EpochScores:
        """Scores again from their `state_dict`."""
        parts = PointScores(**state["dev"]), PointScores(**state["train"])
        return EpochScores(*parts, state["undefined"], state.get("loss", math.nan))


def sample(examples: Examples, most: int, seed: int) -> Examples:
    """At most `most` of the examples, the same for the same seed."""
    if len(examples) <= most:
        return examples
    kept = numpy_stream(seed, "probe", examples.task).choice(len(examples), size=most, replace=False)
    return replace(examples, chosen=examples.chosen[np.sort(kept)])
