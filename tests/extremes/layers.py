"""The kernels around the matrix products: norms, activations, embeddings, masks. Rows: 515, one, none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from smoothtune.runtime.kernels import layers
from smoothtune.runtime.kernels.layers import Drop
from smoothtune.runtime.random import draws
from tests.extremes.cases import Result, case, numbers

ROWS = (515, 1, 0)
WIDE = 72  # whole vectors and a rest
EPS = 1e-12
STREAM, RATE = 0x1234567_89ABCDEF, 0.25


def _available(dtype: torch.dtype) -> bool:
    return layers.available()


def _mask(rows: int) -> Tensor:
    return torch.from_numpy(draws(STREAM, rows, WIDE) >= round(RATE * 65536)) / (1 - RATE)


class _Norm(NamedTuple):
    """Inputs of dropout(y + bias) + x, normalised: `weight` and `shift` (D,), `gradient` of the result."""

    y: Tensor
    bias: Tensor
    x: Tensor
    weight: Tensor
    shift: Tensor
    gradient: Tensor

    def plainly(self, wide: torch.dtype, keep: Tensor, *, rounded: bool) -> list[Tensor]:
        """The result, and the gradients of x, y, weight, shift and bias; `rounded`: as of a sum in the type of x and y."""
        y, bias, x, weight, shift = leaves = [part.to(wide).requires_grad_() for part in self[:5]]
        z = (y + bias) * keep.to(wide) + x
        z = z + (z.to(self.x.dtype) - z).detach() if rounded else z
        out = F.layer_norm(z, [WIDE], weight, shift, EPS)
        out.backward(self.gradient.to(wide))
        grads = {id(leaf): leaf.grad for leaf in leaves}
        return [out.detach(), *(grads[id(leaf)] for leaf in (x, y, weight, shift, bias))]


def _rows(kind: str, rows: int, scale: float) -> tuple[Tensor, Tensor]:
    """`y` and `x`: random, or far from zero beside their spread, or equal in all columns, which leaves the norm's eps alone."""
    if kind == "constant":
        return torch.zeros(rows, WIDE), numbers(rows, 1, seed=2, scale=scale).expand(-1, WIDE).contiguous()
    far = 30.0 * scale if kind == "far" else 0.0
    return numbers(rows, WIDE, seed=1, scale=scale), numbers(rows, WIDE, seed=2, scale=scale) + far


def _norm(kind: str, rows: int, scale: float, dtype: torch.dtype) -> _Norm:
    y, x = _rows(kind, rows, scale)
    bias = numbers(WIDE, seed=3, scale=0.0 if kind == "constant" else scale)
    return _Norm(
        y.to(dtype), bias, x.to(dtype), 1 + numbers(WIDE, seed=4) / 4, numbers(WIDE, seed=5),
        numbers(rows, WIDE, seed=6).to(dtype),
    )  # fmt: skip


