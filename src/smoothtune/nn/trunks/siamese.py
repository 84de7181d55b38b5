"""The siamese trunk: two texts read apart, their pooled states set side by side. Knows nothing of its task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.masked_pool import pool_tokens


class SiameseTrunk(nn.Module):
    """The features u, v, |u - v| and u * v of the two pooled states u and v, F = 4D.

    Source: Conneau et al. (2017), InferSent, section 3.1.
    """

    def __init__(self, options: config.SiameseTrunk, width: int) -> None:
        super().__init__()
        self.features = 4 * width
        self.pooling = options.pooling
        self.dropout = Dropout(options.dropout)

    def forward(self, states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> Tensor:
        """`states_a` (B, Ta, D), `mask_a` (B, Ta), `states_b` (B, Tb, D), `mask_b` (B, Tb) to (B, F)."""
        u = pool_tokens(states_a, mask_a, self.pooling)
        v = pool_tokens(states_b, mask_b, self.pooling)
        features: Tensor = self.dropout(torch.cat([u, v, (u - v).abs(), u * v], dim=1))
        return features
