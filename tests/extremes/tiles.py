"""The kernels on the processor's tile unit: products, and what adapters and low-rank changes add. Rows: 515, one, none."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from smoothtune.runtime.kernels import bottleneck, gemm
from smoothtune.runtime.kernels.bottleneck import Bottleneck, Run
from tests.extremes.cases import Result, case, numbers

ROWS = (515, 1, 0)
INSIDE, OUT, NARROW = 1056, 96, 32  # more than one chunk of blocks inside
BF16 = (torch.bfloat16,)


def _gemm(dtype: torch.dtype) -> bool:
    return gemm.available()


def _bottleneck(dtype: torch.dtype) -> bool:
    return bottleneck.available()


def _rounded(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """bfloat16 numbers, as all operands of tiles are."""
    return numbers(*shape, seed=seed, scale=scale).bfloat16()


@case(
    "gemm_pack_float", "gemm_pack_bf16", "gemm_multiply_float", "gemm_multiply_bf16",
    loaded=lambda dtype: gemm._loaded()[0], available=_gemm, dtypes=BF16,
)  # fmt: skip
def products(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for rows in ROWS:
        weight, bias = _rounded(OUT, INSIDE, seed=1), numbers(OUT, seed=2, scale=scale)
        x, g = _rounded(rows, INSIDE, seed=3, scale=scale), _rounded(rows, OUT, seed=4, scale=scale)
        for packed in (gemm.pack(weight), gemm.pack(weight.float())):
            for out_dtype in (torch.bfloat16, torch.float32):
                forward = gemm.multiply(x, packed, bias=bias, out_dtype=out_dtype)
                backward = gemm.multiply(g, packed, backward=True, out_dtype=out_dtype)
                plain, exact = (
                    (F.linear(x.to(wide), weight.to(wide), bias.to(wide)), g.to(wide) @ weight.to(wide))
                    for wide in (torch.float32, torch.float64)
                )
                yield Result(f"forward, {rows} rows, {out_dtype}", forward, plain[0].to(out_dtype), exact[0])
                yield Result(f"backward, {rows} rows, {out_dtype}", backward, plain[1].to(out_dtype), exact[1])


@case("gemm_multiply_both", loaded=lambda dtype: gemm._loaded()[0], available=_gemm, dtypes=BF16)
def two_products(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for rows in ROWS:
        weight, up = _rounded(OUT, INSIDE, seed=1), _rounded(OUT, NARROW, seed=2)
        x, h = _rounded(rows, INSIDE, seed=3, scale=scale), _rounded(rows, NARROW, seed=4, scale=scale)
        found = gemm.multiply_both(x, gemm.pack(weight), h, gemm.pack(up))
        plain, exact = (
            x.to(wide) @ weight.to(wide).T + h.to(wide) @ up.to(wide).T for wide in (torch.float32, torch.float64)
        )
        yield Result(f"{rows} rows", found, plain.to(dtype), exact)


@case("gemm_multiply_gelu", loaded=lambda dtype: gemm._loaded()[0], available=_gemm, dtypes=BF16)
def gelu_of_products(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for rows in ROWS:
        weight, bias = _rounded(OUT, INSIDE, seed=1, scale=INSIDE**-0.5), numbers(OUT, seed=2, scale=scale)
        x = _rounded(rows, INSIDE, seed=3, scale=scale)
        found = gemm.multiply_gelu(x, gemm.pack(weight), bias)
        plain, exact = (
            F.gelu(F.linear(x.to(wide), weight.to(wide), bias.to(wide))) for wide in (torch.float32, torch.float64)
        )
        yield Result(f"{rows} rows", found, plain.to(dtype), exact)


@case("gemm_weight_gradient", loaded=lambda dtype: gemm._loaded()[1], available=_gemm, dtypes=BF16)
def weight_gradients(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for rows in ROWS:
        g, x = _rounded(rows, OUT, seed=1), _rounded(rows, INSIDE, seed=2, scale=scale)
        plain, exact = (g.to(wide).T @ x.to(wide) for wide in (torch.float32, torch.float64))
        yield Result(f"{rows} rows", gemm.weight_gradient(g, x), plain, exact)
        start = numbers(OUT, INSIDE, seed=3, scale=scale)
        yield Result(
            f"added, {rows} rows", gemm.weight_gradient(g, x, start.clone()), plain + start, exact + start.double()
        )


def _part(scale: float, *, gelu: bool) -> tuple[Bottleneck, list[Tensor]]:
    """A part of width OUT, and W_down, b_down, W_up, b_up as it rounds them."""
    weights = [
        _rounded(NARROW, OUT, seed=1, scale=OUT**-0.5), numbers(NARROW, seed=2, scale=scale),
        _rounded(OUT, NARROW, seed=3, scale=NARROW**-0.5), numbers(OUT, seed=4, scale=scale),
    ]  # fmt: skip
    down, down_bias, up, up_bias = weights
    return Bottleneck(gemm.pack(down), gemm.pack(up), down_bias, up_bias, gelu=gelu), weights


def _through(x: Tensor, weights: list[Tensor], wide: torch.dtype, *, gelu: bool, rounded: bool) -> list[Tensor]:
    """`x` and what is added to it, and the gradients of it and of the narrow state, for a gradient of ones and minus ones."""
    down, down_bias, up, up_bias = (part.to(wide) for part in weights)
    leaf = x.to(wide).requires_grad_()
    narrow = F.linear(leaf, down, down_bias)
    narrow.retain_grad()
    state = F.gelu(narrow) if gelu else narrow
    state = state + (state.bfloat16().to(wide) - state).detach() if rounded else state
    out = leaf + F.linear(state, up, up_bias)
    out.backward(_upwards(x).to(wide))
    assert leaf.grad is not None
    assert narrow.grad is not None
    return [out.detach(), leaf.grad, narrow.grad]


def _upwards(x: Tensor) -> Tensor:
    return _rounded(*x.shape, seed=9).sign()


@case("bottleneck_add", loaded=lambda dtype: bottleneck._library(), available=_bottleneck, dtypes=BF16)
def bottlenecks(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    """The state between is rounded to bfloat16, as torch's would be."""
    for rows in ROWS:
        x = _rounded(rows, OUT, seed=5, scale=scale)
        for gelu in (False, True):
            part, weights = _part(scale, gelu=gelu)
            plain = _through(x, weights, torch.float32, gelu=gelu, rounded=True)
            exact = _through(x, weights, torch.float64, gelu=gelu, rounded=False)
            into = x.clone()
            bottleneck.add(x, into, [Run(0, rows, 0, part)])
            yield Result(f"added, gelu {gelu}, {rows} rows", into, plain[0].to(dtype), exact[0])
            if not gelu:
                continue
            out, between = bottleneck.through(x, part)
            back = bottleneck.back(_upwards(x), between.slope, part, x=True)
            assert back.x is not None
            yield Result(f"through, {rows} rows", out, plain[0].to(dtype), exact[0])
            yield Result(f"gradient of x, {rows} rows", back.x, plain[1].to(dtype), exact[1])
            narrow = plain[2].to(dtype)
            yield Result(f"gradient between, {rows} rows", back.state, narrow, exact[2])
            yield Result(f"its sum, {rows} rows", back.total, narrow.sum(dim=0).float(), exact[2].sum(dim=0))
