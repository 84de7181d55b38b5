"""Reads all data of an experiment and reports what a careful person would want to know before training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.config.loading import load
from smoothtune.config.selectors import layers_of
from smoothtune.config.stage import Stage
from smoothtune.data.columns import blocks, gathered
from smoothtune.data.findings import Leaks, Matches
from smoothtune.data.keys import label_key
from smoothtune.data.label_doubts import (
    MOST_LOOKALIKES,
    LabelDoubts,
    Lookalike,
    Lookalikes,
    alike,
    label_doubts,
    lookalikes,
    no_labels,
    several_labels,
)
from smoothtune.data.leaks import TrainingKeys, leaks
from smoothtune.data.length_counts import LengthCounts
from smoothtune.data.repeats import repeats
from smoothtune.data.task_data import Split, TaskData, read_tasks, token_columns
from smoothtune.data.text_counts import TextCounts
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.errors import ConfigurationError, ModelFileError, Problem, UsageError
from smoothtune.files import cache_folder
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.pretrained import build_encoder, find_checkpoint, read_architecture
from smoothtune.types import Kind
from smoothtune.workflow.selections import trained_by_stage
from smoothtune.workflow.slow_starts import SlowStart, slow_starts


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths before cutting, special tokens included, and the share of texts longer than `max_length`.

    `unknown` is the share of tokens, without special ones, that stand for what the tokenizer does not know.
    """

    median: float
    p95: float
    longest: int
    cut: float
    unknown: float = 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """The smallest, mean and largest label of a regression."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What was found in one split.

    Everything is counted over the rows that are used. `balance` counts them by label, empty for a regression; `span` is
    that of its labels, None for the others. `doubts` are those about its labels. `leaks` is None for training data. It
    compares with the training rows of all tasks, those too that `max_train_rows` does not sample: another seed, or more
    rows, would train on them. `remarks` are lines about how the source was read, `metric` is the main one of the task.
    """

    source: str
    kind: Kind
    rows: int
    left_out: dict[str, int]
    balance: dict[str, int]
    span: Span | None
    lengths: Lengths
    duplicates: Matches
    conflicts: Matches
    doubts: LabelDoubts
    leaks: Leaks | None
    remarks: tuple[str, ...] = ()
    metric: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Reports by task and split, and the names of the stages that train nothing in the encoder and have no dropout in it.

    `looked_into` and `adapted` name those of them that encode at every step all the same: their regularisers look into
    the encoder, or LoRA and adapters of their tasks change what it gives. `slow_starts` are stages that may end while
    their rate still rises.
    """

    tasks: dict[str, dict[str, SplitReport]]
    frozen: tuple[str, ...] = ()
    looked_into: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    slow_starts: tuple[SlowStart, ...] = ()

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
    training = [TrainingKeys(data.trainable) for data in tasks.values() if data.trainable is not None]

    def report(data: TaskData, split: str) -> SplitReport:
        lengths, counts = _lengths(experiment, data, data.splits[split], tokenizer, cache)
        found = _report(data, split, lengths, training)
        return replace(found, remarks=(*found.remarks, *counts.sentences(f"{data.name}.{split}")))

    encodings = {stage.name: encoding_of(experiment, number) for number, stage in enumerate(experiment.stages)}
    return CheckReport(
        {name: {split: report(data, split) for split in data.splits} for name, data in tasks.items()},
        frozen=tuple(name for name, found in encodings.items() if found != "moving"),
        looked_into=tuple(name for name, found in encodings.items() if found == "looked_into"),
        adapted=tuple(name for name, found in encodings.items() if found == "adapted"),
        slow_starts=tuple(slow_starts(experiment)),
    )


def encoding_of(experiment: Experiment, number: int) -> Literal["moving", "adapted", "looked_into", "kept"]:
    """Whether the encoder's states of stage `number` can be kept, or why they cannot.

    They move where the encoder trains or drops; LoRA and adapters of the stage's tasks, trained now or before, change
    them; and regularisers look at a pass of the encoder, which then has to run.
    """
    stage = experiment.stages[number]
    if stage.trains_encoder or stage.frozen_dropout:
        return "moving"
    inside = {*experiment.lora_after(number), *experiment.adapters_after(number)}
    if not inside.isdisjoint(experiment.stage_tasks(stage)):
        return "adapted"
    return "looked_into" if stage.regularisers else "kept"


def _report(data: TaskData, split: str, lengths: Lengths, training: Sequence[TrainingKeys]) -> SplitReport:
    part = data.splits[split]
    found, balance = repeats(part), _balance(data, part)
    span = _span(part) if data.labels is None else None
    return SplitReport(
        source=part.table.source.shown,
        kind=data.task.kind,
        rows=len(part),
        left_out=part.left_out,
        balance=balance,
        span=span,
        lengths=lengths,
        duplicates=found.duplicates,
        conflicts=found.conflicts,
        doubts=_doubts(data, split, balance, span),
        leaks=None if split == "train" else leaks(part, training),
        remarks=part.table.remark_lines(f"{data.name}.{split}"),
        metric=data.task.metric,
    )


def _balance(data: TaskData, part: Split) -> dict[str, int]:
    return {} if data.labels is None else dict(zip(data.labels, data.counts(part).tolist(), strict=True))


def _doubts(data: TaskData, split: str, balance: Mapping[str, int], span: Span | None) -> LabelDoubts:
    part = data.splits[split]
    doubts = label_doubts(split, len(part), balance)
    if data.task.kind == "regression":
        return replace(doubts, constant=span is not None and span.min == span.max)
    if split != "train" or data.task.labels is not None:
        return doubts
    mistyped = _lookalikes(data)
    labels = [label for label, rows in balance.items() if rows]
    said = {example.label for example in mistyped.examples}
    return replace(
        doubts,
        lookalikes=mistyped,
        alike=alike(label for label in labels if label not in said),
        none=no_labels(labels),
        several=several_labels(labels),
    )


def _lookalikes(data: TaskData) -> Lookalikes:
    """Labels that stand in one row of all splits, a training row, and are spelt almost like others."""
    assert data.trainable is not None
    training = _balance(data, data.trainable)
    if 1 not in training.values():
        return Lookalikes()
    total = Counter(training)
    for split, part in data.splits.items():
        total.update({} if split == "train" else _balance(data, part))
    pairs = [(label, other) for label, other in lookalikes(total).items() if training[label]]
    first = (Lookalike(label, other, _place(data.trainable, label)) for label, other in pairs[:MOST_LOOKALIKES])
    return Lookalikes(len(pairs), tuple(first))


def _place(part: Split, label: str) -> str:
    """The place of the only row with the label."""
    keys, key = part.table.label_keys(), label_key(label)
    rows = (part.chosen[rows] for rows in blocks(len(part)))
    return part.table.place(next(int(some[keys[some] == key][0]) for some in rows if (keys[some] == key).any()))


def _span(split: Split) -> Span:
    numbers = gathered(split.table.measurements(np.float64), split.chosen)
    mean = math.fsum(float(numbers[part].sum()) for part in blocks(len(numbers))) / len(numbers)
    return Span(float(numbers.min()), mean, float(numbers.max()))


def _lengths(
    experiment: Experiment, data: TaskData, part: Split, tokenizer: Tokenizer, cache: Path
) -> tuple[Lengths, TextCounts]:
    reads = trunk_options(data.name, data.task, experiment.trunks).input
    limit = experiment.encoder.max_length
    columns = token_columns(part, tokenizer, reads=reads, max_length=limit, cache=cache)
    counts = LengthCounts.of(column.full[part.chosen[rows]] for column in columns for rows in blocks(len(part)))
    texts = TextCounts.of(tokenizer, reads, limit)
    for column in columns:
        texts.add(column, part.chosen)
    lengths = Lengths(counts.quantile(0.5), counts.quantile(0.95), counts.longest, counts.share_above(limit))
    return replace(lengths, unknown=texts.unknown_share), texts


def check_encoder(experiment: Experiment, architecture: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for what the experiment asks of its encoder and the encoder cannot do.

    `architecture` is the checkpoint's config.json; the encoder is made of it without memory for weights. Raises
    `ModelFileError` for an architecture that cannot be built, and `UsageError` where a stage selects nothing.
    """
    name = experiment.encoder.name
    try:
        with torch.device("meta"):
            encoder = build_encoder(architecture, experiment.encoder)
    except ModelFileError as error:
        raise ModelFileError(f"{name}: {error}") from error
    problems = [
        problem
        for number, stage in enumerate(experiment.stages)
        for problem in _layer_problems(stage, f"stages.{number}", name, encoder.depth)
    ]
    problems += _trunk_problems(experiment, name, encoder.depth)
    problems += _product_problems(experiment, encoder)
    limit = encoder.max_tokens
    if limit is not None and experiment.encoder.max_length > limit:
        what = f"got {experiment.encoder.max_length}, but {name!r} reads at most {limit} tokens; set {limit} or less"
        problems.insert(0, Problem("encoder.max_length", what))
    if problems:
        raise ConfigurationError("the experiment cannot be run:", problems)
    with torch.device("meta"):
        trained_by_stage(experiment, encoder)


