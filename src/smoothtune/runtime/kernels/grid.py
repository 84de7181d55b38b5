"""The kernels of `grid.cpp` on torch tensors: what stands between the convolutions of packed grids, and how such grids lie.

A packed grid is (N, C) T, bfloat16 or float32, contiguous: the real cells of a batch of grids, each example of its own height and
width, with zeros between them (see `grid.h`). Vectors (C,), weights (O, I, k, k) and their gradients are float32. Knows
nothing of modules or gradients' bookkeeping.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from smoothtune.runtime.kernels.building import kernels

COLUMNS = 32  # width of the columns of a cube: nine neighbours times three channels, and zeros
_SIGNATURES = {
    "grid": {
        "grid_columns": "iplpllp",
        "grid_columns_back": "iplpllp",
        "grid_statistics": "ipllplppp",
        "grid_norm": "iplppppufllplp",
        "grid_norm_sums": "iplppppuflllppp",
        "grid_norm_back": "iplpppppppuflllp",
        "grid_largest": "iplplpp",
        "grid_largest_back": "iplpplp",
        "grid_halve": "iplplllp",
        "grid_halve_back": "iplpplllp",
    },
    "grid_convolution": {
        "grid_pack": "plllip",
        "grid_convolve": "plppppplll",
        "grid_workspace": "pllll",
        "grid_weight_gradient": "pllpppplll",
    },
    "grid_float": {
        "grid_float_pack": "plllip",
        "grid_float_convolve": "plppppplll",
        "grid_float_weight_gradient": "plpppplll",
    },
}
_TYPES = {
    "i": ctypes.c_int,
    "p": ctypes.c_void_p,
    "f": ctypes.c_float,
    "u": ctypes.c_uint64,
    "l": ctypes.c_int64,
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the cells of a batch of grids lie: `table` (B, 4) int32 as in `grid.h`, N `cells`, of which `real` are real.

    Grids laid out so are of `dtype`.
    `height` and `width` are those of the padded grid, whose cells number the dropout's draws.
    """

    table: Tensor
    cells: int
    real: int
    height: int
    width: int
    dtype: torch.dtype

    def grid(self, channels: int) -> Tensor:
        """An unset packed grid (N, C)."""
        return torch.empty(self.cells, channels, dtype=self.dtype)

    @property
    def head(self) -> tuple[int, int]:
        """What every kernel is given first: the table and the number of examples."""
        return self.table.data_ptr(), len(self.table)

    @property
    def whole_head(self) -> tuple[int, int, int]:
        """What kernels for both dtypes are given first: whether grids are bfloat16, and `head`."""
        return int(self.dtype == torch.bfloat16), *self.head


class Drop(NamedTuple):
    """Dropout of one place: its rate (0: none) and the stream of its draws."""

    rate: float
    stream: int


class Norm(NamedTuple):
    """A batch norm's numbers for one batch, (C,) each: (y - mean) * scale + bias."""

    mean: Tensor
    scale: Tensor
    bias: Tensor


