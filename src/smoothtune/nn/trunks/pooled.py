"""The plain trunks: one pooled token state. They hold no weights and know nothing of what the states mean."""

from __future__ import annotations

from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.masked_pool import masked_mean, pool_tokens


class ClsTrunk(nn.Module):
    """The state of the first token, F = D."""

    def __init__(self, options: config.ClsTrunk, width: int) -> None:
        super().__init__()
        self.features = width
        self.dropout = Dropout(options.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, D), `mask` (B, T) to (B, F)."""
        features: Tensor = self.dropout(states[:, 0])
        return features


class MeanTrunk(nn.Module):
    """The mean of the real token states, F = D."""

    def __init__(self, options: config.MeanTrunk, width: int) -> None:
        super().__init__()
        self.features = width
        self.dropout = Dropout(options.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, D), `mask` (B, T) to (B, F)."""
        features: Tensor = self.dropout(masked_mean(states, mask))
        return features


class JointTrunk(nn.Module):
    """The first or the mean state of a pair that the encoder read as one sequence, F = D."""

    def __init__(self, options: config.JointTrunk, width: int) -> None:
        super().__init__()
        self.features = width
        self.pooling = options.pooling
        self.dropout = Dropout(options.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, D), `mask` (B, T) to (B, F)."""
        features: Tensor = self.dropout(pool_tokens(states, mask, self.pooling))
        return features
