"""Scales the loss of each example by the weight of its class. Knows nothing of where the weights come from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ClassWeights(nn.Module):
    """By task, the weight of each class, (C,) float32, of a binary task (2,). Losses of other tasks stay as they are."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {task: f"weights_{number}" for number, task in enumerate(weights)}
        for task, name in self._names.items():
            self.register_buffer(name, weights[task].to(torch.float32), persistent=False)

    def forward(self, task: str, losses: Tensor, labels: Tensor) -> Tensor:
        """The losses (B,) of examples of `task`, each times the weight of its label (B,)."""
        name = self._names.get(task)
        if name is None:
            return losses
        weights: Tensor = self.get_buffer(name)
        return losses * weights[labels.long()]
