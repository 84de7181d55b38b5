"""The quick recipe's model and its real batches, as a regulariser sees them. Knows nothing of what is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from rows import SOURCES, read_rows, sampled
from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.config.loading import load
from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.config.tasks import shape_of
from smoothtune.data.batching import WINDOW_BATCHES, BatchStream, Examples
from smoothtune.data.tokenising import encode, in_memory, load_tokenizer
from smoothtune.nn.building import build_model
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.objective.look import Regulariser
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.training.step import StepModule
from smoothtune.types import Batch

BATCH = 32
SEED = 7
LABELS: dict[str, tuple[str, ...] | None] = {"sst": ("0", "1", "2", "3", "4"), "quora": ("0", "1"), "sts": None}
_OPTIONS: TypeAdapter[Any] = TypeAdapter(RegulariserOptions)


def quick() -> Experiment:
    """The packaged recipe."""
    return load("quick").experiment


def quick_model(seed: int = SEED) -> MultiTaskModel:
    """The bundled encoder under fresh trunks and outputs of the recipe."""
    experiment = quick()
    encoder = load_encoder(find_checkpoint(experiment.encoder), experiment.encoder)
    shapes = {name: shape_of(task) for name, task in experiment.tasks.items()}
    return build_model(encoder, shapes, experiment.trunks, LABELS, seed=seed)


def stream(task: str, data_dir: Path | None) -> BatchStream:
    """Training batches of 32 rows, of similar length as in training, from one window of seeded rows."""
    experiment = quick()
    options, rows = experiment.tasks[task], sampled(read_rows(SOURCES[task], data_dir), BATCH * WINDOW_BATCHES)
    reads = trunk_options(task, options, experiment.trunks).input
    tokenizer = load_tokenizer(find_checkpoint(experiment.encoder))
    texts = [texts for texts, _ in rows]
    whole = options.kind == "classification"
    examples = Examples(
        task=task,
        reads=reads,
        columns=in_memory(encode(tokenizer, texts, reads, experiment.encoder.max_length)),
        labels=np.array([float(label) for _, label in rows], dtype=np.int64 if whole else np.float32),
        lines=np.arange(len(rows)),
        chosen=np.arange(len(rows), dtype=np.int32),
        limit=experiment.encoder.max_length,
    )
    return BatchStream(examples, BATCH, seed=SEED, stage="benchmark")


def first_batches(task: str, data_dir: Path | None, count: int) -> list[Batch]:
    """The first batches of the task's stream: lengths as they come."""
    source = stream(task, data_dir)
    return [source.batch(number) for number in range(count)]


def middle_batch(task: str, data_dir: Path | None) -> Batch:
    """The batch whose number of real tokens is the median of a window's."""
    source = stream(task, data_dir)
    batches = [source.batch(number) for number in range(source.batches)]
    return sorted(batches, key=lambda batch: int(batch.tokens.mask.sum()))[len(batches) // 2]


def regularisers_of(tables: Sequence[dict[str, Any]], model: MultiTaskModel) -> tuple[Regulariser, ...]:
    """The regularisers that a stage's tables mean."""
    return build_regularisers([_OPTIONS.validate_python(table) for table in tables], depth=model.encoder.depth)


def step_module(
    model: MultiTaskModel, *, dtype: torch.dtype, regularisers: Sequence[dict[str, Any]] = ()
) -> StepModule:
    """The step module of a stage without weighting."""
    weighting = WeightingProduct(("none",), {name: TaskFacts(1, 1.0) for name in model.tasks})
    return StepModule(model, weighting, dtype=dtype, regularisers=regularisers_of(regularisers, model))
