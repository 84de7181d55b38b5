"""The kernels of `grid_convolution.cpp` and `grid_float.cpp` on torch tensors: convolutions over packed grids, with gradients.

Grids are as in `grid`; weights (O, I, k, k) and their gradients are float32. Knows nothing of modules or norms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.runtime.kernels.grid import Layout, library


def convolve(x: Tensor, weight: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """`x` (N, I) and `weight` (O, I, k, k), k 1 or 3, to (N, O), of no meaning where cells are not real."""
    return _product(x, weight, (bias, None), layout, backward=False)


def convolution_gradient(grad: Tensor, weight: Tensor, layout: Layout, *, more: Tensor | None = None) -> Tensor:
    """The gradient (N, I) of what `weight` (O, I, k, k) convolved from that of the result, `grad` (N, O), plus `more`."""
    return _product(grad, weight, (None, more), layout, backward=True)


def _product(
    x: Tensor, weight: Tensor, added: tuple[Tensor | None, Tensor | None], layout: Layout, *, backward: bool
) -> Tensor:
    out, entering, taps = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    packed = torch.empty(weight.numel(), dtype=layout.dtype)
    reads, writes = (out, entering) if backward else (entering, out)
    y = layout.grid(writes)
    if layout.dtype == torch.float32:
        functions = library("grid_float", layout.dtype)
        pack, convolved = functions.grid_float_pack, functions.grid_float_convolve
    else:
        functions = library("grid_convolution", layout.dtype)
        pack, convolved = functions.grid_pack, functions.grid_convolve
    pack(weight.data_ptr(), out, entering, taps, backward, packed.data_ptr())
    convolved(
        *layout.head, x.data_ptr(), packed.data_ptr(), _address(added[0]), _address(added[1]), y.data_ptr(),
        taps, reads, writes,
    )  # fmt: skip
    return y


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """The gradient of `weight` (O, I, k, k) from that of the result (N, O) and what was convolved, `x` (N, I)."""
    out, entering, taps = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    gradient = torch.empty(weight.shape)
    if layout.dtype == torch.float32:
        sums = torch.empty(weight.numel())
        library("grid_float", layout.dtype).grid_float_weight_gradient(
            *layout.head, grad.data_ptr(), x.data_ptr(), sums.data_ptr(), gradient.data_ptr(), taps, entering, out
        )
        return gradient
    functions = library("grid_convolution", layout.dtype)
    space = torch.empty(functions.grid_workspace(*layout.head, taps, entering, out), dtype=torch.uint8)
    functions.grid_weight_gradient(
        *layout.head, layout.cells, grad.data_ptr(), x.data_ptr(), space.data_ptr(), gradient.data_ptr(),
        taps, entering, out,
    )  # fmt: skip
    return gradient


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
