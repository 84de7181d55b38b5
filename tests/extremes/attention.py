"""The attention kernels: rows of 512 tokens, of one and of none."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smoothtune.runtime.kernels import attention
from tests.extremes.cases import ROUNDING, Result, case, numbers

LENGTHS = (512, 0, 1, 33, 1, 0, 16)
HEADS, SIZE = 2, 32
WIDE = HEADS * SIZE


def _inputs(scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, bias and the gradient of what attention makes of them; queries and keys alone are scaled.

    Keys come in pairs, so that the largest score, however large, has two keys and gradients are not all 0. bfloat16 has no
    bias: its sum with a number would be rounded, which at these sizes decides which key is the largest.
    """
    tokens, sizes = sum(LENGTHS), torch.tensor([scale, scale, 1.0]).repeat_interleave(WIDE)
    qkv = numbers(tokens, 3 * WIDE, seed=1) * sizes
    qkv[1::2, WIDE : 2 * WIDE] = qkv[: tokens // 2 * 2 : 2, WIDE : 2 * WIDE]
    bias = numbers(3 * WIDE, seed=2) * sizes * (dtype == torch.float32)
    return qkv.to(dtype), bias, numbers(tokens, WIDE, seed=3).to(dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as `dtype` holds it; gradients pass."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


def _plainly(
    qkv: Tensor, bias: Tensor, gradient: Tensor, wide: torch.dtype, between: torch.dtype | None = None
) -> list[Tensor]:
    """Mixed values and the gradients of qkv and bias, computed in `wide` step by step.

    What torch hands from product to product in `between` is rounded to that: biased numbers, probabilities, gradients of scores.
    """
    leaf, vector = qkv.to(wide, copy=True).requires_grad_(), bias.to(wide, copy=True).requires_grad_()
    narrow = between or wide
    mixed = []
    for row in _rounded(leaf + vector, narrow).split(LENGTHS):
        query, key, value = row.view(len(row), 3, HEADS, SIZE).permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) * SIZE**-0.5
        scores.register_hook(lambda part: part.to(narrow).to(wide))
        probabilities = _rounded(scores.softmax(-1), narrow)
        mixed.append((probabilities @ value).transpose(0, 1).reshape(len(row), WIDE))
    out = torch.cat(mixed)
    out.backward(gradient.to(wide))
    assert leaf.grad is not None
    assert vector.grad is not None
    return [out.detach(), leaf.grad, vector.grad]


@case(
    "attention_forward_{T}",
    "attention_backward_{T}",
    loaded=lambda dtype: attention._library(),
    available=lambda dtype: attention.available(),
)
def forward_and_backward(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    qkv, bias, gradient = _inputs(scale, dtype)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    options = {"heads": HEADS, "width": max(LENGTHS), "rate": 0.0, "stream": 0}
    mixed, peaks = attention.attention_forward(qkv, bias, starts, **options)
    dqkv, dbias = attention.attention_backward(gradient, qkv, bias, peaks, starts, **options)
    exact = _plainly(qkv, bias, gradient, torch.float64)
    plain = _plainly(qkv, bias, gradient, torch.float32, dtype)
    plain = [part.to(dtype) for part in plain[:2]] + plain[2:]
    yield Result("mixed", mixed, plain[0], exact[0])
    parts = [tuple(part.chunk(3, -1) for part in side[1:]) for side in ((mixed, dqkv, dbias), plain, exact)]
    size = float(exact[1].norm())  # gradients of queries cancel in pairs
    for number, name in enumerate("qkv"):
        yield Result(f"d{name}", *(side[0][number] for side in parts), size if name == "q" else None)
    # Of the bias of keys there is no gradient but rounding; that of queries is a sum of products of rounded numbers.
    rounded = ROUNDING[dtype] if dtype == torch.bfloat16 else None
    yield Result("bias of q", *(side[1][0] for side in parts), size, rounded)
    yield Result("bias of v", *(side[1][2] for side in parts))
