"""The pairwise word interaction trunk with residual blocks (Wang's Table 3). Knows nothing of its task."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.grid import drop_cells, grid_max
from smoothtune.nn.masked_norm import MaskedBatchNorm2d
from smoothtune.nn.recomputing import called
from smoothtune.nn.trunks import packed_grid
from smoothtune.nn.trunks.packed_grid import Half
from smoothtune.nn.trunks.similarity_cube import CHANNELS, similarity_cube
from smoothtune.runtime.kernels.grid import Layout

FEATURES = 128


class PwimResnetTrunk(nn.Module):
    """Similarity cube, `depth` residual blocks of 128 channels, the largest value of each channel, F = 128.

    Nothing is pooled between blocks, so memory grows with Ta * Tb; where torch alone computes, what is inside the blocks of
    large grids is computed again in the backward pass. Source: Wang, section 3.3 and Table 3, whose two linear layers are the
    output's.
    """

    def __init__(self, options: config.PwimResnetTrunk, width: int) -> None:
        super().__init__()
        self.features = FEATURES
        entering = [CHANNELS] + [FEATURES] * (options.depth - 1)
        self.blocks = nn.ModuleList(_Block(size, options.dropout) for size in entering)

    def forward(self, states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> Tensor:
        """`states_a` (B, Ta, D), `mask_a` (B, Ta), `states_b` (B, Tb, D), `mask_b` (B, Tb) to (B, 128); padding comes last."""
        grid, cells = similarity_cube(states_a, mask_a, states_b, mask_b)
        dtype = packed_grid.served(grid, self)
        if dtype is not None:
            return self._packed(grid, packed_grid.lay_out(mask_a, mask_b, dtype))
        each = FEATURES * cells.numel() * grid.element_size()
        for block in self.blocks:
            grid = called(block, grid, cells, each=each)
        return grid_max(grid, cells)

    def _packed(self, cube: Tensor, layout: Layout) -> Tensor:
        grid = packed_grid.columns(cube, layout)
        for block in self.blocks:
            assert isinstance(block, _Block)
            grid = packed_grid.block(grid, *block.packed(), layout)
        return packed_grid.largest(grid, layout)


class _Block(nn.Module):
    """Two convolutions around which the input is led: by a 1 x 1 convolution where the channels differ, else as it is.

    Table 3 prints 128 channels into every block; the first is entered by the cube's 3, which is where its "Projection
    (if applicable)" applies.
    """

    def __init__(self, entering: int, rate: float) -> None:
        super().__init__()
        self.projection = None if entering == FEATURES else nn.Conv2d(entering, FEATURES, 1)
        self.convolution_1 = nn.Conv2d(entering, FEATURES, 3, padding=1)
        self.norm_1 = MaskedBatchNorm2d(FEATURES)
        self.dropout_1 = Dropout(rate)
        self.convolution_2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.norm_2 = MaskedBatchNorm2d(FEATURES)
        self.dropout_2 = Dropout(rate)

    def forward(self, grid: Tensor, cells: Tensor) -> Tensor:
        """`grid` (B, C, H, W), 0 outside `cells` (B, 1, H, W), to (B, 128, H, W), 0 there too."""
        inner = drop_cells(self.dropout_1, F.relu(self.norm_1(self.convolution_1(grid), cells)))
        inner = drop_cells(self.dropout_2, self.norm_2(self.convolution_2(inner), cells))
        around = grid if self.projection is None else self.projection(grid).masked_fill(~cells, 0)
        return F.relu(inner + around)

    def packed(self) -> tuple[tuple[Half, Half], tuple[Tensor, Tensor] | None]:
        """What `packed_grid.block` needs: two halves, and the projection if there is one."""
        halves = (
            packed_grid.half_of(self.convolution_1, self.norm_1, self.dropout_1),
            packed_grid.half_of(self.convolution_2, self.norm_2, self.dropout_2),
        )
        if self.projection is None:
            return halves, None
        assert self.projection.bias is not None
        return halves, (packed_grid.over_columns(self.projection.weight), self.projection.bias)
