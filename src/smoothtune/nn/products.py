"""Matrix products with a weight that is cast (and packed for the processor) once per change, with gradients.

Knows nothing of layers. Weights are float32 parameters (M, K); products run in the dtype of what is multiplied.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from smoothtune.runtime.kernels import gemm

# Tiles make products of weights whose sizes are multiples of this.
BLOCK = gemm.BLOCK


class Prepared(Protocol):
    """A weight made ready for products in one dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """X W^T: (N, K) to (N, M)."""
        ...

    def backward(self, gradient: Tensor) -> Tensor:
        """G W: (N, M) to (N, K)."""
        ...

    def weight_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """g^T x, float32: (N, M) and (N, K) to (M, K)."""
        ...


class PlainWeight:
    """A weight in the dtype of its products, multiplied by torch."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self._weight = weight.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """See `Prepared.forward`."""
        return torch.mm(x, self._weight.t())

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Prepared.backward`."""
        return torch.mm(gradient, self._weight)

    def weight_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """See `Prepared.weight_gradient`."""
        return torch.mm(gradient.t(), x).float()


class TiledWeight:
    """A bfloat16 weight packed for the tile unit of the processor."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = gemm.pack(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """See `Prepared.forward`."""
        return gemm.multiply(x, self._packed)

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Prepared.backward`."""
        return gemm.multiply(gradient, self._packed, backward=True)

    def weight_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """See `Prepared.weight_gradient`."""
        return gemm.weight_gradient(gradient, x)

    def both(self, x: Tensor, h: Tensor, narrow: gemm.PackedWeight, *, backward: bool = False) -> Tensor:
        """The product `forward` or `backward` makes of `x`, and that of `h` with another weight added before rounding."""
        return gemm.multiply_both(x, self._packed, h, narrow, backward=backward)

    def gelu(self, x: Tensor, bias: Tensor) -> Tensor:
        """The GELU of X W^T + b, taken of the float32 sums: `x` (N, K) and `bias` (M,) float32 to (N, M)."""
        return gemm.multiply_gelu(x, self._packed, bias)


_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def prepared(weight: Tensor, dtype: torch.dtype) -> Prepared:
    """`weight` (M, K) ready for products in `dtype`; made anew whenever the weight has changed."""
    version = None if weight.is_inference() else weight._version
    known: dict[torch.dtype, tuple[int | None, Prepared]] | None = _prepared.get(weight)  # type: ignore[no-untyped-call]
    if known is None:
        known = {}
        _prepared[weight] = known
    last = known.get(dtype)
    if last is not None and version is not None and last[0] == version:
        return last[1]
    tiled = dtype == torch.bfloat16 and weight.is_contiguous() and gemm.available() and gemm.fits(*weight.shape)
    made = TiledWeight(weight) if tiled else PlainWeight(weight, dtype)
    known[dtype] = (version, made)
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, made: Prepared) -> Tensor:
        ctx.save_for_backward(x)
        ctx.made = made
        return made.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        dx = ctx.made.backward(gradient) if ctx.needs_input_grad[0] else None
        dw = ctx.made.weight_gradient(gradient, x) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def product(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T in the dtype of `x`, bias left to what follows: `x` (N, K) contiguous, `weight` (M, K) float32, to (N, M)."""
    made = prepared(weight, x.dtype)
    if torch.is_inference_mode_enabled():
        return made.forward(x)
    found: Tensor = _Product.apply(x, weight, made)  # type: ignore[no-untyped-call]
    return found


def on_tiles(x: Tensor, *sizes: int) -> bool:
    """Whether products of `x` with weights of these sizes are made by tiles."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not gemm.available():
        return False
    return all(size % BLOCK == 0 for size in sizes)


def in_prediction(x: Tensor, weight: Tensor) -> TiledWeight | None:
    """The packed `weight` where products of `x` are made by tiles and no gradient can be asked for, else None.

    There more may be done to the sums before they are rounded; elsewhere a pass with gradients equals one without.
    """
    made = prepared(weight, x.dtype) if torch.is_inference_mode_enabled() else None
    return made if isinstance(made, TiledWeight) else None