@case("residual_norm_forward_", "residual_norm_backward_", loaded=lambda dtype: layers._library(), available=_available)
def residual_norm(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for kind in ("random", "far", "constant"):
        for rows in ROWS:
            for rate in (0.0, RATE):
                yield from _residual_norm(_norm(kind, rows, scale, dtype), rate, f"{kind}, {rows} rows, dropout {rate}")


def _residual_norm(inputs: _Norm, rate: float, name: str) -> Iterator[Result]:
    rows, dtype = len(inputs.y), inputs.y.dtype
    drop = Drop(rate, STREAM, torch.arange(rows))
    keep = _mask(rows) if rate else torch.ones(rows, WIDE)
    normed = layers.residual_norm(*inputs[:5], EPS, drop)
    again = layers.residual_normed(*inputs[:5], EPS, drop)
    assert torch.equal(normed.out, again)
    back = layers.residual_norm_gradient(
        inputs.gradient, (normed.z, normed.mean, normed.rstd), inputs.weight, drop, norm=True, bias=True
    )
    found = [normed.out, *back]
    exact, plain = inputs.plainly(torch.float64, keep, rounded=False), inputs.plainly(torch.float32, keep, rounded=True)
    names = ("out", "dx", "dy", "dweight", "dshift", "dbias")
    for part, one, other, reference in zip(names, found, plain, exact, strict=True):
        added = float(inputs.gradient.norm()) if part == "dweight" else None  # of a row of equal numbers it is 0
        yield Result(f"{part}: {name}", one, other.to(dtype) if part in names[:3] else other, reference, added)


def _activated(u: Tensor, bias: Tensor, gradient: Tensor, kind: str, wide: torch.dtype) -> list[Tensor]:
    """The activation of u + bias, and the gradients of both."""
    functions = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
    leaf, vector = u.to(wide).requires_grad_(), bias.to(wide).requires_grad_()
    out = functions[kind](leaf + vector)
    out.backward(gradient.to(wide))
    assert leaf.grad is not None
    assert vector.grad is not None
    if wide == torch.float64:
        return [out.detach(), leaf.grad, vector.grad]
    narrow = leaf.grad.to(u.dtype)
    return [out.detach().to(u.dtype), narrow, narrow.sum(dim=0).float()]  # a sum of rounded numbers, itself rounded


@case("activation_forward_", "activation_backward_", loaded=lambda dtype: layers._library(), available=_available)
def activation(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    """The tails too, where nothing but the smallest part of a GELU is left."""
    for kind in layers.ACTIVATIONS:
        for rows in ROWS:
            for where in ("random", "tail"):
                u = numbers(rows, WIDE, seed=1, scale=scale)
                u = (-3.0 * scale - u.abs() if where == "tail" else u).to(dtype)
                bias, gradient = numbers(WIDE, seed=2) / 8, numbers(rows, WIDE, seed=3).to(dtype)
                exact, plain = (_activated(u, bias, gradient, kind, wide) for wide in (torch.float64, torch.float32))
                out, slope = layers.activation(u, bias, kind, with_slope=True)
                assert slope is not None
                assert torch.equal(layers.activation(u, bias, kind, with_slope=False)[0], out)
                du, dbias = layers.activation_gradient(gradient, slope, bias=True)
                assert dbias is not None
                name = f"{kind}, {where}, {rows} rows"
                # Beside numbers of this size nothing smaller is left of a sum with one.
                least = [2.0**-24 * float(part.double().norm()) for part in (u.detach(), gradient, gradient)]
                for part, size, *three in zip(
                    ("out", "du", "dbias"), least, (out, du, dbias), plain, exact, strict=True
                ):
                    yield Result(f"{part}: {name}", *three, max(size, float(three[2].norm())))


@case("embed_forward_", "embed_backward_", loaded=lambda dtype: layers._library(), available=_available)
def embedding(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for rows in ROWS:
        for rate in (0.0, RATE):
            yield from _embedding(rows, rate, scale, dtype)


def _embedding(rows: int, rate: float, scale: float, dtype: torch.dtype) -> Iterator[Result]:
    ids, within, segments = (torch.arange(rows) * step % 50 for step in (7, 1, 0))
    tables = [numbers(50, WIDE, seed=seed, scale=scale) for seed in (1, 2, 3)]
    inputs = _norm("random", rows, scale, dtype)
    drop = Drop(rate, STREAM, torch.arange(rows))
    keep = _mask(rows) if rate else torch.ones(rows, WIDE)

    def plainly(wide: torch.dtype, *, rounded: bool) -> list[Tensor]:
        parts = [table.to(wide)[index] for table, index in zip(tables, (ids, within, segments), strict=True)]
        z = (parts[0] + (parts[1] + parts[2])).requires_grad_()
        weight, shift = (part.to(wide).requires_grad_() for part in (inputs.weight, inputs.shift))
        through = z + (z.to(dtype) - z).detach() if rounded else z
        out = F.layer_norm(through, [WIDE], weight, shift, EPS) * keep.to(wide)
        out.backward(inputs.gradient.to(wide))
        assert z.grad is not None
        assert weight.grad is not None
        assert shift.grad is not None
        return [out.detach(), z.grad, weight.grad, shift.grad]

    normed = layers.embed(ids, within, segments, tuple(tables), inputs.weight, inputs.shift, EPS, drop, dtype)
    back = layers.embed_gradient(inputs.gradient, (normed.z, normed.mean, normed.rstd), inputs.weight, drop)
    exact, plain = plainly(torch.float64, rounded=False), plainly(torch.float32, rounded=True)
    plain[0] = plain[0].to(dtype)
    for name, *three in zip(("out", "dz", "dweight", "dshift"), [normed.out, *back], plain, exact, strict=True):
        yield Result(f"{name}: {rows} rows, dropout {rate}", *three)


@case("scatter_rows", loaded=lambda dtype: layers._library(), available=_available, dtypes=(torch.float32,))
def rows_added(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for rows in ROWS:
        index, source = torch.arange(rows) % 3, numbers(rows, WIDE, seed=1, scale=scale)
        into = torch.zeros(4, WIDE)
        layers.add_rows(source, index, into)
        plain, exact = (torch.zeros(4, WIDE, dtype=wide).index_add_(0, index, source.to(wide))
                        for wide in (torch.float32, torch.float64))  # fmt: skip
        yield Result(f"{rows} rows", into, plain, exact)


@case("keep_mask", loaded=lambda dtype: layers._library(), available=_available, dtypes=(torch.float32,))
def masks(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    """A mask knows no scale: its rates go from none to nearly all."""
    for rows in ROWS:
        rate = 1 - 1 / (1 + scale / 100)
        kept = layers.drawn_mask(STREAM, rate, rows, WIDE)
        assert kept is not None
        exact = torch.from_numpy(draws(STREAM, rows, WIDE) >= round(rate * 65536)).double()
        yield Result(f"{rows} rows", kept.float(), exact.float(), exact)