@cache
def available(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether there are kernels for grids of `dtype` and a processor for them: AMX tiles for bfloat16, AVX-512 for float32."""
    asked = {
        torch.bfloat16: ("grid_convolution", "grid_available"),
        torch.float32: ("grid_float", "grid_float_available"),
    }
    name, answer = asked.get(dtype, ("", ""))
    products = kernels(name) if name else None
    # Asked first: for a processor without AVX-512 nothing of `grid.cpp` is compiled.
    return products is not None and bool(getattr(products, answer)()) and kernels("grid") is not None


@cache
def library(name: str, dtype: torch.dtype) -> ctypes.CDLL:
    """The functions of `NAME.cpp`, which work on grids of `dtype`."""
    found = kernels(name) if available(dtype) else None
    assert found is not None, "ask `available` first"
    for function, letters in _SIGNATURES[name].items():
        entry = getattr(found, function)
        entry.argtypes = [_TYPES[letter] for letter in letters]
        entry.restype = ctypes.c_int64 if function == "grid_workspace" else None
    return found


def _norms(layout: Layout) -> ctypes.CDLL:
    return library("grid", layout.dtype)


def lay_out(mask_a: Tensor, mask_b: Tensor, dtype: torch.dtype = torch.bfloat16) -> Layout:
    """The layout of the grids, of `dtype`, of pairs whose real tokens stand first: `mask_a` (B, Ta), `mask_b` (B, Tb), B > 0."""
    sizes = list(zip(mask_a.sum(dim=1).tolist(), mask_b.sum(dim=1).tolist(), strict=True))
    rows: list[list[int]] = []
    free, before = 0, 0
    for height, width in sizes:
        first = _whole(free + max(before, width) + 2)
        free, before = first + height * (width + 1), width
        rows.append([height, width, first, _whole(free)])
    rows[-1][3] = _whole(rows[-1][3] + before + 5)
    real = sum(height * width for height, width in sizes)
    return Layout(torch.tensor(rows, dtype=torch.int32), rows[-1][3], real, mask_a.shape[1], mask_b.shape[1], dtype)


def _whole(cells: int) -> int:
    """`cells` rounded up to whole tiles."""
    return -(-cells // 32) * 32


def columns_of(cube: Tensor, layout: Layout) -> Tensor:
    """Each real cell's nine neighbours, (N, 32): `cube` (B, 3, H, W) float32, contiguous."""
    out = layout.grid(COLUMNS)
    _norms(layout).grid_columns(*layout.whole_head, cube.data_ptr(), layout.height, layout.width, out.data_ptr())
    return out


def columns_gradient(grad: Tensor, layout: Layout) -> Tensor:
    """The gradient (B, 3, H, W) of the cube from that of its columns (N, 32)."""
    out = torch.empty(len(layout.table), 3, layout.height, layout.width)
    _norms(layout).grid_columns_back(*layout.whole_head, grad.data_ptr(), layout.height, layout.width, out.data_ptr())
    return out


def statistics(y: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Means and sums of squared differences from them over real cells, (C,) each: `y` (N, C)."""
    width = y.shape[1]
    parts, found = torch.empty(len(layout.table), width), torch.empty(2, width)
    mean, squares = found.unbind(0)
    _norms(layout).grid_statistics(
        *layout.whole_head, layout.real, y.data_ptr(), width, parts.data_ptr(), mean.data_ptr(), squares.data_ptr()
    )
    return mean, squares


def normed(y: Tensor, norm: Norm, drop: Drop, layout: Layout, *, around: Tensor | None = None) -> Tensor:
    """Dropout(ReLU(norm(y))), or with `around` ReLU(dropout(norm(y)) + around); all (N, C)."""
    z = torch.empty_like(y)
    _norms(layout).grid_norm(
        *layout.whole_head, y.data_ptr(), norm.mean.data_ptr(), norm.scale.data_ptr(), norm.bias.data_ptr(),
        drop.stream, drop.rate, layout.height, layout.width,
        _address(around), y.shape[1], z.data_ptr(),
    )  # fmt: skip
    return z


class NormSums(NamedTuple):
    """Sums over real cells of d and of d * (y - mean), (C,) each, d being the gradient at the norm's output.

    `through` (N, C) is the gradient that `normed_gradient` takes up.
    """

    plain: Tensor
    times: Tensor
    through: Tensor


def normed_sums(
    y: Tensor, z: Tensor, grad: Tensor, mean: Tensor, drop: Drop, layout: Layout, *, outer: bool
) -> NormSums:
    """First half of the gradient of `normed`: `y`, its result `z`, and the result's gradient, (N, C) each.

    `outer` says that there was an `around`, whose gradient is then `through`.
    """
    width = y.shape[1]
    parts, sums = torch.empty(len(layout.table), 2, width), torch.empty(2, width)
    passed = torch.empty_like(y) if outer else None
    _norms(layout).grid_norm_sums(
        *layout.whole_head, y.data_ptr(), z.data_ptr(), grad.data_ptr(), mean.data_ptr(),
        drop.stream, drop.rate, layout.height, layout.width, width, _address(passed), parts.data_ptr(), sums.data_ptr(),
    )  # fmt: skip
    return NormSums(sums[0], sums[1], grad if passed is None else passed)


def normed_gradient(
    y: Tensor, z: Tensor | None, through: Tensor, norm: Norm, moved: tuple[Tensor, Tensor], drop: Drop, layout: Layout
) -> Tensor:
    """Second half: scale * (d - level - (y - mean) * slope), (N, C), `moved` being level and slope, (C,) each.

    `z` is what `normed` gave if there was no `around`, else None.
    """
    out = torch.empty_like(y)
    _norms(layout).grid_norm_back(
        *layout.whole_head, y.data_ptr(), _address(z), through.data_ptr(), norm.mean.data_ptr(), norm.scale.data_ptr(),
        moved[0].data_ptr(), moved[1].data_ptr(), drop.stream, drop.rate, layout.height, layout.width,
        y.shape[1], out.data_ptr(),
    )  # fmt: skip
    return out


def largest(grid: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The largest number of each channel over real cells, (B, C) float32, and its cell, (B, C) int32."""
    shape = len(layout.table), grid.shape[1]
    highest, where = torch.empty(shape), torch.empty(shape, dtype=torch.int32)
    _norms(layout).grid_largest(
        *layout.whole_head, grid.data_ptr(), grid.shape[1], highest.data_ptr(), where.data_ptr()
    )
    return highest, where


def largest_gradient(grad: Tensor, where: Tensor, layout: Layout) -> Tensor:
    """The gradient (N, C) of the grid from that of `largest`, (B, C) float32."""
    out = layout.grid(grad.shape[1])
    _norms(layout).grid_largest_back(
        *layout.whole_head, grad.data_ptr(), where.data_ptr(), grad.shape[1], out.data_ptr()
    )
    return out


def halved(grid: Tensor, layout: Layout) -> Tensor:
    """Max pooling 2 x 2 over real cells: `grid` (N, C) to a padded (B, ceil(H / 2), ceil(W / 2), C), 0 elsewhere."""
    sides = -(-layout.height // 2), -(-layout.width // 2)
    out = torch.empty(len(layout.table), *sides, grid.shape[1], dtype=grid.dtype)
    _norms(layout).grid_halve(*layout.whole_head, grid.data_ptr(), grid.shape[1], *sides, out.data_ptr())
    return out


def halved_gradient(grid: Tensor, grad: Tensor, layout: Layout) -> Tensor:
    """The gradient (N, C) of `grid` (N, C) from that of `halved`, which has its shape."""
    out = torch.empty_like(grid)
    _norms(layout).grid_halve_back(
        *layout.whole_head,
        grid.data_ptr(),
        grad.data_ptr(),
        grid.shape[1],
        grad.shape[1],
        grad.shape[2],
        out.data_ptr(),
    )
    return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
