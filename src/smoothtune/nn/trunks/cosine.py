"""The cosine trunk: two texts read apart, one number. It holds no weights and knows nothing of its task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.masked_pool import pool_tokens
from smoothtune.nn.trunks.similarity_cube import unit


class CosineTrunk(nn.Module):
    """The cosine of the two pooled states, computed in float32 or better, F = 1.

    Source: Reimers and Gurevych (2019), Sentence-BERT, section 3.
    """

    def __init__(self, options: config.CosineTrunk, width: int) -> None:
        super().__init__()
        self.features = 1
        self.pooling = options.pooling

    def forward(self, states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> Tensor:
        """`states_a` (B, Ta, D), `mask_a` (B, Ta), `states_b` (B, Tb, D), `mask_b` (B, Tb) to (B, 1)."""
        u = pool_tokens(states_a, mask_a, self.pooling)
        v = pool_tokens(states_b, mask_b, self.pooling)
        wide = torch.promote_types(u.dtype, torch.float32)
        return (unit(u.to(wide)) * unit(v.to(wide))).sum(dim=1, keepdim=True)
