"""Batch norm over the real cells of grids, those of all processes that compute together. Knows nothing of what they hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothtune.runtime import processes
from smoothtune.runtime.processes import Processes
from smoothtune.runtime.random import current_pass


class MaskedBatchNorm2d(nn.Module):
    """Batch norm (Ioffe and Szegedy, 2015) over real cells only; with all cells real it is `nn.BatchNorm2d`.

    Running statistics (momentum 0.1, unbiased variance) move in training mode, outside a pass or in a pass that may
    update them; other passes use the statistics of their batch and move nothing. Eval mode uses the running statistics,
    so a frozen norm is one in eval mode. Statistics are float32 or better under autocast too. Where several processes
    compute together, a batch is what all of them have, and so are its gradients.
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
        together = processes.current()
        if not together.alone:
            count, mean, squares = of_all(together, count, mean, squares)
            centred = (wide - mean) * keep
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


def of_all(together: Processes, count: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics of the cells of all processes, from each one's count, a scalar, and means and sums of squares (C,).

    `squares` are sums of squared differences from the mean, and have its shape. In float64, so that what they are taken apart
    into loses nothing: n_r, n_r m_r and s_r + n_r m_r^2, which one exchange adds up. Gradients go back through it.
    """
    counts, means = count.double() * together.counts, mean.double().flatten()
    own = [counts.view(1), counts * means, squares.double().flatten() * together.counts + counts * means.square()]
    size = len(means)
    number, first, second = torch.split(together.summed(torch.cat(own)), [1, size, size])
    whole = first / number
    spread = (second - number * whole.square()).clamp(min=0)
    return number.to(count.dtype).squeeze(), whole.view_as(mean).to(mean.dtype), spread.view_as(mean).to(mean.dtype)


def _mean(grid: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The number of real cells, a scalar, and each channel's mean over them, (1, C, 1, 1): a quotient of two sums."""
    count = keep.sum()
    return count, (grid * keep).sum(dim=(0, 2, 3), keepdim=True) / count
