"""Grids of which some cells are padding: their mask, pooling and dropout. Knows nothing of what a cell holds.

A grid is (B, C, H, W), finite everywhere and fastest when laid out channels last; its `cells` are (B, 1, H, W) bool,
True = real. Each example has at least one real cell.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def cell_mask(mask_a: Tensor, mask_b: Tensor) -> Tensor:
    """The cells whose two tokens are real: `mask_a` (B, Ta) and `mask_b` (B, Tb) to (B, 1, Ta, Tb)."""
    return mask_a[:, None, :, None] & mask_b[:, None, None, :]


def halve_grid(grid: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Max pooling 2 x 2, stride 2, over real cells: `grid` (B, C, H, W) and `cells` (B, 1, H, W) to their halves.

    An odd side is rounded up, so that a grid of one row still has one; a pooled cell is real if any of its cells is,
    and holds 0 if none is.
    """
    pooled = F.max_pool2d(grid + _floor(grid, cells), 2, ceil_mode=True)
    halved = F.max_pool2d(cells.float(), 2, ceil_mode=True) > 0
    return pooled.masked_fill(~halved, 0), halved


def grid_max(grid: Tensor, cells: Tensor) -> Tensor:
    """Adaptive max pooling to 1 x 1 over real cells: `grid` (B, C, H, W), `cells` (B, 1, H, W) to (B, C)."""
    return (grid + _floor(grid, cells)).flatten(2).max(dim=2).values


def _floor(grid: Tensor, cells: Tensor) -> Tensor:
    """What brings the padding of a finite `grid` to minus infinity when added to it, (B, 1, H, W)."""
    return grid.new_zeros(cells.shape).masked_fill(~cells, -math.inf)


def drop_cells(dropout: nn.Module, grid: Tensor) -> Tensor:
    """`dropout` of `grid` (B, C, H, W), its mask drawn in the order in which a channels-last grid lies in memory."""
    dropped: Tensor = dropout(grid.permute(0, 2, 3, 1))
    return dropped.permute(0, 3, 1, 2)
