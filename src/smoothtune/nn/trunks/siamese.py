"""The siamese trunk: two texts read apart, their pooled states set side by side. Knows nothing of its task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.masked_pool import pool_tokens
from smoothtune.nn.trunks.scaling import FeatureScaling
from smoothtune.nn.trunks.similarity_cube import unit


class SiameseTrunk(nn.Module):
    """The features u, v, |u - v| and u * v of the pooled states u and v of K layers, F = 4 K D, or K more with cosines.

    Source: Conneau et al. (2017), InferSent, section 3.1.
    """

    def __init__(self, options: config.SiameseTrunk, width: int) -> None:
        super().__init__()
        self.layers = options.layers
        self.pooling = options.pooling
        self.cosine = options.cosine
        self._count = 1 if options.layers is None else len(options.layers)
        self.cosines = self._count * options.cosine
        self.features = self._count * 4 * width + self.cosines
        self.scaling = FeatureScaling(options.scaling, self.features)
        self.dropout = Dropout(options.dropout)

    def forward(self, states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> Tensor:
        """`states_a` (B, Ta, K * D), `mask_a` (B, Ta), `states_b` (B, Tb, K * D), `mask_b` (B, Tb) to (B, F)."""
        u = self.scaling.states(pool_tokens(states_a, mask_a, self.pooling), self._count)
        v = self.scaling.states(pool_tokens(states_b, mask_b, self.pooling), self._count)
        parts = [u, v, (u - v).abs(), u * v]
        if self.cosine:
            parts.append(self._cosines(u, v))
        features: Tensor = self.dropout(self.scaling.features(torch.cat(parts, dim=1)))
        return features

    def _cosines(self, u: Tensor, v: Tensor) -> Tensor:
        """The cosines of u and v (B, K * D) layer by layer, (B, K), in float32 or better."""
        wide = torch.promote_types(u.dtype, torch.float32)
        sides = (side.to(wide).view(len(side), self._count, -1) for side in (u, v))
        a, b = map(unit, sides)
        return (a * b).sum(dim=2)
