"""The tile products against float64 products of the same rounded numbers, and their independence of threads and rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smoothtune.runtime.kernels import gemm

pytestmark = pytest.mark.skipif(not gemm.available(), reason="the processor has no bfloat16 tiles, or no C++ compiler")
BLOCKS = st.integers(1, 4).map(lambda blocks: 32 * blocks)
TOKENS = st.integers(1, 70)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operands(tokens: int, out: int, inside: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight in float32, and inputs and gradients in bfloat16."""
    return (
        numbers(out, inside, seed=1),
        numbers(tokens, inside, seed=2).bfloat16(),
        numbers(tokens, out, seed=3).bfloat16(),
    )


def assert_near(got: Tensor, wanted: Tensor, left: Tensor, right: Tensor) -> None:
    """Within the rounding of float32 sums: 1e-6 of the sum of sizes of what was added."""
    scale = left.double().abs() @ right.double().abs() + 1
    assert got.dtype == torch.float32
    assert got.shape == wanted.shape
    assert ((got.double() - wanted).abs() / scale).max() < 1e-6


@given(TOKENS, BLOCKS, BLOCKS)
def test_both_products_are_the_rounded_numbers_products(tokens: int, out: int, inside: int) -> None:
    weight, x, g = operands(tokens, out, inside)
    packed, rounded = gemm.pack(weight), weight.bfloat16()
    forward = gemm.multiply(x, packed, out_dtype=torch.float32)
    assert_near(forward, x.double() @ rounded.double().T, x, rounded.T)
    backward = gemm.multiply(g, packed, backward=True, out_dtype=torch.float32)
    assert_near(backward, g.double() @ rounded.double(), g, rounded)


@given(TOKENS, BLOCKS, BLOCKS)
def test_the_weight_gradient_is_the_rounded_numbers_product(tokens: int, out: int, inside: int) -> None:
    _, x, g = operands(tokens, out, inside)
    wanted = g.double().T @ x.double()
    assert_near(gemm.weight_gradient(g, x), wanted, g.T, x)
    sums = numbers(out, inside, seed=4)
    before = sums.clone()
    assert gemm.weight_gradient(g, x, sums) is sums
    assert_near(sums, wanted + before.double(), g.T, x)


@pytest.mark.parametrize(("out", "inside"), [(384, 1536), (1536, 384), (96, 2048)])
def test_long_sums_are_made_in_chunks(out: int, inside: int) -> None:
    weight, x, g = operands(1100, out, inside)
    packed, rounded = gemm.pack(weight), weight.bfloat16()
    forward = gemm.multiply(x, packed, out_dtype=torch.float32)
    assert_near(forward, x.double() @ rounded.double().T, x, rounded.T)
    backward = gemm.multiply(g, packed, backward=True, out_dtype=torch.float32)
    assert_near(backward, g.double() @ rounded.double(), g, rounded)
    assert_near(gemm.weight_gradient(g, x), g.double().T @ x.double(), g.T, x)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", [64, 1056])
def test_a_bias_is_added_before_rounding(out_dtype: torch.dtype, inside: int) -> None:
    weight, x, _ = operands(37, 96, inside)
    packed, bias = gemm.pack(weight), numbers(96, seed=5)
    plain = gemm.multiply(x, packed, out_dtype=torch.float32)
    assert torch.equal(gemm.multiply(x, packed, bias=bias, out_dtype=out_dtype), (plain + bias).to(out_dtype))
    assert torch.equal(gemm.multiply(x, packed, out_dtype=out_dtype), plain.to(out_dtype))


def test_packing_rounds_as_torch_does_and_reuses_its_memory() -> None:
    weight, x, _ = operands(3, 64, 96)
    packed = gemm.pack(weight.bfloat16())
    room = gemm.pack(torch.zeros(64, 96))
    assert gemm.pack(weight, into=room) is room
    assert torch.equal(room.forward, packed.forward)
    assert torch.equal(room.backward, packed.backward)
    assert torch.equal(gemm.multiply(x, room), gemm.multiply(x, packed))


@pytest.mark.parametrize("tokens", [1, 16, 33, 300])
def test_threads_do_not_change_a_bit(threads: None, tokens: int) -> None:
    weight, x, g = operands(tokens, 96, 1056)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        packed = gemm.pack(weight)
        results.append(
            [
                gemm.multiply(x, packed),
                gemm.multiply(g, packed, backward=True),
                gemm.weight_gradient(g, x),
                packed.forward,
            ]
        )
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_a_row_does_not_depend_on_the_others() -> None:
    weight, x, _ = operands(50, 64, 1056)
    packed = gemm.pack(weight)
    whole = gemm.multiply(x, packed)
    for row in (0, 15, 16, 31, 32, 49):
        assert torch.equal(gemm.multiply(x[row : row + 1], packed)[0], whole[row])


def test_nothing_is_written_or_read_beyond_the_last_row() -> None:
    weight, _, _ = operands(1, 64, 64)
    packed = gemm.pack(weight)
    room = torch.full((40, 64), float("nan"), dtype=torch.bfloat16)
    for tokens in (1, 17, 33):
        room[:tokens] = 1
        assert gemm.multiply(room[:tokens], packed).isfinite().all()
        assert gemm.weight_gradient(room[:tokens], room[:tokens]).eq(tokens).all()


