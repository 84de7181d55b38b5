"""Pooling over the real tokens of a sequence. Knows nothing of what the states mean."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens, summed in float32 or better: `states` (B, T, D), `mask` (B, T) to (B, D)."""
    wide = torch.promote_types(states.dtype, torch.float32)
    total = states.masked_fill(~mask.unsqueeze(2), 0).sum(dim=1, dtype=wide)
    return total / mask.sum(dim=1, keepdim=True)


def masked_max(states: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each channel among the real tokens: `states` (B, T, D), `mask` (B, T) to (B, D)."""
    return states.masked_fill(~mask.unsqueeze(2), -math.inf).max(dim=1).values


def pool_tokens(states: Tensor, mask: Tensor, pooling: Literal["cls", "mean"]) -> Tensor:
    """The state of the first token, or the mean of the real ones: `states` (B, T, D), `mask` (B, T) to (B, D)."""
    return states[:, 0] if pooling == "cls" else masked_mean(states, mask)
