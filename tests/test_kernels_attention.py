"""The attention kernels against float64 attention written out, with dropout masks made here from the definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smoothtune.runtime.kernels import attention

pytestmark = pytest.mark.skipif(not attention.available(), reason="no C++ compiler")

STREAM = 0x1234567_89ABCDEF
MASK = 0xFFFFFFFF
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}
RAGGED = (20, 1, 33, 16, 17, 32, 2, 47)


@dataclass(frozen=True)
class Case:
    """Inputs of one call; `lengths` of the rows."""

    lengths: tuple[int, ...]
    heads: int
    size: int
    dtype: torch.dtype
    rate: float
    width: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def starts(self) -> Tensor:
        return torch.tensor([0, *np.cumsum(self.lengths)], dtype=torch.int32)

    @property
    def options(self) -> dict[str, float]:
        return {"heads": self.heads, "width": self.width, "rate": self.rate, "stream": STREAM}

    def inputs(self, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """qkv, bias and the gradient of what attention makes of them."""
        generator = torch.Generator().manual_seed(self.tokens + self.size)
        hidden = self.heads * self.size
        qkv = torch.randn(self.tokens, 3 * hidden, generator=generator) * spread
        bias = torch.randn(3 * hidden, generator=generator) / 2
        gradient = torch.randn(self.tokens, hidden, generator=generator)
        return qkv.to(self.dtype), bias, gradient.to(self.dtype)


def case(
    lengths: tuple[int, ...] = RAGGED,
    heads: int = 3,
    size: int = 32,
    dtype: torch.dtype = torch.float32,
    rate: float = 0.1,
) -> Case:
    return Case(lengths, heads, size, dtype, rate, max(lengths) + 3)


def mix(x: int) -> int:
    """The finaliser of MurmurHash3."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def factor(row: int, column: int, width: int, rate: float) -> float:
    """The dropout factor of one element of a tensor `width` wide, straight from the definition."""
    number = row * (-(-width // 32) * 16) + column // 32 * 16 + column % 16
    word = mix(mix((number * 0x9E3779B9 + (STREAM & MASK)) & MASK) ^ (STREAM >> 32))
    draw = word >> 16 if column % 32 >= 16 else word & 0xFFFF
    return 1 / (1 - rate) if draw >= round(rate * 65536) else 0.0


def factors(at: Case, row: int, head: int) -> Tensor:
    """(L, L) float64 of one head of one row."""
    length = at.lengths[row]
    if at.rate == 0:
        return torch.ones(length, length, dtype=torch.float64)
    first = (row * at.heads + head) * at.width
    made = [[factor(first + i, j, at.width, at.rate) for j in range(length)] for i in range(length)]
    return torch.tensor(made, dtype=torch.float64)


def reference(at: Case, qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in float64: mixed (N, D) and peaks (2, H, N)."""
    mixed, peaks = [], []
    for row, own in enumerate((qkv + bias).split(at.lengths)):
        heads = own.view(len(own), 3, at.heads, at.size).permute(1, 2, 0, 3)
        scores = heads[0] @ heads[1].transpose(1, 2) * at.size**-0.5
        drops = torch.stack([factors(at, row, head) for head in range(at.heads)])
        mixed.append(((scores.softmax(-1) * drops) @ heads[2]).transpose(0, 1).reshape(len(own), -1))
        largest = scores.amax(-1, keepdim=True)
        inverse = 1 / (scores - largest).exp().sum(-1)
        peaks.append(torch.stack([largest.squeeze(-1) * at.size**0.5, inverse]))
    return torch.cat(mixed), torch.cat(peaks, 2)


def wanted(at: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    qkv, bias, gradient = at.inputs()
    exact_qkv, exact_bias = qkv.double().requires_grad_(), bias.double().requires_grad_()
    mixed, peaks = reference(at, exact_qkv, exact_bias)
    mixed.backward(gradient.double())
    assert exact_qkv.grad is not None
    assert exact_bias.grad is not None
    return mixed.detach(), peaks.detach(), exact_qkv.grad, exact_bias.grad


def got(at: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    qkv, bias, gradient = at.inputs()
    mixed, peaks = attention.attention_forward(qkv, bias, at.starts, **at.options)
    dqkv, dbias = attention.attention_backward(gradient, qkv, bias, peaks, at.starts, **at.options)
    return mixed, peaks, dqkv, dbias


def distance(found: Tensor, exact: Tensor, least: float = 0.1) -> float:
    """The largest difference, relative to the largest value (`least` at least: gradients of a row of one token are 0)."""
    assert found.shape == exact.shape
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=least))


def assert_exact(at: Case) -> None:
    found, exact = got(at), wanted(at)
    for name, one, other in zip(("mixed", "peaks", "dqkv", "dbias"), found, exact, strict=True):
        least = 1.0 if name == "peaks" else 0.1  # a sum of products may cancel, and is exact as its terms are
        assert distance(one, other, least) < TOLERANCE[at.dtype], name
    for name, one, other in zip(("dq", "dk", "dv"), found[2].chunk(3, 1), exact[2].chunk(3, 1), strict=True):
        assert distance(one, other) < TOLERANCE[at.dtype], name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("size", [8, 16, 24, 32, 40, 64, 96])
def test_ragged_rows_agree_with_float64(size: int, rate: float, dtype: torch.dtype) -> None:
    assert_exact(case(size=size, rate=rate, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_long_rows_agree_with_float64(dtype: torch.dtype) -> None:
    assert_exact(case((300, 5, 129), heads=1, dtype=dtype))


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    heads=st.integers(1, 4),
    size=st.sampled_from([8, 16, 32, 64]),
    dtype=st.sampled_from(list(TOLERANCE)),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_any_rows_agree_with_float64(
    lengths: list[int], heads: int, size: int, dtype: torch.dtype, rate: float
) -> None:
    assert_exact(case(tuple(lengths), heads, size, dtype, rate))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    at, before = case(dtype=dtype), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = got(at)
        torch.set_num_threads(2)
        together = got(at)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    at = case(dtype=dtype, rate=0.0)
    qkv, bias, _ = at.inputs()
    alone = case(at.lengths[:1], dtype=dtype, rate=0.0)
    first = qkv[: at.lengths[0]].contiguous()
    mixed, peaks = attention.attention_forward(first, bias, alone.starts, **alone.options)
    among, among_peaks = attention.attention_forward(qkv, bias, at.starts, **at.options)
    assert torch.equal(mixed, among[: at.lengths[0]])
    assert torch.equal(peaks, among_peaks[:, :, : at.lengths[0]])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_large_scores_stay_finite(dtype: torch.dtype) -> None:
    at = case(dtype=dtype)
    qkv, bias, gradient = at.inputs(spread=60.0)
    mixed, peaks = attention.attention_forward(qkv, bias, at.starts, **at.options)
    dqkv, dbias = attention.attention_backward(gradient, qkv, bias, peaks, at.starts, **at.options)
    exact, exact_peaks = reference(at, qkv.double(), bias.double())
    assert peaks[0].max() > 1000
    assert distance(peaks[0], exact_peaks[0]) < TOLERANCE[dtype]
    assert mixed.isfinite().all()
    assert dqkv.isfinite().all()
    assert dbias.isfinite().all()
    assert float(mixed.abs().max()) <= float(exact.abs().max()) * 1.01


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float, dtype: torch.dtype) -> None:
    at = case((5, 4), dtype=dtype)
    qkv, bias, gradient = at.inputs()
    qkv[2, 0] = bad
    mixed, peaks = attention.attention_forward(qkv, bias, at.starts, **at.options)
    dqkv, dbias = attention.attention_backward(gradient, qkv, bias, peaks, at.starts, **at.options)
    assert not mixed[2, : at.size].isfinite().all()
    assert not dqkv[:5].isfinite().all()
    assert not dbias.isfinite().all()
    assert mixed[5:].isfinite().all()
    assert dqkv[5:].isfinite().all()


def test_the_kept_share_is_that_of_the_rate() -> None:
    at = case((64,) * 8, heads=4, rate=0.1)
    qkv, bias, _ = at.inputs()
    values = qkv.view(at.tokens, 3, -1)
    values[:, 0], values[:, 2] = 0.0, 1.0
    bias.zero_()
    mixed, _ = attention.attention_forward(qkv, bias, at.starts, **at.options)
    assert abs(float(mixed.mean()) - 1.0) < 0.005
    assert 0.01 < float(mixed.std()) < 0.1


def test_inputs_that_do_not_fit_are_refused() -> None:
    at = case()
    qkv, bias, _ = at.inputs()
    assert not attention.fits(36, 3)
    with pytest.raises(AssertionError, match="one piece"):
        attention.attention_forward(qkv.T.contiguous().T, bias, at.starts, **at.options)
    with pytest.raises(AssertionError, match="int32"):
        attention.attention_forward(qkv, bias, at.starts.long(), **at.options)
    with pytest.raises(AssertionError, match="one bias"):
        attention.attention_forward(qkv, bias[1:], at.starts, **at.options)
