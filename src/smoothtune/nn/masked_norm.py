"""Batch norm over the real cells of a grid. Knows nothing of what the grid holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothtune.runtime.random import current_pass


class MaskedBatchNorm2d(nn.Module):
    """Batch norm (Ioffe and Szegedy, 2015) over real cells only; with all cells real it is `nn.BatchNorm2d`.

    Running statistics (momentum 0.1, unbiased variance) move in training mode, outside a pass or in a pass that may
    update them; other passes use the statistics of their batch and move nothing. Eval mode uses the running statistics,
    so a frozen norm is one in eval mode. Statistics are float32 or better under autocast too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, grid: Tensor, cells: Tensor) -> Tensor:
        """`grid` (B, C, H, W), `cells` (B, 1, H, W) to (B, C, H, W) of the same dtype, 0 outside real cells."""
        wide = grid.to(torch.promote_types(grid.dtype, torch.float32))
        keep = cells.to(wide.dtype)
        if not self.training:
            moved = F.batch_norm(wide, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            return (moved * keep).to(grid.dtype)
        count, mean = _mean(wide, keep)
        centred = (wide - mean) * keep
        squares = centred.square().sum(dim=(0, 2, 3), keepdim=True)
        self.track(count, mean.flatten(), squares.flatten())
        scale = self.weight.view(1, -1, 1, 1) * torch.rsqrt(squares / count + self.eps)
        return (torch.addcmul(self.bias.view(1, -1, 1, 1), centred, scale) * keep).to(grid.dtype)

    @torch.no_grad()
    def track(self, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        """Move the running statistics, if the pass may, towards those of a batch of `count` real cells, a scalar.

        `mean` and `squares`, the sums of squared differences from it, are (C,). A single cell has no variance and moves
        none.
        """
        now = current_pass()
        if now is not None and not now.update_statistics:
            return
        step = self.momentum * (count > 1).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_((squares / (count - 1).clamp(min=1)).to(self.running_var.dtype), step)
        self.num_batches_tracked.add_(1)


def _mean(grid: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The number of real cells, a scalar, and each channel's mean over them, (1, C, 1, 1): a quotient of two sums."""
    count = keep.sum()
    return count, (grid * keep).sum(dim=(0, 2, 3), keepdim=True) / count
