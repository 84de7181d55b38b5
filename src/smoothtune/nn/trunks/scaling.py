"""The scaling of pooled features, inside a trunk. Knows nothing of what the features mean, nor of who sets the statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothtune.config import trunks as config

_EPS = 1e-12


class FeatureScaling(nn.Module):
    """Scales F features: `unit` per state, or `standard` by statistics that stay what they are while training.

    `shift` and `scale` (F,) exist where the scaling is `standard`; before they are set they change nothing.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, scaling: config.Scaling, features: int) -> None:
        super().__init__()
        self.kind = scaling
        if scaling == "standard":
            self.register_buffer("shift", torch.zeros(features))
            self.register_buffer("scale", torch.ones(features))

    def states(self, pooled: Tensor, layers: int) -> Tensor:
        """Pooled states (B, K * D) of K layers, each brought to length sqrt(D) where the scaling is `unit`."""
        if self.kind != "unit":
            return pooled
        parts = pooled.to(torch.promote_types(pooled.dtype, torch.float32)).view(len(pooled), layers, -1)
        return (parts * (parts.square().mean(dim=2, keepdim=True) + _EPS).rsqrt()).view(len(pooled), -1)

    def features(self, features: Tensor) -> Tensor:
        """Features (B, F), less `shift` and times `scale` where the scaling is `standard`."""
        return (features - self.shift) * self.scale if self.kind == "standard" else features

    @torch.no_grad()
    def set_statistics(self, shift: Tensor, scale: Tensor) -> None:
        """Take `shift` and `scale` (F,) as the statistics; for `standard` alone."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)
