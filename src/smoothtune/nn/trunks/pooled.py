"""The plain trunks: one pooled token state. They hold no weights and know nothing of what the states mean."""

from __future__ import annotations

from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.masked_pool import pool_tokens
from smoothtune.nn.trunks.scaling import FeatureScaling


class _PooledTrunk(nn.Module):
    """One pooled state for each of K layers, F = K * D; `layers` are those whose states it is given, None for the last."""

    def __init__(self, options: config.PooledTrunk, width: int, pooling: config.Pooling, dropout: float) -> None:
        super().__init__()
        self.layers = options.layers
        self.pooling = pooling
        self._count = 1 if options.layers is None else len(options.layers)
        self.features = self._count * width
        self.scaling = FeatureScaling(options.scaling, self.features)
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, K * D), `mask` (B, T) to (B, F)."""
        pooled = self.scaling.states(pool_tokens(states, mask, self.pooling), self._count)
        features: Tensor = self.dropout(self.scaling.features(pooled))
        return features


class ClsTrunk(_PooledTrunk):
    """The state of the first token."""

    def __init__(self, options: config.ClsTrunk, width: int) -> None:
        super().__init__(options, width, "cls", options.dropout)


class MeanTrunk(_PooledTrunk):
    """The mean of the real token states."""

    def __init__(self, options: config.MeanTrunk, width: int) -> None:
        super().__init__(options, width, "mean", options.dropout)


class JointTrunk(_PooledTrunk):
    """The first or the mean state of a pair that the encoder read as one sequence."""

    def __init__(self, options: config.JointTrunk, width: int) -> None:
        super().__init__(options, width, options.pooling, options.dropout)
