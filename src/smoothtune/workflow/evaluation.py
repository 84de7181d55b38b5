"""The evaluation of a run: scores, each class, confusion, and what baselines reach on the same rows. Reads no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from smoothtune.evaluation.comparison import Comparison, paired_difference
from smoothtune.evaluation.intervals import Estimate
from smoothtune.evaluation.largest_class import LARGEST_CLASS, constant_answers
from smoothtune.evaluation.per_class import class_scores, confusion
from smoothtune.evaluation.scores import Scores, TaskAnswers, score_tasks

Labels = Mapping[str, tuple[str, ...] | None]
Baselines = Mapping[str, Mapping[str, TaskAnswers]]
"""Answers to the same rows by baseline and task; a baseline may leave tasks out."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a run beside those of baselines, by name; with words alone, its scores and the difference run - words.

    `answers` are those of the run, by task, to be compared with another run's (`evaluation.comparison`), `labels` the
    names of the class numbers in them. `notes` are sentences on what makes a score doubtful (data that are not those of
    training, rows that were trained on, metrics without a value) or slow to come by.
    """

    scores: Scores
    answers: Mapping[str, TaskAnswers] = field(repr=False)
    labels: Labels = field(repr=False)
    baselines: Baselines = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    words_alone: Scores | None = None
    difference: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        table = self.scores.to_json()
        for name, task in self.answers.items():
            table["tasks"][name] |= _classes(task, self.labels[name])
        table["main"] = {name: task.metric for name, task in self.answers.items()}
        table["baselines"] = {name: self._baseline(answers) for name, answers in self.baselines.items()}
        if self.words_alone is not None and self.difference is not None:
            table["words_alone"] = self.words_alone.to_json()
            table["difference"] = {
                "tasks": {name: _limits(value) for name, value in self.difference.tasks.items()},
                "mean": _limits(self.difference.mean),
            }
        return table

    def _baseline(self, answers: Mapping[str, TaskAnswers]) -> dict[str, Any]:
        """Its scores, the means only over all tasks, and by task the one label that it answers every row with."""
        table = score_tasks(answers).to_json()
        if answers.keys() != self.answers.keys():
            table |= {"score": None, "plain_mean": None}
        return table | {"labels": {name: self._only_label(name, task) for name, task in answers.items()}}

    def _only_label(self, name: str, task: TaskAnswers) -> str | None:
        labels = self.labels[name]
        if labels is None or not len(task) or (task.predictions != task.predictions[0]).any():
            return None
        return labels[int(task.predictions[0])]


def evaluation_of(
    answers: Mapping[str, TaskAnswers],
    labels: Labels,
    *,
    largest: Mapping[str, str],
    baselines: Baselines | None = None,
    words_alone: Mapping[str, TaskAnswers] | None = None,
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> Evaluation:
    """The evaluation of a run's `answers`, with a baseline that gives each task its `largest` training class.

    More `baselines` stand beside it. `words_alone` are that baseline's answers, whose resamples `seed` draws.
    """
    constant = {
        name: constant_answers(task, _number(labels[name], largest[name]))
        for name, task in answers.items()
        if name in largest
    }
    beside = {LARGEST_CLASS: constant} if constant else {}
    return Evaluation(
        scores=score_tasks(answers),
        answers=answers,
        labels=labels,
        baselines={**beside, **(baselines if baselines is not None else {})},
        notes=notes,
        words_alone=None if words_alone is None else score_tasks(words_alone),
        difference=None if words_alone is None else paired_difference(answers, words_alone, seed=seed),
    )


def _number(labels: tuple[str, ...] | None, label: str) -> int:
    assert labels is not None
    return labels.index(label)


def _classes(task: TaskAnswers, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Scores by label and the occupied cells of the confusion matrix; nothing for a regression."""
    if labels is None:
        return {}
    scores = class_scores(task.predictions, task.targets, len(labels))
    cells = confusion(task.predictions, task.targets, len(labels))
    return {
        "per_class": {
            label: {
                "rows": of_class.rows,
                **{name: _estimate(getattr(of_class, name)) for name in ("precision", "recall", "f1")},
            }
            for label, of_class in zip(labels, scores, strict=True)
        },
        "confusion": [
            {"label": labels[target], "prediction": labels[prediction], "rows": int(rows)}
            for target, prediction, rows in zip(cells.targets, cells.predictions, cells.rows, strict=True)
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, float | int | None]:
    return {**_limits(estimate), "n": estimate.n}


def _limits(estimate: Estimate) -> dict[str, float | None]:
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if isnan(number) else number for name, number in numbers.items()}
