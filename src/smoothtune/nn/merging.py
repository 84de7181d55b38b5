"""A task's LoRA written into the weights of its encoder, and taken out again to the bit. Knows nothing of passes."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.nn.encoder import Encoder
from smoothtune.nn.lora import Lora


class Merged:
    """W + (alpha / r) B A in place of W in every product that `lora` changes (Hu et al., 2021, section 4.1).

    The weights that were there are kept aside: subtracting would leave rounding behind.
    """

    def __init__(self, encoder: Encoder, task: str, lora: Lora) -> None:
        self.task = task
        self._kept: list[tuple[Tensor, Tensor]] = []
        for layer in range(encoder.depth):
            for target in lora.options.targets:
                weight, part = encoder.weight_of(layer, target), lora.at(layer, target)
                assert part is not None
                self._kept.append((weight, weight.clone()))
                weight.add_(part.change())

    @torch.no_grad()
    def undo(self) -> None:
        """Put the weights back."""
        for weight, kept in self._kept:
            weight.copy_(kept)
