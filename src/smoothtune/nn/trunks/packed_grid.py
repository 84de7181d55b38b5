"""Convolutional layers over packed grids, with gradients: the fast path of the PWIM trunks.

They compute what the plain layers compute over real cells only: in float32 on a processor with AVX-512, and, rounding less
often than these, under bfloat16 autocast on one with AMX. They know nothing of how a cube is made. N counts the cells of a
packed grid (see `runtime.kernels.grid`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from smoothtune.nn.dropout import Dropout
from smoothtune.nn.masked_norm import MaskedBatchNorm2d, of_all
from smoothtune.nn.trunks.similarity_cube import CHANNELS
from smoothtune.runtime import processes
from smoothtune.runtime.kernels import grid as kernels
from smoothtune.runtime.kernels import grid_products as products
from smoothtune.runtime.kernels.grid import Drop, Layout, Norm
from smoothtune.runtime.processes import Processes
from smoothtune.runtime.random import stream_of

available = kernels.available
lay_out = kernels.lay_out


def served(cube: Tensor, module: nn.Module) -> torch.dtype | None:
    """The dtype in which the fast path computes this pass of float32 modules, or None where it cannot.

    Modules with hooks must be called, not read. Real tokens must stand first in their texts.
    """
    if cube.device.type != "cpu" or any(part.dtype != torch.float32 for part in (cube, *module.parameters())):
        return None
    if len(cube) == 0 or any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return dtype if available(dtype) else None


class Half(NamedTuple):
    """A convolution with its norm and dropout: weight (C, I, k, k), bias (C,), the norm, and its weight and bias (C,)."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    norm: MaskedBatchNorm2d
    drop: Drop


def half_of(convolution: nn.Conv2d, norm: MaskedBatchNorm2d, dropout: Dropout | None) -> Half:
    """A convolution 3 x 3 with what follows it. One of the cube's channels becomes 1 x 1 over its columns.

    No stream is taken where nothing is dropped.
    """
    assert convolution.bias is not None
    weight = over_columns(convolution.weight) if convolution.in_channels == CHANNELS else convolution.weight
    drops = dropout is not None and dropout.training and dropout.rate > 0
    drop = Drop(dropout.rate, stream_of(dropout.place)) if dropout is not None and drops else Drop(0.0, 0)
    return Half(weight, convolution.bias, norm.weight, norm.bias, norm, drop)


def over_columns(weight: Tensor) -> Tensor:
    """A convolution of the cube, (C, 3, k, k) with k 1 or 3, as one of its columns, (C, 32, 1, 1)."""
    places = F.pad(weight, [1, 1, 1, 1]) if weight.shape[2] == 1 else weight
    flat = places.permute(0, 2, 3, 1).flatten(1)
    return F.pad(flat, [0, kernels.COLUMNS - flat.shape[1]])[:, :, None, None]


def columns(cube: Tensor, layout: Layout) -> Tensor:
    """Each real cell's nine neighbours, (N, 32), [tap][channel] and zeros: `cube` (B, 3, H, W) float32."""
    found: Tensor = _Columns.apply(cube, layout)  # type: ignore[no-untyped-call]
    return found


def block(x: Tensor, halves: tuple[Half, Half], projection: tuple[Tensor, Tensor] | None, layout: Layout) -> Tensor:
    """One residual block: `x` (N, I), zero outside real cells, to (N, C), zero there too.

    `projection` is the weight (C, I, 1, 1) and bias (C,) through which `x` is led around, or None: as it is.
    """
    settings = [(half.norm, half.drop) for half in halves]
    parameters = [tensor for half in halves for tensor in half[:4]]
    around = (None, None) if projection is None else projection
    out: Tensor = _Block.apply(x, layout, settings, *parameters, *around)  # type: ignore[no-untyped-call]
    return out


def layer(x: Tensor, half: Half, layout: Layout) -> Tensor:
    """Convolution, norm, ReLU and dropout: `x` (N, I), zero outside real cells, to (N, C), zero there too."""
    out: Tensor = _Layer.apply(x, layout, half.norm, half.drop, *half[:4])  # type: ignore[no-untyped-call]
    return out


