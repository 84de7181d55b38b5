"""The pairwise word interaction trunk with a plain deep CNN (Wang's Table 2). Knows nothing of its task."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.grid import drop_cells, grid_max, halve_grid
from smoothtune.nn.masked_norm import MaskedBatchNorm2d
from smoothtune.nn.trunks import packed_grid
from smoothtune.nn.trunks.similarity_cube import CHANNELS, similarity_cube
from smoothtune.runtime.kernels.grid import Layout

FEATURES = 128


class PwimDcnnTrunk(nn.Module):
    """Similarity cube, `depth` convolutions 3 x 3 halved by max pooling, the largest value of each channel, F = 128.

    Each layer is convolution, masked batch norm, ReLU, max pooling and dropout, the last pooling being global. Odd
    sides are rounded up when halved, so texts of one token work; `nn.MaxPool2d` as the table has it refuses short ones.
    Source: Wang, section 3.3 and Table 2, whose two linear layers are the output's.
    """

    def __init__(self, options: config.PwimDcnnTrunk, width: int) -> None:
        super().__init__()
        self.features = FEATURES
        channels = _channels(options.depth)
        self.convolutions = nn.ModuleList(nn.Conv2d(*sizes, 3, padding=1) for sizes in pairwise(channels))
        self.norms = nn.ModuleList(MaskedBatchNorm2d(size) for size in channels[1:])
        self.dropouts = nn.ModuleList(Dropout(options.dropout) for _ in channels[1:])

    def forward(self, states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> Tensor:
        """`states_a` (B, Ta, D), `mask_a` (B, Ta), `states_b` (B, Tb, D), `mask_b` (B, Tb) to (B, 128); padding comes last."""
        grid, cells = similarity_cube(states_a, mask_a, states_b, mask_b)
        layers = list(zip(self.convolutions, self.norms, self.dropouts, strict=True))
        dtype = packed_grid.served(grid, self)
        if dtype is not None:
            grid, cells = self._first_packed(grid, cells, packed_grid.lay_out(mask_a, mask_b, dtype))
            layers = layers[1:]
        for convolution, norm, dropout in layers[:-1]:
            grid, cells = halve_grid(F.relu(norm(convolution(grid), cells)), cells)
            grid = drop_cells(dropout, grid)
        convolution, norm, dropout = layers[-1]
        features: Tensor = dropout(grid_max(F.relu(norm(convolution(grid), cells)), cells))
        return features

    def _first_packed(self, cube: Tensor, cells: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The first layer, which sees four times the cells of the next, over packed cells."""
        convolution, norm = self.convolutions[0], self.norms[0]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, MaskedBatchNorm2d)
        half = packed_grid.half_of(convolution, norm, None)
        pooled = packed_grid.halved(packed_grid.layer(packed_grid.columns(cube, layout), half, layout), layout)
        return drop_cells(self.dropouts[0], pooled), cells[:, :, ::2, ::2]


def _channels(depth: int) -> list[int]:
    """The channels of Table 2 cut or lengthened to `depth` convolutions: what enters, what each gives, 128 last."""
    inner = [128, 164] + [192] * depth
    return [CHANNELS, *inner[: depth - 1], FEATURES]