def test_what_is_not_finite_stays_so() -> None:
    weight, x, g = operands(40, 32, 32)
    x[7, 3], g[5, 2] = float("inf"), float("nan")
    assert not gemm.multiply(x, gemm.pack(weight))[7].isfinite().any()
    dw = gemm.weight_gradient(g, x)
    assert not dw[:, 3].isfinite().any()
    assert not dw[2].isfinite().any()
    assert dw.isfinite().sum() == 31 * 31


def test_no_tokens_give_an_empty_product_and_a_gradient_of_zeros() -> None:
    weight, x, g = operands(0, 32, 64)
    assert gemm.multiply(x, gemm.pack(weight)).shape == (0, 32)
    assert gemm.weight_gradient(g, x).eq(0).all()


@pytest.mark.parametrize(("out", "inside", "fit"), [(32, 64, True), (32, 48, False), (16, 32, False), (0, 32, False)])
def test_only_whole_blocks_fit(out: int, inside: int, fit: bool) -> None:
    assert gemm.fits(out, inside) is fit
    if not fit:
        with pytest.raises(AssertionError, match=f"{out} x {inside} is not made of 32 x 32 blocks"):
            gemm.pack(torch.zeros(out, inside))


def test_operands_of_the_wrong_shape_or_order_are_refused() -> None:
    weight, x, g = operands(32, 32, 64)
    packed = gemm.pack(weight)
    with pytest.raises(AssertionError, match=r"want \(torch.bfloat16, \(32, 64\), True, 'cpu'\), got \(torch.float32"):
        gemm.multiply(x.float(), packed)
    with pytest.raises(AssertionError, match=r"want .*\(32, 32\), True.* got .*\(32, 64\), True"):
        gemm.multiply(x, packed, backward=True)
    with pytest.raises(AssertionError, match=r"got .*\(32, 32\), False"):
        gemm.weight_gradient(g.T, x)
    with pytest.raises(AssertionError, match="32 x 64 cannot hold 64 x 32"):
        gemm.pack(weight.T.contiguous(), into=packed)


@given(TOKENS, BLOCKS, BLOCKS)
def test_the_gelu_of_a_product_is_taken_of_its_unrounded_sums(tokens: int, out: int, inside: int) -> None:
    weight, x, _ = operands(tokens, out, inside)
    bias, packed = numbers(out, seed=5), gemm.pack(weight)
    sums = gemm.multiply(x, packed, bias=bias, out_dtype=torch.float32)
    wanted = torch.nn.functional.gelu(sums.double())
    found = gemm.multiply_gelu(x, packed, bias)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 5e-5).all()


def test_the_gelu_is_near_everywhere_and_keeps_what_is_not_a_number() -> None:
    values = torch.cat([torch.linspace(-30, 30, 4095), torch.tensor([torch.nan])]).reshape(128, 32).bfloat16()
    found = gemm.multiply_gelu(values, gemm.pack(torch.eye(32)), torch.zeros(32))
    wanted = torch.nn.functional.gelu(values.double())
    assert found[-1].isnan().all()  # a sum that holds one is none
    assert ((found[:-1].double() - wanted[:-1]).abs() <= 2.0**-8 * wanted[:-1].abs() + 5e-5).all()


@given(TOKENS, BLOCKS, st.integers(1, 20).map(lambda blocks: 32 * blocks), st.integers(1, 3).map(lambda n: 32 * n))
def test_a_second_product_is_added_before_rounding(tokens: int, out: int, inside: int, between: int) -> None:
    weight, x, g = operands(tokens, out, inside)
    up, down = numbers(out, between, seed=5), numbers(between, inside, seed=6)
    h = numbers(tokens, between, seed=7).bfloat16()
    packed = gemm.pack(weight)
    forward = gemm.multiply_both(x, packed, h, gemm.pack(up))
    backward = gemm.multiply_both(g, packed, h, gemm.pack(down), backward=True)
    rounded = weight.bfloat16().double()
    for got, wanted in (
        (forward, x.double() @ rounded.T + h.double() @ up.bfloat16().double().T),
        (backward, g.double() @ rounded + h.double() @ down.bfloat16().double()),
    ):
        assert got.dtype == torch.bfloat16
        assert ((got.double() - wanted).abs() <= 4e-3 * wanted.abs() + 1e-4).all()  # one rounding


@pytest.mark.parametrize("tokens", [1, 33, 300])
def test_a_second_product_depends_neither_on_threads_nor_on_other_rows(threads: None, tokens: int) -> None:
    weight, x, _ = operands(tokens, 96, 576)
    packed, up, h = gemm.pack(weight), gemm.pack(numbers(96, 32, seed=5)), numbers(tokens, 32, seed=7).bfloat16()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(gemm.multiply_both(x, packed, h, up))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    alone = gemm.multiply_both(x[-1:].clone(), packed, h[-1:].clone(), up)
    assert torch.equal(alone, found[0][-1:])
