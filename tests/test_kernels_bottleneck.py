"""What runs of tokens are given by narrow products: against float64, and independent of threads and of other runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from smoothtune.runtime.kernels import bottleneck, gemm
from smoothtune.runtime.kernels.bottleneck import Bottleneck, Run

pytestmark = pytest.mark.skipif(
    not bottleneck.available(), reason="the processor has no bfloat16 tiles, or no C++ compiler"
)
BLOCKS = st.integers(1, 3).map(lambda blocks: 32 * blocks)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(
    inner: int, size: int, columns: int, *, gelu: bool, biased: bool, seed: int = 1
) -> tuple[Bottleneck, list[Tensor]]:
    """A part, and W_down, b_down, W_up, b_up as it rounds them."""
    down, up = 0.3 * numbers(size, inner, seed=seed), 0.3 * numbers(columns, size, seed=seed + 1)
    biases = [numbers(size, seed=seed + 2), numbers(columns, seed=seed + 3)]
    given_biases = biases if biased else [None, None]
    part = Bottleneck(gemm.pack(down), gemm.pack(up), *given_biases, gelu=gelu)
    b_down, b_up = biases if biased else [torch.zeros(size), torch.zeros(columns)]
    return part, [down.bfloat16(), b_down, up.bfloat16(), b_up]


def added(x: Tensor, into: Tensor, weights: list[Tensor], *, gelu: bool) -> Tensor:
    down, b_down, up, b_up = (weight.double() for weight in weights)
    narrow = x.double() @ down.T + b_down
    narrow = (F.gelu(narrow) if gelu else narrow).bfloat16().double()
    return into.double() + narrow @ up.T + b_up


def near(found: Tensor, expected: Tensor) -> bool:
    """Within the rounding of the result to bfloat16, and of what is between."""
    return bool(((found.double() - expected).abs() <= 2e-2 * expected.abs() + 6e-2).all())


@given(tokens=st.integers(1, 70), inner=BLOCKS, size=BLOCKS, columns=BLOCKS, gelu=st.booleans(), biased=st.booleans())
def test_a_run_is_given_what_float64_gives_it(
    tokens: int, inner: int, size: int, columns: int, gelu: bool, biased: bool
) -> None:
    part, weights = made(inner, size, columns, gelu=gelu, biased=biased)
    x, into = numbers(tokens, inner, seed=7).bfloat16(), numbers(tokens, columns, seed=8).bfloat16()
    expected = added(x, into, weights, gelu=gelu)
    bottleneck.add(x, into, [Run(0, tokens, 0, part)])
    assert near(into, expected)


def test_runs_change_their_tokens_and_features_alone() -> None:
    first, first_weights = made(64, 32, 32, gelu=False, biased=False)
    second, second_weights = made(64, 64, 64, gelu=True, biased=True, seed=20)
    x, into = numbers(90, 64, seed=7).bfloat16(), numbers(90, 96, seed=8).bfloat16()
    before = into.clone()
    bottleneck.add(x, into, [Run(3, 40, 64, first), Run(40, 41, 0, first), Run(41, 87, 32, second)])
    touched = torch.zeros(90, 96, dtype=torch.bool)
    for begin, end, column, weights in (
        (3, 40, 64, first_weights),
        (40, 41, 0, first_weights),
        (41, 87, 32, second_weights),
    ):
        place = slice(begin, end), slice(column, column + len(weights[2]))
        assert near(into[place], added(x[begin:end], before[place], weights, gelu=weights is second_weights))
        touched[place] = True
    assert torch.equal(into[~touched], before[~touched])


def test_what_is_read_may_be_what_is_changed() -> None:
    part, weights = made(96, 64, 96, gelu=True, biased=True)
    x = numbers(50, 96, seed=7).bfloat16()
    expected = added(x, x, weights, gelu=True)
    bottleneck.add(x, x, [Run(0, 50, 0, part)])
    assert near(x, expected)


def test_bits_depend_neither_on_threads_nor_on_other_tokens(threads: None) -> None:
    part, _ = made(64, 32, 64, gelu=True, biased=True)
    x, into = numbers(101, 64, seed=7).bfloat16(), numbers(101, 64, seed=8).bfloat16()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        one = into.clone()
        bottleneck.add(x, one, [Run(0, 101, 0, part)])
        found.append(one)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for token in (0, 31, 64, 100):
        alone = into[token : token + 1].clone()
        bottleneck.add(x[token : token + 1].clone(), alone, [Run(0, 1, 0, part)])
        assert torch.equal(alone, found[0][token : token + 1])


def test_what_is_not_finite_stays_so() -> None:
    part, _ = made(32, 32, 32, gelu=True, biased=True)
    x, into = numbers(3, 32, seed=7).bfloat16(), torch.zeros(3, 32, dtype=torch.bfloat16)
    x[1, 4] = torch.nan
    bottleneck.add(x, into, [Run(0, 3, 0, part)])
    assert into[1].isnan().all()
    assert into[[0, 2]].isfinite().all()


def test_runs_that_do_not_fit_are_refused() -> None:
    part, _ = made(32, 32, 64, gelu=False, biased=False)
    x, into = torch.zeros(4, 32, dtype=torch.bfloat16), torch.zeros(4, 96, dtype=torch.bfloat16)
    for run, message in (
        (Run(0, 5, 0, part), "tokens 0 to 5, of 4"),
        (Run(0, 4, 64, part), "64 features from 64 on, of 96"),
        (Run(0, 4, 16, part), "column 16 is no multiple of 32"),
        (Run(0, 4, 0, made(64, 32, 64, gelu=False, biased=False)[0]), "down reads 64 of 32 features"),
    ):
        with pytest.raises(AssertionError, match=message):
            bottleneck.add(x, into, [run])


@given(tokens=st.integers(1, 70), width=BLOCKS, size=BLOCKS)
def test_training_and_its_gradients_are_those_of_float64(tokens: int, width: int, size: int) -> None:
    down, up, bias = 0.3 * numbers(size, width, seed=1), 0.3 * numbers(width, size, seed=2), numbers(size, seed=3)
    part = Bottleneck(gemm.pack(down), gemm.pack(up), bias, gelu=True)
    x, pull = (numbers(tokens, width, seed=seed).bfloat16() for seed in (7, 8))
    wide = x.double().requires_grad_()
    narrow = wide @ down.bfloat16().double().T + bias.double()
    narrow.retain_grad()
    expected = wide + F.gelu(narrow) @ up.bfloat16().double().T
    expected.backward(pull.double())
    assert wide.grad is not None
    assert narrow.grad is not None

    out, between = bottleneck.through(x, part)
    found = bottleneck.back(pull, between.slope, part, x=True)
    assert near(out, expected.detach())
    assert near(between.state, F.gelu(narrow.detach()))
    assert near(found.state, narrow.grad)
    assert (found.total.double() - narrow.grad.sum(dim=0)).norm() <= 1e-2 * narrow.grad.norm() * tokens**0.5 + 1e-2
    assert found.x is not None
    assert near(found.x, wide.grad)
    alone = bottleneck.back(pull, between.slope, part, x=False)
    assert alone.x is None
    assert torch.equal(alone.state, found.state)
    assert torch.equal(alone.total, found.total)


def test_threads_change_no_bit_of_training(threads: None) -> None:
    part, _ = made(64, 32, 64, gelu=True, biased=False)
    x, pull = numbers(101, 64, seed=7).bfloat16(), numbers(101, 64, seed=8).bfloat16()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out, between = bottleneck.through(x, part)
        found.append([out, *between, *bottleneck.back(pull, between.slope, part, x=True)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one is not None
            assert two is not None
            assert torch.equal(one, two)


def test_far_from_zero_the_slope_is_that_of_a_line() -> None:
    part = Bottleneck(gemm.pack(torch.eye(32)), gemm.pack(torch.eye(32)), torch.zeros(32), gelu=True)
    x = torch.tensor([-1e4, -200.0, -15.0, -13.0, 13.0, 15.0, 200.0, 1e4]).repeat(4)[None].bfloat16()
    out, between = bottleneck.through(x, part)
    line = x.clamp(min=0)
    for found, expected in ((between.slope, (x > 0).bfloat16()), (between.state, line), (out, x + line)):
        assert torch.allclose(found, expected, rtol=0, atol=1e-30)
