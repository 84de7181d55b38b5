"""The kernels of packed grids: 512 cells along a side, one cell, and none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from smoothtune.nn.grid import halve_grid
from smoothtune.runtime.kernels import grid, grid_products
from smoothtune.runtime.kernels.grid import Drop, Layout, Norm
from smoothtune.runtime.random import draws
from tests.extremes.cases import DTYPES, Result, case, numbers
from tests.test_kernels_grid import masks, packed, padded

SIZES = [[(512, 3), (1, 1), (0, 4), (20, 33)], [(1, 1)]]
WIDE = 32
STREAM, RATE = 0x1234567_89ABCDEF, 0.25


class _Grids:
    """Padded grids of some sizes whose numbers are of `dtype`, and how they lie packed."""

    def __init__(self, sizes: list[tuple[int, int]], dtype: torch.dtype) -> None:
        self.sizes, self.dtype = sizes, dtype
        sides = masks(sizes)
        self.cells = sides[0][:, None, :, None] & sides[1][:, None, None, :]
        self.layout: Layout = grid.lay_out(*sides, dtype)

    def drawn(self, channels: int, seed: int, scale: float = 1.0, far: float = 0.0) -> Tensor:
        """(B, C, H, W) float32, 0 outside real cells."""
        shape = (len(self.sizes), channels, *self.cells.shape[2:])
        return (numbers(*shape, seed=seed, scale=scale) + far).to(self.dtype).float() * self.cells

    def packed(self, padded_grid: Tensor) -> Tensor:
        return packed(padded_grid, self.layout)

    def padded(self, packed_grid: Tensor) -> Tensor:
        """In the type of the packed grid."""
        return padded(packed_grid, self.layout).to(packed_grid.dtype)

    def named(self, name: str) -> str:
        return f"{name}: {self.sizes}"


def _each(dtype: torch.dtype) -> Iterator[_Grids]:
    for sizes in SIZES:
        yield _Grids(sizes, dtype)


def _convolved(grids: _Grids, scale: float, taps: int, wide: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of what is convolved and of the weight."""
    x, weight, bias, gradient = _convolution(grids, scale, taps)
    leaf, matrix = x.to(wide).requires_grad_(), weight.to(wide).requires_grad_()
    out = F.conv2d(leaf, matrix, bias.to(wide), padding=taps // 2) * grids.cells
    out.backward(gradient.to(wide))
    assert leaf.grad is not None
    assert matrix.grad is not None
    return [out.detach(), leaf.grad * grids.cells, matrix.grad]


def _convolution(grids: _Grids, scale: float, taps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = numbers(WIDE, WIDE, taps, taps, seed=2).to(grids.dtype).float()
    return grids.drawn(WIDE, 1, scale), weight, numbers(WIDE, seed=3, scale=scale), grids.drawn(WIDE, 4)


def _convolutions(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for grids in _each(dtype):
        for taps in (3, 1):
            x, weight, bias, gradient = _convolution(grids, scale, taps)
            layout = grids.layout
            y = grid_products.convolve(grids.packed(x), weight, bias, layout)
            dx = grid_products.convolution_gradient(grids.packed(gradient), weight, layout)
            dw = grid_products.weight_gradient(grids.packed(gradient), grids.packed(x), weight, layout)
            exact, plain = (_convolved(grids, scale, taps, wide) for wide in (torch.float64, torch.float32))
            for name, found, other, reference in zip(("y", "dx"), (y, dx), plain, exact, strict=False):
                yield Result(grids.named(f"{name}, {taps}"), grids.padded(found), other.to(dtype), reference)
            yield Result(grids.named(f"dw, {taps}"), dw, plain[2], exact[2])


@case(
    "grid_pack",
    "grid_convolve",
    "grid_weight_gradient",
    loaded=partial(grid.library, "grid_convolution"),
    available=grid.available,
    dtypes=(torch.bfloat16,),
)
def convolutions_on_tiles(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    yield from _convolutions(scale, dtype)


@case(
    "grid_float_pack",
    "grid_float_convolve",
    "grid_float_weight_gradient",
    loaded=partial(grid.library, "grid_float"),
    available=grid.available,
    dtypes=(torch.float32,),
)
def convolutions_of_floats(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    yield from _convolutions(scale, dtype)


@case(
    "grid_columns", "grid_columns_back", loaded=partial(grid.library, "grid"), available=grid.available, dtypes=DTYPES
)
def columns(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for grids in _each(dtype):
        cube, upwards = grids.drawn(3, 1, scale).contiguous(), grids.drawn(grid.COLUMNS, 2)
        found = grid.columns_of(cube, grids.layout)
        back = grid.columns_gradient(grids.packed(upwards), grids.layout)
        results = []
        for wide in (torch.float32, torch.float64):
            leaf = cube.detach().to(wide).requires_grad_()
            seen = F.unfold(leaf, 3, padding=1).view(len(cube), 3, 9, *cube.shape[2:]).transpose(1, 2).flatten(1, 2)
            seen = F.pad(seen, [0, 0, 0, 0, 0, grid.COLUMNS - 27]) * grids.cells
            (seen * upwards.to(wide)).sum().backward()
            assert leaf.grad is not None
            results.append((seen.detach(), leaf.grad * grids.cells))
        yield Result(grids.named("columns"), grids.padded(found), results[0][0].to(dtype), results[1][0])
        yield Result(grids.named("gradient"), back, results[0][1], results[1][1])


@case("grid_statistics", loaded=partial(grid.library, "grid"), available=grid.available, dtypes=DTYPES)
def statistics(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    """Channels whose numbers are far from zero beside their spread too, and of equal numbers."""
    for grids in _each(dtype):
        for name, far, spread in (("random", 0.0, scale), ("far", 30 * scale, scale), ("constant", 30 * scale, 0.0)):
            y = grids.drawn(WIDE, 1, spread, far)
            mean, squares = grid.statistics(grids.packed(y), grids.layout)
            results = []
            for wide in (torch.float32, torch.float64):
                real = y.to(wide).permute(0, 2, 3, 1)[grids.cells[:, 0]]
                means = real.mean(dim=0)
                results.append((means, (real - means).square().sum(dim=0)))
            yield Result(grids.named(f"mean, {name}"), mean, results[0][0], results[1][0])
            # What a norm adds to the mean of squares, its eps, is what these are beside where there is no spread.
            least = max(float(results[1][1].norm()), 1e-5 * grids.layout.real * WIDE**0.5)
            yield Result(grids.named(f"squares, {name}"), squares, results[0][1], results[1][1], least)


def _keep(grids: _Grids, rate: float) -> Tensor:
    """The dropout's factors, (B, C, H, W)."""
    shape = len(grids.sizes), grids.layout.height, grids.layout.width, WIDE
    if not rate:
        return torch.ones(shape).permute(0, 3, 1, 2)
    drawn = draws(STREAM, shape[0] * shape[1] * shape[2], WIDE) >= round(rate * 65536)
    return (torch.from_numpy(drawn).view(shape) / (1 - rate)).permute(0, 3, 1, 2)


@case(
    "grid_norm",
    "grid_norm_sums",
    "grid_norm_back",
    loaded=partial(grid.library, "grid"),
    available=grid.available,
    dtypes=DTYPES,
)
def norms(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for grids in _each(dtype):
        for rate in (0.0, RATE):
            for outer in (False, True):
                yield from _norm(grids, scale, rate, outer=outer)


def _norm(grids: _Grids, scale: float, rate: float, *, outer: bool) -> Iterator[Result]:
    y, around, upwards = grids.drawn(WIDE, 1, scale), grids.drawn(WIDE, 2), grids.drawn(WIDE, 3)
    vectors = [numbers(WIDE, seed=4, scale=scale), numbers(WIDE, seed=5) / scale, numbers(WIDE, seed=6)]
    level, slope = numbers(WIDE, seed=7) / 8, numbers(WIDE, seed=8) / 8 / scale
    layout, drop, keep = grids.layout, Drop(rate, STREAM), _keep(grids, rate)
    flat, norm = grids.packed(y), Norm(*vectors)
    z = grid.normed(flat, norm, drop, layout, around=grids.packed(around) if outer else None)
    sums = grid.normed_sums(flat, z, grids.packed(upwards), norm.mean, drop, layout, outer=outer)
    back = grid.normed_gradient(flat, None if outer else z, sums.through, norm, (level, slope), drop, layout)

    def plainly(wide: torch.dtype) -> list[Tensor]:
        mean, scales, bias, levels, slopes = (part.to(wide).view(1, -1, 1, 1) for part in (*vectors, level, slope))
        centred = (y.to(wide) - mean) * grids.cells
        normed = (centred * scales + bias) * keep.to(wide)
        out = F.relu(normed + around.to(wide) if outer else normed) * grids.cells
        through = upwards.to(wide) * (grids.padded(z) > 0)  # the kernel's own answer says where the ReLU is open
        d = through * keep.to(wide) * grids.cells
        moved = scales * (d - levels - centred * slopes) * grids.cells
        return [out, d.sum(dim=(0, 2, 3)), (d * centred).sum(dim=(0, 2, 3)), moved]

    exact, plain = plainly(torch.float64), plainly(torch.float32)
    found = [grids.padded(z), sums.plain, sums.times, grids.padded(back)]
    for number, name in enumerate(("z", "sum", "sum of products", "gradient")):
        other = plain[number].to(grids.dtype) if found[number].dim() == 4 else plain[number]
        yield Result(grids.named(f"{name}, dropout {rate}, outer {outer}"), found[number], other, exact[number])


@case(
    "grid_largest", "grid_largest_back", loaded=partial(grid.library, "grid"), available=grid.available, dtypes=DTYPES
)
def largest(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    """Of an example without cells it is 0, the zeros around it: there is nothing to choose from."""
    for grids in _each(dtype):
        y, upwards = grids.drawn(WIDE, 1, scale), numbers(len(grids.sizes), WIDE, seed=2).to(dtype).float()
        found, where = grid.largest(grids.packed(y), grids.layout)
        back = grid.largest_gradient(upwards, where, grids.layout)
        leaf = y.double().requires_grad_()
        empty = ~grids.cells.flatten(1).any(dim=1)
        exact = leaf.masked_fill(~grids.cells, -torch.inf).flatten(2).max(dim=2).values.masked_fill(empty[:, None], 0)
        (exact * upwards).sum().backward()
        assert leaf.grad is not None
        yield Result(grids.named("largest"), found, exact.detach().float(), exact.detach())
        yield Result(
            grids.named("gradient"), grids.padded(back), (leaf.grad * grids.cells).to(dtype), leaf.grad * grids.cells
        )


@case("grid_halve", "grid_halve_back", loaded=partial(grid.library, "grid"), available=grid.available, dtypes=DTYPES)
def halved(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for grids in _each(dtype):
        y = grids.drawn(WIDE, 1, scale)
        flat = grids.packed(y)
        found = grid.halved(flat, grids.layout)
        upwards = numbers(*found.shape, seed=2).to(dtype)
        back = grid.halved_gradient(flat, upwards, grids.layout)
        leaf = y.double().requires_grad_()
        exact, _ = halve_grid(leaf, grids.cells)
        exact.backward(upwards.double().permute(0, 3, 1, 2))
        assert leaf.grad is not None
        gradient = leaf.grad * grids.cells
        yield Result(grids.named("halves"), found.permute(0, 3, 1, 2), exact.detach().to(dtype), exact.detach())
        yield Result(grids.named("gradient"), grids.padded(back), gradient.to(dtype), gradient)
