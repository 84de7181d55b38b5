"""All splits of a task, read, checked, with labels as numbers; rows of a split are a choice of positions in a table.

Knows nothing of models; is given a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from smoothtune.config.experiment import Experiment
from smoothtune.config.tasks import AnyTask
from smoothtune.data.batching import Examples
from smoothtune.data.checks import RowSpec
from smoothtune.data.label_set import check_labels, fit_labels, rows_outside
from smoothtune.data.rows import RowTable, prepare_rows
from smoothtune.data.source import resolve_source
from smoothtune.data.tokenising import TokenColumn, tokenise
from smoothtune.data.values import label_text
from smoothtune.errors import DataError, Problem
from smoothtune.runtime.random import numpy_stream, stream_number
from smoothtune.types import Input

UNKNOWN_LABEL = "unknown label"
SAMPLED = "not in the sample (max_train_rows)"


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a task: `chosen` (M,) int32 are positions in `table`; `left_out` counts the others by reason."""

    table: RowTable
    chosen: np.ndarray
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.chosen)

    def texts(self) -> list[tuple[str, ...]]:
        """All texts of the split, in memory."""
        return self.table.texts(self.chosen)


@dataclass(frozen=True, slots=True)
class TaskData:
    """The splits of a task by name (`train`, `dev`, `test`) and its labels, None for regression."""

    name: str
    task: AnyTask
    splits: dict[str, Split]
    labels: tuple[str, ...] | None

    def targets(self, split: str) -> np.ndarray:
        """Labels of the chosen rows as numbers, (M,): int64 classes, float32 0/1 or label units."""
        part = self.splits[split]
        numbers: np.ndarray = label_numbers(part.table, self.task, self.labels)[part.chosen]
        return numbers


def read_tasks(experiment: Experiment, base: Path, cache: Path) -> dict[str, TaskData]:
    """Read, check and split the data of every task. Raises `DataError` with the problems of all files together."""
    problems: list[Problem] = []
    found: dict[str, TaskData] = {}
    for name, task in experiment.tasks.items():
        try:
            found[name] = _read_task(name, task, base, cache, experiment.seed)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError("The data cannot be used as the experiment says:", problems)
    return found


def read_split(name: str, task: AnyTask, text: str, base: Path, cache: Path, labels: tuple[str, ...] | None) -> Split:
    """The rows of one more source for a task whose labels are known. Raises `DataError` with all problems."""
    table = prepare_rows(_spec(task), resolve_source(text, base), cache=cache, name=name)
    if table.errors:
        raise DataError("The data cannot be used:", table.problems())
    return _split(table, task, labels)


def _read_task(name: str, task: AnyTask, base: Path, cache: Path, seed: int) -> TaskData:
    sources = {"train": task.train, "dev": task.dev, "test": task.test}
    problems: list[Problem] = []
    tables: dict[str, RowTable] = {}
    for split, text in sources.items():
        if not isinstance(text, str):
            continue
        try:
            source = resolve_source(text, base)
            tables[split] = prepare_rows(_spec(task), source, cache=cache, name=f"tasks.{name}.{split}")
        except DataError as error:
            problems += [Problem(f"tasks.{name}.{split}: {item.where}", item.what) for item in error.problems]
            continue
        if tables[split].errors:
            problems += tables[split].problems()
    if problems:
        raise DataError("", problems)
    labels = _labels(task, tables["train"])
    splits = _splits(tables, task, labels)
    if not isinstance(task.dev, str):
        splits["train"], splits["dev"] = _held_out(splits["train"], task.dev, seed)
    splits["train"] = _sample(splits["train"], task.max_train_rows, seed, name)
    empty = [split for split, part in splits.items() if not len(part)]
    if empty:
        raise DataError("", [Problem(f"tasks.{name}.{split}", _why_empty(task, splits[split])) for split in empty])
    return TaskData(name, task, {split: splits[split] for split in ("train", "dev", "test") if split in splits}, labels)


def _splits(tables: Mapping[str, RowTable], task: AnyTask, labels: tuple[str, ...] | None) -> dict[str, Split]:
    problems: list[Problem] = []
    splits: dict[str, Split] = {}
    for name, table in tables.items():
        try:
            splits[name] = _split(table, task, labels)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError("", problems)
    return splits


def _why_empty(task: AnyTask, split: Split) -> str:
    unknown = split.left_out.get(UNKNOWN_LABEL, 0)
    usable = len(split.table) - unknown
    if usable:
        return (
            f"has no rows left to use: `dev` holds out {task.dev} of {usable:,} rows; name a file, or another fraction"
        )
    return (
        f"has no rows left to use: all {unknown:,} have labels that the task does not know; mend the file or `labels`"
    )


def _spec(task: AnyTask) -> RowSpec:
    limits = task.range if task.kind == "regression" else None
    return RowSpec(task.text, task.label, task.kind, limits, task.on_bad_row)


def _labels(task: AnyTask, train: RowTable) -> tuple[str, ...] | None:
    if task.kind == "regression":
        return None
    return fit_labels(train) if task.labels is None else tuple(label_text(label) for label in task.labels)


def _split(table: RowTable, task: AnyTask, labels: tuple[str, ...] | None) -> Split:
    everything = np.arange(len(table), dtype=np.int32)
    outside = rows_outside(table, labels) if labels is not None else np.empty(0, dtype=np.int64)
    if not len(outside):
        return Split(table, everything, dict(table.left_out))
    if task.on_bad_row == "error":
        assert labels is not None
        raise DataError("The data cannot be used:", check_labels(table, labels))
    return Split(table, np.delete(everything, outside), {**table.left_out, UNKNOWN_LABEL: len(outside)})


def _held_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Train without, and dev of, about `fraction` of the texts; equal texts (pairs in either order) stay together.

    They do so across tasks too, so that no task trains on what another one that names the same file holds out.
    """
    keys = train.table.keys()[train.chosen] ^ np.uint64(stream_number(seed, "held out"))
    mixed = keys * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    dev = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53) < fraction
    return (
        Split(train.table, train.chosen[~dev], train.left_out),
        Split(train.table, train.chosen[dev], {}),
    )


def _sample(train: Split, most: int | None, seed: int, name: str) -> Split:
    if most is None or len(train) <= most:
        return train
    kept = numpy_stream(seed, "sample", name).choice(len(train), size=most, replace=False)
    left_out = {**train.left_out, SAMPLED: len(train) - most}
    return Split(train.table, train.chosen[np.sort(kept)], left_out)


def label_numbers(table: RowTable, task: AnyTask, labels: tuple[str, ...] | None) -> np.ndarray:
    """Labels of all rows of a table as numbers, (N,); rows whose label is not in `labels` get -1."""
    column = table.labels()
    if labels is None:
        return np.asarray(pc.cast(column, pa.float32()).to_numpy())
    numbers = pc.fill_null(pc.index_in(column, value_set=pa.array(labels, pa.string())), -1).to_numpy()
    return np.asarray(numbers, dtype=np.float32 if task.kind == "binary" else np.int64)


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
    )


def token_columns(
    split: Split, tokenizer: Tokenizer, *, reads: Input, max_length: int, cache: Path
) -> list[TokenColumn]:
    """The token columns of a split's table, from the cache when they are there."""
    return tokenise(split.table, tokenizer, reads=reads, max_length=max_length, cache=cache)


def train_tables(tasks: Mapping[str, TaskData]) -> dict[str, RowTable]:
    """The training table of every task that trains on all of a file."""
    return {name: data.splits["train"].table for name, data in tasks.items()}