def halved(grid: Tensor, layout: Layout) -> Tensor:
    """Max pooling 2 x 2 over real cells: `grid` (N, C) to a padded (B, C, ceil(H / 2), ceil(W / 2)), channels last."""
    pooled: Tensor = _Halved.apply(grid, layout)  # type: ignore[no-untyped-call]
    return pooled.permute(0, 3, 1, 2)


def largest(grid: Tensor, layout: Layout) -> Tensor:
    """The largest number of each channel over real cells: `grid` (N, C) to (B, C) float32."""
    highest: Tensor = _Largest.apply(grid, layout)  # type: ignore[no-untyped-call]
    return highest


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cube: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return kernels.columns_of(cube.contiguous(), layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return kernels.columns_gradient(grad.contiguous(), ctx.layout), None


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, layout: Layout) -> Tensor:
        highest, where = kernels.largest(grid, layout)
        ctx.save_for_backward(where)
        ctx.layout = layout
        return highest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return kernels.largest_gradient(grad.contiguous(), ctx.saved_tensors[0], ctx.layout), None


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.layout = layout
        return kernels.halved(grid, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return kernels.halved_gradient(ctx.saved_tensors[0], grad.contiguous(), ctx.layout), None


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layout: Layout, norm: MaskedBatchNorm2d, drop: Drop, *parameters: Tensor
    ) -> Tensor:
        half = [tensor.contiguous() for tensor in parameters]
        y = products.convolve(x, half[0], half[1], layout)
        numbers, shrink, own = _numbers(y, half, norm, layout)
        z = kernels.normed(y, numbers, drop, layout)
        ctx.save_for_backward(x, y, z, half[0], *numbers, shrink)
        ctx.layout, ctx.drop, ctx.own = layout, drop, own
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, z, weight, *rest = ctx.saved_tensors
        back = _HalfGradient(Norm(*rest[:3]), rest[3], ctx.drop, ctx.layout, ctx.own)
        dy, _, vectors = back(y, z, grad.contiguous(), outer=False)
        dx = products.convolution_gradient(dy, weight, ctx.layout) if ctx.needs_input_grad[0] else None
        dw = products.weight_gradient(dy, x, weight, ctx.layout) if ctx.needs_input_grad[4] else None
        return dx, None, None, None, dw, *vectors


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layout: Layout, settings: list[tuple[MaskedBatchNorm2d, Drop]], *parameters: Tensor
    ) -> Tensor:
        first, second, around = _contiguous(parameters)
        y_1 = products.convolve(x, first[0], first[1], layout)
        norm_1, shrink_1, own_1 = _numbers(y_1, first, settings[0][0], layout)
        z_1 = kernels.normed(y_1, norm_1, settings[0][1], layout)
        y_2 = products.convolve(z_1, second[0], second[1], layout)
        norm_2, shrink_2, own_2 = _numbers(y_2, second, settings[1][0], layout)
        led = x if around is None else products.convolve(x, around[0], around[1], layout)
        out = kernels.normed(y_2, norm_2, settings[1][1], layout, around=led)
        weights = first[0], second[0], None if around is None else around[0]
        ctx.save_for_backward(x, y_1, z_1, y_2, out, *norm_1, shrink_1, *norm_2, shrink_2, *weights)
        ctx.layout, ctx.drops = layout, [drop for _, drop in settings]
        ctx.own = own_1, own_2
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y_1, z_1, y_2, out, *rest = ctx.saved_tensors
        layout: Layout = ctx.layout
        weight_1, weight_2, projection = rest[8:]
        outer = _HalfGradient(Norm(*rest[4:7]), rest[7], ctx.drops[1], layout, ctx.own[1])
        inner = _HalfGradient(Norm(*rest[:3]), rest[3], ctx.drops[0], layout, ctx.own[0])

        dy_2, through, vectors_2 = outer(y_2, out, grad.contiguous(), outer=True)
        dz_1 = products.convolution_gradient(dy_2, weight_2, layout)
        dy_1, _, vectors_1 = inner(y_1, z_1, dz_1, outer=False)
        dx, around = _led(ctx, x, through, projection)
        if ctx.needs_input_grad[0]:
            dx = products.convolution_gradient(dy_1, weight_1, layout, more=dx)
        dw_1 = products.weight_gradient(dy_1, x, weight_1, layout) if ctx.needs_input_grad[3] else None
        dw_2 = products.weight_gradient(dy_2, z_1, weight_2, layout) if ctx.needs_input_grad[7] else None
        return dx, None, None, dw_1, *vectors_1, dw_2, *vectors_2, *around