def _layer_problems(stage: Stage, path: str, encoder: str, depth: int) -> Iterator[Problem]:
    for selector in stage.train:
        layers = layers_of(selector)
        if layers is not None and layers[1] >= depth:
            what = f"{selector!r} names layers that {encoder!r} does not have; it has encoder.layers.0-{depth - 1}"
            yield Problem(f"{path}.train", what)
    for number, options in enumerate(stage.regularisers):
        layer = getattr(options, "layer", 0)
        if layer != "middle" and layer >= depth:
            what = f"got {layer}, but {encoder!r} has the layers 0 to {depth - 1}; layer k is perturbed at its input"
            yield Problem(f"{path}.regularisers.{number}.layer", what)


def _trunk_problems(experiment: Experiment, encoder: str, depth: int) -> Iterator[Problem]:
    for name, options in experiment.trunks.items():
        layers = options.reads
        if layers is not None and layers[-1] > depth:
            what = f"got {layers[-1]}, but {encoder!r} has {depth} layers: 0 (the embeddings) to {depth}"
            yield Problem(f"trunks.{name}.layers", what)


def _product_problems(experiment: Experiment, encoder: Encoder) -> Iterator[Problem]:
    """LoRA and adapters around an encoder whose products smoothtune does not know, told at the first stage that trains them."""
    adapted = experiment.lora_after, experiment.adapters_after
    numbers = [number for number in range(len(experiment.stages)) if any(after(number) for after in adapted)]
    try:
        if numbers:
            encoder.hub_path(0, "output")
    except UsageError as error:
        yield Problem(f"stages.{numbers[0]}.train", str(error))


def check_experiment(
    source: str | Path | Mapping[str, Any] | Experiment,
    *,
    data_dir: str | Path | None = None,
    overrides: Iterable[str] = (),
) -> CheckReport:
    """Check the data of an experiment given as in `train`."""
    loaded = load(source, overrides=overrides, data_dir=data_dir)
    checkpoint = find_checkpoint(loaded.experiment.encoder)
    check_encoder(loaded.experiment, read_architecture(checkpoint))
    tokenizer = load_tokenizer(checkpoint, loaded.experiment.encoder.special_tokens)
    return check_data(loaded.experiment, loaded.base, tokenizer, cache_folder())
