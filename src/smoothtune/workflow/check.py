"""Reads all data of an experiment and reports what a careful person would want to know before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tokenizers import Tokenizer

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.config.loading import load
from smoothtune.data.findings import Leaks, Matches, conflicts, duplicates, leaks
from smoothtune.data.task_data import Split, TaskData, read_tasks, token_columns, train_tables
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.nn.pretrained import find_checkpoint
from smoothtune.workflow.cache import cache_folder


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths before cutting, special tokens included, and the share of texts longer than `max_length`."""

    median: float
    p95: float
    longest: int
    cut: float


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What was found in one split.

    `balance` counts rows by label, or gives min, mean, max of a regression. `duplicates` and `conflicts` are those of the
    whole file. `leaks` is None for training data and for a split held out of it.
    """

    source: str
    rows: int
    left_out: dict[str, int]
    balance: dict[str, float]
    lengths: Lengths
    duplicates: Matches
    conflicts: Matches
    leaks: Leaks | None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Reports by task and split."""

    tasks: dict[str, dict[str, SplitReport]]

    @property
    def leaking(self) -> int:
        """Dev and test rows that stand whole in training data, over all tasks."""
        found = [split.leaks for splits in self.tasks.values() for split in splits.values() if split.leaks is not None]
        return sum(leak.whole.count for leak in found)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)


def check_data(experiment: Experiment, base: Path, tokenizer: Tokenizer, cache: Path) -> CheckReport:
    """Read and check everything. Raises `DataError` with all problems when the data cannot be used."""
    return report_on(experiment, read_tasks(experiment, base, cache), tokenizer, cache)


def report_on(experiment: Experiment, tasks: Mapping[str, TaskData], tokenizer: Tokenizer, cache: Path) -> CheckReport:
    """The report on data already read."""
    return CheckReport(
        {
            name: {split: _report(experiment, tasks, name, split, tokenizer, cache) for split in data.splits}
            for name, data in tasks.items()
        }
    )


def _report(
    experiment: Experiment, tasks: Mapping[str, TaskData], name: str, split: str, tokenizer: Tokenizer, cache: Path
) -> SplitReport:
    data = tasks[name]
    part = data.splits[split]
    held_out = split != "train" and part.table.source == data.splits["train"].table.source
    return SplitReport(
        source=part.table.source.shown,
        rows=len(part),
        left_out=part.left_out,
        balance=_balance(data, part),
        lengths=_lengths(experiment, data, part, tokenizer, cache),
        duplicates=duplicates(part.table),
        conflicts=conflicts(part.table),
        leaks=None if split == "train" or held_out else leaks(part.table, train_tables(tasks)),
    )


def _balance(data: TaskData, part: Split) -> dict[str, float]:
    labels = part.table.labels()
    if data.labels is None:
        numbers = np.asarray(pc.cast(labels, "float64").to_numpy())[part.chosen]
        return {"min": float(numbers.min()), "mean": float(numbers.mean()), "max": float(numbers.max())}
    counts = {item["values"].as_py(): item["counts"].as_py() for item in pc.value_counts(labels.take(part.chosen))}
    return {label: counts.get(label, 0) for label in data.labels}


def _lengths(experiment: Experiment, data: TaskData, part: Split, tokenizer: Tokenizer, cache: Path) -> Lengths:
    reads = trunk_options(data.name, data.task, experiment.trunks).input
    limit = experiment.encoder.max_length
    columns = token_columns(part, tokenizer, reads=reads, max_length=limit, cache=cache)
    full = np.concatenate([column.full[part.chosen] for column in columns])
    return Lengths(
        float(np.median(full)), float(np.percentile(full, 95)), int(full.max()), float((full > limit).mean())
    )


def check_experiment(
    source: str | Path | Mapping[str, Any] | Experiment,
    *,
    data_dir: str | Path | None = None,
    overrides: Iterable[str] = (),
) -> CheckReport:
    """Check the data of an experiment given as in `train`."""
    loaded = load(source, overrides=overrides, data_dir=data_dir)
    tokenizer = load_tokenizer(find_checkpoint(loaded.experiment.encoder))
    return check_data(loaded.experiment, loaded.base, tokenizer, cache_folder())