class _HalfGradient(NamedTuple):
    """The backward pass of one norm with what follows it; `own`: whose cells its statistics were, None where not a batch's."""

    norm: Norm
    shrink: Tensor
    drop: Drop
    layout: Layout
    own: _Cells | None

    def __call__(
        self, y: Tensor, z: Tensor, grad: Tensor, *, outer: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The gradient of y (N, C), what is led around (N, C), and those of bias, norm weight and norm bias (C,)."""
        sums = kernels.normed_sums(y, z, grad, self.norm.mean, self.drop, self.layout, outer=outer)
        plain, times, share = (sums.plain, sums.times, 0.0) if self.own is None else self.own.whole(sums)
        moved = plain * share, times * self.shrink.square() * share
        through = sums.through
        dy = kernels.normed_gradient(y, None if outer else z, through, self.norm, moved, self.drop, self.layout)
        # A batch's own statistics take a bias away again.
        bias = self.norm.scale * sums.plain if self.own is None else torch.zeros_like(sums.plain)
        return dy, through, (bias, sums.times * self.shrink, sums.plain)


def _led(
    ctx: Any, x: Tensor, through: Tensor, projection: Tensor | None
) -> tuple[Tensor | None, tuple[Tensor | None, Tensor | None]]:
    """What goes back around the block to x (N, I), and the gradients of the projection's weight and bias."""
    if projection is None:
        return through, (None, None)
    dx = products.convolution_gradient(through, projection, ctx.layout) if ctx.needs_input_grad[0] else None
    weight = products.weight_gradient(through, x, projection, ctx.layout) if ctx.needs_input_grad[11] else None
    return dx, (weight, through.sum(dim=0, dtype=torch.float32))


def _contiguous(
    parameters: tuple[Tensor | None, ...],
) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
    """The four parameters of each half, and the projection's two if there is one."""
    given = [tensor.contiguous() for tensor in parameters if tensor is not None]
    return given[:4], given[4:8], given[8:] or None


class _Cells(NamedTuple):
    """The `real` cells of a batch, of all `together`."""

    together: Processes
    real: int

    def whole(self, sums: kernels.NormSums) -> tuple[Tensor, Tensor, float]:
        """The sums over all these cells, (C,) each, and what makes means of them: 0 for a process whose cells do not count."""
        share = self.together.counts / self.real
        if self.together.alone:
            return sums.plain, sums.times, share
        both = torch.stack([sums.plain, sums.times])
        self.together.add_up([both])
        return both[0], both[1], share


def _numbers(
    y: Tensor, half: list[Tensor], norm: MaskedBatchNorm2d, layout: Layout
) -> tuple[Norm, Tensor, _Cells | None]:
    """The norm's numbers for `y` (N, C), running statistics moved, 1 / deviation (C,), and the cells they were taken of."""
    cells = None
    if norm.training:
        together, count = processes.current(), torch.tensor(layout.real)
        mean, squares = kernels.statistics(y, layout)
        if not together.alone:
            count, mean, squares = of_all(together, count, mean, squares)
        norm.track(count, mean, squares)
        cells = _Cells(together, int(count))
        variance = squares / cells.real
    else:
        mean, variance = norm.running_mean.clone(), norm.running_var
    shrink = torch.rsqrt(variance + norm.eps)
    return Norm(mean, half[2] * shrink, half[3]), shrink, cells
