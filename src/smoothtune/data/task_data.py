"""All splits of a task, read, checked, with labels as numbers; rows of a split are a choice of positions in a table.

Knows nothing of models; is given a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from smoothtune.config.class_weights import unknown_labels
from smoothtune.config.experiment import Experiment
from smoothtune.config.tasks import AnyTask
from smoothtune.data.batching import Examples
from smoothtune.data.checks import RowSpec
from smoothtune.data.columns import blocks, counting, filled, gathered
from smoothtune.data.hold_out import HoldOut
from smoothtune.data.label_set import check_labels, fit_labels, inside_labels, known_keys
from smoothtune.data.rows import RowTable, prepare_rows
from smoothtune.data.source import resolve_source
from smoothtune.data.tokenising import TokenColumn, tokenise
from smoothtune.data.values import label_text
from smoothtune.errors import DataError, Problem
from smoothtune.runtime.random import numpy_stream
from smoothtune.types import Input

SPLITS = ("train", "dev", "test")
UNKNOWN_LABEL = "unknown label"
SAMPLED = "not in the sample (max_train_rows)"
_HELD_OUT_LABEL = "; `dev` holds out all rows of this label: list all labels in `labels`, or name a dev file"


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a task: `chosen` (M,) int32, ascending, are positions in `table`; `left_out` counts the others by reason."""

    table: RowTable
    chosen: np.ndarray
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.chosen)

    def texts(self) -> list[tuple[str, ...]]:
        """All texts of the split, in memory."""
        return self.table.texts(self.chosen)

    def keeping(self, wanted: Callable[[np.ndarray], np.ndarray], left_out: dict[str, int]) -> Split:
        """The rows (n,) for which `wanted` says so, (n,) bool; it is asked about some at a time."""
        parts = (self.chosen[part] for part in blocks(len(self)))
        return Split(self.table, filled(len(self), np.int32, (rows[wanted(rows)] for rows in parts)), left_out)


@dataclass(frozen=True, slots=True)
class TaskData:
    """The splits of a task by name (`train`, `dev`, `test`) and its labels, None for regression.

    `trainable` is the training part that `max_train_rows` samples from, None where the training file was not read.
    """

    name: str
    task: AnyTask
    splits: dict[str, Split]
    labels: tuple[str, ...] | None
    trainable: Split | None = None

    def targets(self, split: str) -> np.ndarray:
        """Labels of the chosen rows as numbers, (M,): int64 classes, float32 0/1 or label units."""
        part = self.splits[split]
        return gathered(label_numbers(part.table, self.task, self.labels), part.chosen)

    def counts(self, part: Split) -> np.ndarray:
        """The rows of `part` by class, (C,). Raises `ValueError` for a regression."""
        if self.labels is None:
            raise ValueError(f"task {self.name} has no classes")
        numbers, counts = label_numbers(part.table, self.task, self.labels), np.zeros(len(self.labels), dtype=np.int64)
        for rows in blocks(len(part)):
            counts += np.bincount(numbers[part.chosen[rows]].astype(np.int64), minlength=len(counts))
        return counts


def with_dev_rows(data: TaskData) -> TaskData:
    """The task with a training part that has its dev rows too, which were held out of the same file."""
    train, dev = data.splits["train"], data.splits["dev"]
    chosen = np.union1d(train.chosen, dev.chosen).astype(np.int32)
    return replace(data, splits={**data.splits, "train": Split(train.table, chosen, train.left_out)})


def read_tasks(
    experiment: Experiment,
    base: Path,
    cache: Path,
    *,
    labels: Mapping[str, tuple[str, ...] | None] | None = None,
    wanted: Collection[str] = SPLITS,
) -> dict[str, TaskData]:
    """Read, check and split the data of every task; with `labels` (by task) nothing is fitted.

    Only the `wanted` splits are there in the end. The training file is read if it is wanted, if labels are fitted, or if
    a wanted dev part is held out of it. Raises `DataError` with the problems of all files together.
    """
    problems: list[Problem] = []
    found: dict[str, TaskData] = {}
    hold_out = HoldOut(experiment.hold_out, experiment.seed)
    names = experiment.class_labels == "names"
    reading = _Reading(base, cache, experiment.seed, frozenset(wanted), hold_out, names)
    for name, task in experiment.tasks.items():
        known = _fixed_labels(task) if labels is None else labels[name]
        fit = labels is None and known is None and task.kind != "regression"
        try:
            found[name] = reading.task(name, task, known, fit=fit, learn=labels is None)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError("The data cannot be used as the experiment says:", problems)
    return found


