"""LoRA: low-rank changes of an encoder's products (Hu et al., 2021, section 4.1). Knows nothing of any encoder or task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothtune.config.adaptations import LoraOptions, Target
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.products import BLOCK, on_tiles, product

# The generator of the draws at a place.
Stream = Callable[[str], torch.Generator]


class LowRank(nn.Module):
    """(alpha / r) dropout(x) A^T B^T, added to one product; `a` (r, inputs), `b` (features, r).

    B begins at zero, so that a fresh one changes nothing; A is uniform within 1 / sqrt(inputs), as in the code of the paper's
    authors (section 4.1 says normal).
    """

    def __init__(self, inputs: int, features: int, options: LoraOptions, draws: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(options.rank, inputs))
        self.b = nn.Parameter(torch.zeros(features, options.rank))
        self.dropout = Dropout(options.dropout)
        self.scale = options.alpha / options.rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=draws)

    def forward(self, x: Tensor, places: Tensor | None = None, padded: int = 0) -> Tensor:
        """`x` (..., inputs) to (..., features). Packed tokens stand at `places` (N,) of `padded` ones: so do their masks."""
        if places is None:
            return F.linear(F.linear(self.dropout(x), self.a), self.scale * self.b)
        x = self.dropout.at(x, places, padded)
        if not on_tiles(x, self.a.shape[1], len(self.b)):
            return F.linear(F.linear(x, self.a), self.scale * self.b)
        filled = -len(self.a) % BLOCK  # tiles are 32 wide: the rest of them is zero
        narrow = product(x, F.pad(self.a, (0, 0, 0, filled)))
        return product(narrow, F.pad(self.scale * self.b, (0, filled)))

    def change(self) -> Tensor:
        """What it adds to the weight, (features, inputs), detached."""
        found: Tensor = (self.b.detach() @ self.a.detach()) * self.scale
        return found


class Lora(nn.Module):
    """One task's LoRA: in each of `depth` layers one `LowRank` for every target.

    `sizes` are (features, inputs) of the products by target; `draws` gives the generator of a place such as `0.query`.
    """

    def __init__(
        self, sizes: Mapping[Target, tuple[int, int]], depth: int, options: LoraOptions, draws: Stream
    ) -> None:
        super().__init__()
        self.options = options
        self.layers = nn.ModuleList()
        for layer in range(depth):
            parts: dict[str, nn.Module] = {}
            for target in options.targets:
                features, inputs = sizes[target]
                parts[target] = LowRank(inputs, features, options, draws(f"{layer}.{target}"))
            self.layers.append(nn.ModuleDict(parts))

    def at(self, layer: int, target: Target) -> LowRank | None:
        """The part of a product in a layer, None where that product is not changed."""
        if target not in self.options.targets:
            return None
        return cast(LowRank, cast(nn.ModuleDict, self.layers[layer])[target])


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, into: Tensor, change: Tensor, row: int, column: int) -> Tensor:
        ctx.rows, ctx.columns = slice(row, row + len(change)), slice(column, column + change.shape[-1])
        into[ctx.rows, ..., ctx.columns] += change
        ctx.mark_dirty(into)
        return into

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return gradient, gradient[ctx.rows, ..., ctx.columns], None, None


def added(into: Tensor, change: Tensor, row: int, column: int) -> Tensor:
    """`into` (N, ..., M) with `change` (n, ..., m) added in place from `row` and `column` on; no gradient is copied.

    Nothing may need the former values of `into`: a product does not need those of its result.
    """
    change = change.to(into.dtype)
    if not torch.is_grad_enabled():
        into[row : row + len(change), ..., column : column + change.shape[-1]] += change
        return into
    found: Tensor = _Added.apply(into, change, row, column)  # type: ignore[no-untyped-call]
    return found
