"""A bidirectional LSTM that never reads padding. Knows nothing of what the states mean."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class Bilstm(nn.Module):
    """`layers` of two LSTMs (Hochreiter and Schmidhuber, 1997), one per direction, whose halves make the width again.

    The backward one reads each row's real tokens in reversed order from the row's own last token. This is
    `nn.LSTM(bidirectional=True)` on packed sequences, without packing: faster in training, in bfloat16 too, and nothing
    waits for lengths to reach the host. `width` must be even.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.ahead = nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in range(layers))
        self.back = nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in range(layers))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, D), finite everywhere, and `mask` (B, T) to (B, T, D), of no meaning at padded places."""
        turned = _turned_places(mask)
        for ahead, back in zip(self.ahead, self.back, strict=True):
            ends = _turn(back(_turn(states, turned))[0], turned)
            states = torch.cat([ahead(states)[0], ends], dim=2)
        return states

    def train(self, mode: bool = True) -> Self:
        """Set the mode, except for the LSTMs: they act alike in both, but cuDNN's have no gradient in eval mode.

        A frozen trunk, which is in eval mode, must still pass the gradient on to what stands below it.
        """
        super().train(mode)
        for lstm in [*self.ahead, *self.back]:
            lstm.training = True
        return self


def _turned_places(mask: Tensor) -> Tensor:
    """Where each place goes when real tokens are reversed and padding stays: `mask` (B, T) to (B, T) int64."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - places, places)


def _turn(states: Tensor, turned: Tensor) -> Tensor:
    """`states` (B, T, D) with its places taken from `turned` (B, T)."""
    return states.gather(1, turned.unsqueeze(2).expand_as(states))