def read_split(
    name: str,
    task: AnyTask,
    text: str,
    base: Path,
    cache: Path,
    labels: tuple[str, ...] | None,
    *,
    class_names: bool = True,
) -> Split:
    """The rows of one more source for a task whose labels are known. Raises `DataError` with all problems."""
    table = prepare_rows(_spec(task, class_names=class_names), resolve_source(text, base), cache=cache, name=name)
    if table.errors:
        raise DataError("The data cannot be used:", table.problems())
    return _with_known_labels(_whole(table), task, labels)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How all tasks are read."""

    base: Path
    cache: Path
    seed: int
    wanted: frozenset[str]
    hold_out: HoldOut
    class_names: bool

    def task(self, name: str, task: AnyTask, labels: tuple[str, ...] | None, *, fit: bool, learn: bool) -> TaskData:
        """One task; `fit`: its labels are those of the training rows, from which a model is to `learn`.

        Raises `DataError` with all problems.
        """
        parts, problems = self._parts(name, task, fit=fit)
        if fit and "train" in parts:
            try:
                labels = fit_labels(parts["train"].table, parts["train"].chosen)
            except DataError as error:
                problems += error.problems
        if learn and "train" in parts and task.kind == "regression":
            problems += _constant_problems(parts["train"])
        if labels is not None:
            problems += _weight_problems(name, task, labels)
        splits: dict[str, Split] = {}
        for split, part in parts.items():
            try:
                splits[split] = _with_known_labels(part, task, labels)
            except DataError as error:
                advice = _HELD_OUT_LABEL if fit and not isinstance(getattr(task, split), str) else ""
                problems += [Problem(item.where, item.what + advice) for item in error.problems]
        problems += [Problem(f"tasks.{name}.{split}", _all_unknown(part)) for split, part in splits.items() if not part]
        if problems:
            raise DataError("", problems)
        trainable = splits.get("train")
        if trainable is not None:
            splits["train"] = _sample(trainable, task.max_train_rows, self.seed, name)
        return TaskData(
            name, task, {split: splits[split] for split in splits if split in self.wanted}, labels, trainable
        )

    def _parts(self, name: str, task: AnyTask, *, fit: bool) -> tuple[dict[str, Split], list[Problem]]:
        """The splits that are needed, before any row is left out for its label, and the problems met on the way."""
        problems: list[Problem] = []
        parts: dict[str, Split] = {}
        for split in self._needed(task, fit=fit):
            where = f"tasks.{name}.{split}"
            try:
                source = resolve_source(getattr(task, split), self.base)
                table = prepare_rows(_spec(task, class_names=self.class_names), source, cache=self.cache, name=where)
            except DataError as error:
                problems += [Problem(f"{where}: {item.where}", item.what) for item in error.problems]
                continue
            if table.errors:
                problems += table.problems()
            if not any(finding.fatal for finding in table.findings):
                parts[split] = _whole(table)
        if "train" in parts and not isinstance(task.dev, str):
            parts |= _divided(parts["train"], self.hold_out.dev_rows(parts["train"].table, task.dev))
            empty = [split for split in ("train", "dev") if not parts[split]]
            if not parts["train"].table.errors:
                what = f"holds out {task.dev} of {len(parts['train'].table):,} rows; name a file, or another fraction"
                problems += [Problem(f"tasks.{name}.{at}", f"has no rows left to use: `dev` {what}") for at in empty]
            parts = {split: parts[split] for split in SPLITS if split in parts and split not in empty}
        return parts, problems

    def _needed(self, task: AnyTask, *, fit: bool) -> list[str]:
        held_out = "dev" in self.wanted and not isinstance(task.dev, str)
        wanted = self.wanted | ({"train"} if fit or held_out else set())
        return [split for split in SPLITS if split in wanted and isinstance(getattr(task, split), str)]


def _all_unknown(part: Split) -> str:
    unknown = part.left_out.get(UNKNOWN_LABEL, 0)
    return (
        f"has no rows left to use: all {unknown:,} have labels that the task does not know; mend the file or `labels`"
    )


def _spec(task: AnyTask, *, class_names: bool) -> RowSpec:
    limits = task.range if task.kind == "regression" else None
    return RowSpec(task.text, task.label, task.kind, limits, task.on_bad_row, class_names)


def _fixed_labels(task: AnyTask) -> tuple[str, ...] | None:
    if task.kind == "regression" or task.labels is None:
        return None
    return tuple(label_text(label) for label in task.labels)


def _weight_problems(name: str, task: AnyTask, labels: tuple[str, ...]) -> list[Problem]:
    """Weights of classes that the task does not have."""
    if task.kind == "regression" or not isinstance(task.class_weights, Mapping):
        return []
    return unknown_labels(name, {label_text(label): weight for label, weight in task.class_weights.items()}, labels)


def _whole(table: RowTable) -> Split:
    return Split(table, counting(len(table)), dict(table.left_out))


def _with_known_labels(part: Split, task: AnyTask, labels: tuple[str, ...] | None) -> Split:
    if labels is None:
        return part
    if task.on_bad_row == "error":
        problems = check_labels(part.table, labels, part.chosen)
        if problems:
            raise DataError("The data cannot be used:", problems)
        return part
    kept = part.keeping(inside_labels(part.table, labels), part.left_out)
    unknown = {UNKNOWN_LABEL: len(part) - len(kept)} if len(kept) < len(part) else {}
    return replace(kept, left_out={**part.left_out, **unknown})


def _divided(train: Split, in_dev: np.ndarray) -> dict[str, Split]:
    """Train and dev of all rows of a training table; `in_dev` (N,) bool are held out."""
    return {
        "train": train.keeping(lambda rows: ~in_dev[rows], train.left_out),
        "dev": train.keeping(lambda rows: in_dev[rows], {}),
    }


def _sample(train: Split, most: int | None, seed: int, name: str) -> Split:
    if most is None or len(train) <= most:
        return train
    kept = numpy_stream(seed, "sample", name).choice(len(train), size=most, replace=False)
    left_out = {**train.left_out, SAMPLED: len(train) - most}
    return Split(train.table, train.chosen[np.sort(kept)], left_out)


def _constant_problems(train: Split) -> list[Problem]:
    """A regression of which all training rows, two or more, have one number: there is nothing to learn."""
    numbers = train.table.measurements(np.float32)
    first = numbers[train.chosen[0]] if len(train) else 0.0
    if len(train) < 2 or any((numbers[train.chosen[rows]] != first).any() for rows in blocks(len(train))):
        return []
    what = f"has only the number {first:g} in all {len(train):,} training rows; a regression task needs two or more"
    return [Problem(train.table.source.shown, f"column {train.table.spec.label!r} {what}")]


def label_numbers(table: RowTable, task: AnyTask, labels: tuple[str, ...] | None) -> np.ndarray:
    """Labels of all rows of a table as numbers, (N,); rows whose label is not in `labels` get -1."""
    if labels is None:
        return table.measurements(np.float32)
    keys, (known, numbers) = table.label_keys(), known_keys(table, labels)
    dtype = np.float32 if task.kind == "binary" else np.int64
    return filled(len(table), dtype, (_positions(keys[part], known, numbers) for part in blocks(len(table))))


def _positions(keys: np.ndarray, known: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The one of `numbers` (K,) for each of `keys` (n,) by the ascending `known` (K,), -1 where it is not among them."""
    at = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return np.where(known[at] == keys, numbers[at], -1)


def make_examples(
    data: TaskData, split: Split, tokenizer: Tokenizer, *, reads: Input, max_length: int, pad_id: int, cache: Path
) -> Examples:
    """The tokenised examples of a split, memory-mapped."""
    columns = token_columns(split, tokenizer, reads=reads, max_length=max_length, cache=cache)
    return Examples(
        task=data.name,
        reads=reads,
        columns=columns,
        labels=label_numbers(split.table, data.task, data.labels),
        lines=split.table.lines(),
        chosen=split.chosen,
        pad_id=pad_id,
        limit=max_length,
        shown=split.table.source.shown,
    )


def token_columns(
    split: Split, tokenizer: Tokenizer, *, reads: Input, max_length: int, cache: Path
) -> list[TokenColumn]:
    """The token columns of a split's table, from the cache when they are there."""
    return tokenise(split.table, tokenizer, reads=reads, max_length=max_length, cache=cache)
