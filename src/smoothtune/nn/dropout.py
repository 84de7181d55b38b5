"""Dropout whose masks come from named streams, so that a pass can be replayed. Knows nothing of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothtune.runtime.kernels.layers import Drop
from smoothtune.runtime.random import keep_mask, stream_of


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al., 2014) at a named `place`.

    The model sets `place` to the module's path; outside a pass the mask comes from torch's global generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.place = ""

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape; in eval mode, or at rate 0, `x` itself."""
        if not self.training or self.rate == 0:
            return x
        keep = keep_mask(self.place, x.shape, self.rate, x.device)
        return x * keep.to(x.dtype).mul_(1 / (1 - self.rate))

    def at(self, x: Tensor, places: Tensor, padded: int) -> Tensor:
        """The same for packed tokens `x` (N, D) that stand at `places` (N,) of the `padded` ones of (padded, D)."""
        if not self.training or self.rate == 0:
            return x
        keep = keep_mask(self.place, torch.Size((padded, x.shape[1])), self.rate, x.device)[places]
        return x * keep.to(x.dtype).mul_(1 / (1 - self.rate))

    def drop(self, places: Tensor) -> Drop:
        """The same dropout for a kernel that makes the mask itself: `places` (N,) are rows of the padded tensor."""
        if not self.training or self.rate == 0:
            return Drop(0.0, 0, places)
        return Drop(self.rate, stream_of(self.place), places)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def name_places(model: nn.Module) -> None:
    """Give every `Dropout` inside `model` its module path as its place."""
    for path, module in model.named_modules():
        if isinstance(module, Dropout):
            module.place = path
