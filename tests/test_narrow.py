"""A product with low-rank changes, and an adapter, in bfloat16: values and gradients against float64, whatever learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from smoothtune.nn import narrow
from smoothtune.nn.narrow import Change
from smoothtune.runtime.kernels import bottleneck

pytestmark = pytest.mark.skipif(
    not bottleneck.available(), reason="the processor has no bfloat16 tiles, or no C++ compiler"
)
TOKENS = st.integers(1, 70)
RANKS = st.lists(st.integers(1, 40), min_size=1, max_size=3)


def numbers(*shape: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor) -> bool:
    """Within what rounding to bfloat16 a few times makes of it, and what a GELU is off by far below zero."""
    return bool((found.double() - expected).norm() <= 1.5e-2 * expected.norm() + 1e-4)


def check(
    made: Callable[..., Tensor], exact: Callable[..., Tensor], leaves: Sequence[Tensor], learns: Sequence[bool]
) -> None:
    """`made` of `leaves`, of which the first is bfloat16, against `exact` of the same numbers; some of them learn."""
    own = [leaf.clone().requires_grad_(one) for leaf, one in zip(leaves, learns, strict=True)]
    wide = [leaf.double().requires_grad_(one) for leaf, one in zip(leaves, learns, strict=True)]
    found, expected = made(*own), exact(*wide)
    assert found.dtype == torch.bfloat16
    assert near(found, expected.detach())
    with torch.no_grad():
        assert torch.equal(made(*own), found)
    if not any(learns):
        assert not found.requires_grad
        return
    pull = numbers(*found.shape, seed=99).bfloat16()
    found.backward(pull)
    expected.backward(pull.double())
    for one, two in zip(own, wide, strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None and two.grad is not None:
            assert one.grad.dtype == one.dtype
            assert one.grad.shape == one.shape
            assert near(one.grad, two.grad)


@given(tokens=TOKENS, ranks=RANKS, data=st.data())
def test_a_changed_product_is_that_of_float64(tokens: int, ranks: list[int], data: st.DataObject) -> None:
    width, share = 64, 32
    leaves = [numbers(tokens, width, seed=1).bfloat16(), numbers(3 * share, width, seed=2, spread=0.2)]
    scales = [0.5, 2.0, 1.0][: len(ranks)]
    for number, rank in enumerate(ranks):
        leaves += [numbers(rank, width, seed=3 + number, spread=0.2), numbers(share, rank, seed=9 + number, spread=0.2)]
    learns = data.draw(st.lists(st.booleans(), min_size=len(leaves), max_size=len(leaves)))

    def made(x: Tensor, weight: Tensor, *parts: Tensor) -> Tensor:
        pairs = zip(parts[::2], parts[1::2], scales, strict=True)
        changes = [Change(a, b, scale, number * share) for number, (a, b, scale) in enumerate(pairs)]
        return narrow.changed_product(x, weight, changes)

    def exact(x: Tensor, weight: Tensor, *parts: Tensor) -> Tensor:
        pairs = zip(parts[::2], parts[1::2], scales, strict=True)
        added = [scale * x @ a.T @ b.T for a, b, scale in pairs]
        left = 3 * share - sum(part.shape[1] for part in added)
        return x @ weight.T + F.pad(torch.cat(added, dim=1), (0, left))

    check(made, exact, leaves, learns)


@given(tokens=TOKENS, size=st.integers(1, 80), learns=st.lists(st.booleans(), min_size=5, max_size=5))
def test_an_adapter_is_that_of_float64(tokens: int, size: int, learns: list[bool]) -> None:
    leaves = [
        numbers(tokens, 64, seed=1).bfloat16(),
        numbers(64, seed=2),
        numbers(size, 64, seed=3, spread=0.2),
        numbers(size, seed=4),
        numbers(64, size, seed=5, spread=0.2),
    ]
    check(
        narrow.adapted,
        lambda y, bias, down, down_bias, up: y + F.gelu((y + bias) @ down.T + down_bias) @ up.T,
        leaves,
        learns,
    )


def test_prediction_and_float32_take_other_ways() -> None:
    x = numbers(3, 32, seed=1)
    assert narrow.serves(x.bfloat16(), 32, 64)
    assert not narrow.serves(x.bfloat16(), 32, 48)
    assert not narrow.serves(x, 32, 64)
    with torch.inference_mode():
        assert not narrow.serves(x.bfloat16(), 32, 64)
