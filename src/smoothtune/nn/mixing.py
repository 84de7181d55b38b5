"""Batches of prediction put together for one pass of the encoder. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from smoothtune.types import Batch, MixedBatch, MixedPart, Tokens


def mixed(batches: Sequence[Batch]) -> MixedBatch:
    """The rows of `batches`, one task each, one after another; shorter ones are filled up with padding."""
    parts = tuple(MixedPart((batch.task,), *batch.tokens.mask.shape) for batch in batches)
    return MixedBatch(_stacked([batch.tokens for batch in batches]), parts)


def repeated(batch: Batch, groups: Sequence[Sequence[str]]) -> MixedBatch:
    """The rows of `batch` once for each group of tasks, which share an adaptation or have none."""
    parts = tuple(MixedPart(tuple(tasks), *batch.tokens.mask.shape) for tasks in groups)
    return MixedBatch(_stacked([batch.tokens] * len(parts)), parts)


def _stacked(every: Sequence[Tokens]) -> Tokens:
    if len(every) == 1:
        return every[0]
    width = max(tokens.mask.shape[1] for tokens in every)
    segments = None
    if any(tokens.segments is not None for tokens in every):
        segments = _filled([_segments(tokens) for tokens in every], width)
    ids = _filled([tokens.input_ids for tokens in every], width)
    return Tokens(ids, _filled([tokens.mask for tokens in every], width), segments)


def _filled(parts: Sequence[Tensor], width: int) -> Tensor:
    """(R_i, T_i) one after another, (R, `width`), filled with 0."""
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def _segments(tokens: Tokens) -> Tensor:
    return torch.zeros_like(tokens.input_ids) if tokens.segments is None else tokens.segments
