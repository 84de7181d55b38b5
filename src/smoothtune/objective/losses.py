"""The loss of each task kind, per example. Knows nothing of weighting or models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from smoothtune.types import Kind


def example_losses(kind: Kind, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each example, (B,) float32.

    classification: cross-entropy, logits (B, C), labels (B,) int64. binary: binary cross-entropy with logits, both (B,).
    regression: squared error in label units, both (B,). Source: Wang, section 4.3, item 4.
    """
    logits = logits.float()
    if kind == "classification":
        return F.cross_entropy(logits, labels, reduction="none")
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return F.mse_loss(logits, labels, reduction="none")
