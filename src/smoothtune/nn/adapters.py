"""Bottleneck adapters (Houlsby et al., 2019, section 2.1). Knows nothing of any encoder or task."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothtune.config.adaptations import AdapterOptions
from smoothtune.nn import fused, narrow
from smoothtune.nn.lora import Stream
from smoothtune.nn.products import product

Site = Literal["attention", "output"]
SITES: tuple[Site, ...] = ("attention", "output")
# As in the code of the paper's authors; section 3.6: below 0.01 the spread does not matter.
_SPREAD = 1e-3


class Bottleneck(nn.Module):
    """y + W_up gelu(W_down y + b_down) + b_up, with W_up near zero, so that a fresh one changes next to nothing."""

    def __init__(self, width: int, size: int, draws: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5, generator=draws)
        nn.init.normal_(self.up.weight, std=_SPREAD, generator=draws)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """`y` (..., D) to (..., D), in its dtype."""
        change: Tensor = self.up(F.gelu(self.down(y)))
        return y + change.to(y.dtype)

    def packed(self, y: Tensor) -> Tensor:
        """The same for packed tokens by kernels, (N, D) to (N, D)."""
        found, bias = self.unbiased(y, torch.zeros_like(self.up.bias))
        return found.add_(bias.to(y.dtype))

    def unbiased(self, y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The same of y + `bias`: (N, D) to (N, D) and the bias (D,) that is left to add; neither was added to `y`."""
        if narrow.serves(y, len(bias)):
            changed = narrow.adapted(y, bias, self.down.weight, self.down.bias, self.up.weight)
            return changed, self.up.bias + bias
        reading = (self.down.weight * bias).sum(dim=1)  # W_down bias, float32 whatever the products are in
        hidden = fused.activation(product(y, self.down.weight), self.down.bias + reading, "gelu")
        return product(hidden, self.up.weight).add_(y), self.up.bias + bias


class Adapters(nn.Module):
    """One task's adapters: in each of `depth` layers one after attention and one after the MLP's output.

    They read the output of a sub-layer after its projection back to the width D, before dropout and the residual sum.
    `draws` gives the generator of a place such as `0.attention`.
    """

    def __init__(self, width: int, depth: int, options: AdapterOptions, draws: Stream) -> None:
        super().__init__()
        self.options = options
        self.layers = nn.ModuleList(
            nn.ModuleDict({site: Bottleneck(width, options.size, draws(f"{layer}.{site}")) for site in SITES})
            for layer in range(depth)
        )

    def at(self, layer: int, site: Site) -> Bottleneck:
        """The adapter of a layer at a site."""
        return cast(Bottleneck, cast(nn.ModuleDict, self.layers[layer])[site])
