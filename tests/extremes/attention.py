"""The attention kernels: rows of 512 tokens, of one and of none."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smoothtune.runtime.kernels import attention
from tests.extremes.cases import Result, case, numbers

LENGTHS = (512, 0, 1, 33, 1, 0, 16)
HEADS, SIZE = 2, 32
WIDE = HEADS * SIZE
NAMES = "qkv", "bias"


def _inputs(scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, bias and the gradient of what attention makes of them; queries and keys alone are scaled."""
    tokens = sum(LENGTHS)
    sizes = torch.tensor([scale, scale, 1.0]).repeat_interleave(WIDE)
    qkv, bias = numbers(tokens, 3 * WIDE, seed=1) * sizes, numbers(3 * WIDE, seed=2) * sizes
    return qkv.to(dtype), bias, numbers(tokens, WIDE, seed=3).to(dtype)


def _plainly(qkv: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """Mixed values and the gradients of qkv and bias, step by step, in the type of `qkv`."""
    leaf, vector = qkv.detach().requires_grad_(), bias.to(qkv.dtype).requires_grad_()
    mixed = []
    for row in (leaf + vector).split(LENGTHS):
        query, key, value = row.view(len(row), 3, HEADS, SIZE).permute(1, 2, 0, 3)
        probabilities = (query @ key.transpose(1, 2) * SIZE**-0.5).softmax(-1)
        mixed.append((probabilities @ value).transpose(0, 1).reshape(len(row), WIDE))
    out = torch.cat(mixed)
    out.backward(gradient.to(qkv.dtype))
    assert leaf.grad is not None
    assert vector.grad is not None
    return [out.detach(), leaf.grad, vector.grad]


@case(
    "attention",
    "attention_forward_{T}",
    "attention_backward_{T}",
    available=lambda dtype: attention.available(),
)
def forward_and_backward(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    """bfloat16 is compared with torch in float32 on the same rounded numbers: results are rounded to it, sums are not."""
    qkv, bias, gradient = _inputs(scale, dtype)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    options = {"heads": HEADS, "width": max(LENGTHS), "rate": 0.0, "stream": 0}
    mixed, peaks = attention.attention_forward(qkv, bias, starts, **options)
    dqkv, dbias = attention.attention_backward(gradient, qkv, bias, peaks, starts, **options)
    exact, plain = (_plainly(qkv.to(wide), bias, gradient) for wide in (torch.float64, torch.float32))
    plain = [part.to(dtype) for part in plain[:2]] + plain[2:]
    yield Result("mixed", mixed, plain[0], exact[0])
    for name, *three in zip(("dq", "dk", "dv"), *(part.chunk(3, 1) for part in (dqkv, plain[1], exact[1])), strict=True):
        yield Result(name, *three)
    for name, *three in zip(("q", "v"), *((part[:WIDE], part[2 * WIDE :]) for part in (dbias, plain[2], exact[2])), strict=True):
        yield Result(f"bias of {name}", *three)
