"""The kernels around the matrix products against plain torch in float64, and their independence of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from smoothtune.runtime.kernels import layers as kernels
from smoothtune.runtime.kernels.layers import Drop
from smoothtune.runtime.random import draws

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler: the kernels cannot be built")
STREAM = 0x1234_5678_9ABC_DEF
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(rows: int, width: int, rate: float) -> Tensor:
    """Dropout factors of a (rows, width) tensor, float64, from the NumPy form of the draws."""
    kept = draws(STREAM, rows, width) >= round(rate * 65536)
    return torch.from_numpy(kept.astype(np.float64)) / (1 - rate)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    far = (found.double() - expected.double()).norm() / (expected.double().norm() + 1e-12)
    return bool(far < TOLERANCE[dtype])


@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 130),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
    stream=st.integers(0, 2**63 - 1),
)
def test_masks_are_those_of_the_numpy_form(rows: int, width: int, rate: float, stream: int) -> None:
    found = kernels.drawn_mask(stream, rate, rows, width)
    assert found is not None
    assert np.array_equal(found.numpy(), draws(stream, rows, width) >= round(rate * 65536))


def test_draws_are_uniform_and_of_their_own_in_each_stream_and_place() -> None:
    first, second = (draws(stream, 64, 1024).astype(np.float64) / 65536 for stream in (STREAM, STREAM + 1))
    for part in (first, second):
        assert abs(part.mean() - 0.5) < 0.005
        counts = np.histogram(part, bins=256, range=(0, 1))[0]
        assert ((counts - 256) ** 2 / 256).sum() < 350  # chi-squared with 255 degrees of freedom, p about 1e-4
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:, :-1].ravel(), first[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:, :16].ravel(), first[:, 16:32].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (70, 32), (131, 48), (200, 384)])
def test_residual_norm_and_its_gradients(rows: int, width: int, rate: float, dtype: torch.dtype) -> None:
    y, x, grad = (values(rows, width, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    bias, weight, shift = (values(width, seed=seed) for seed in (4, 5, 6))
    places = torch.arange(rows) * 2 + 1
    found = kernels.residual_norm(y, bias, x, weight, shift, 1e-12, Drop(rate, STREAM, places))
    wide = [part.double().requires_grad_() for part in (y, bias, x, weight, shift)]
    factors = drawn(2 * rows + 1, width, rate)[places]
    z = wide[2] + (wide[0] + wide[1]) * factors
    expected = F.layer_norm(z, (width,), wide[3], wide[4], 1e-12)
    assert close(found.out, expected, dtype)
    expected.backward(grad.double())
    for norm, wants_bias in ((True, True), (True, False), (False, True), (False, False)):
        dx, dy, dweight, dshift, dbias = kernels.residual_norm_gradient(
            grad, (found.z, found.mean, found.rstd), weight, Drop(rate, STREAM, places), norm=norm, bias=wants_bias
        )
        assert [part is not None for part in (dweight, dshift, dbias)] == [norm, norm, wants_bias]
        for got, leaf in zip((dy, dbias, dx, dweight, dshift), wide, strict=True):
            assert leaf.grad is not None
            assert got is None or close(got, leaf.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("segmented", [False, True])
def test_embedding_and_its_gradients(segmented: bool, dtype: torch.dtype) -> None:
    rows, width, rate = 150, 48, 0.1
    tables = tuple(values(size, width, seed=size) for size in (90, 20, 2))
    weight, shift = values(width, seed=5), values(width, seed=6)
    source = torch.Generator().manual_seed(0)
    ids, within, segments = (torch.randint(size, (rows,), generator=source) for size in (90, 20, 2))
    drop = Drop(rate, STREAM, torch.arange(rows))
    found = kernels.embed(ids, within, segments if segmented else None, tables, weight, shift, 1e-12, drop, dtype)
    wide = [part.double().requires_grad_() for part in (*tables, weight, shift)]
    kinds = segments if segmented else torch.zeros_like(segments)
    z = wide[0][ids] + wide[1][within] + wide[2][kinds]
    z.retain_grad()
    expected = F.layer_norm(z, (width,), wide[3], wide[4], 1e-12) * drawn(rows, width, rate)
    assert close(found.out, expected, dtype)
    grad = values(rows, width, seed=9, dtype=dtype)
    expected.backward(grad.double())
    dz, dweight, dshift = kernels.embed_gradient(grad, (found.z, found.mean, found.rstd), weight, drop)
    summed = torch.zeros(90, width)
    kernels.add_rows(dz, ids, summed)
    for got, leaf in ((dz, z), (dweight, wide[3]), (dshift, wide[4]), (summed, wide[0])):
        assert leaf.grad is not None
        assert close(got, leaf.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
def test_activations_and_their_gradients(kind: str, dtype: torch.dtype) -> None:
    plain = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}[kind]
    u, bias = (values(133, 96, seed=1) * 4).to(dtype), values(96, seed=2)
    out, slope = kernels.activation(u, bias, kind, with_slope=True)
    assert slope is not None
    wide, wide_bias = u.double().requires_grad_(), bias.double().requires_grad_()
    expected = plain(wide + wide_bias)
    assert close(out, expected, dtype)
    assert torch.equal(out, kernels.activation(u, bias, kind, with_slope=False)[0])
    grad = values(133, 96, seed=3, dtype=dtype)
    expected.backward(grad.double())
    du, dbias = kernels.activation_gradient(grad, slope, bias=True)
    assert wide.grad is not None
    assert wide_bias.grad is not None
    assert dbias is not None
    assert close(du, wide.grad, dtype)
    assert close(dbias, wide_bias.grad, dtype)
    alone, none = kernels.activation_gradient(grad, slope, bias=False)
    assert torch.equal(alone, du)
    assert none is None


def test_gelu_is_accurate_everywhere_and_keeps_what_is_not_a_number() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 1e4, 0.0])]).unsqueeze(0)
    out, _ = kernels.activation(x, torch.zeros(x.shape[1]), "gelu", with_slope=False)
    assert (out.double() - F.gelu(x.double())).abs().max() < 2e-6
    broken = torch.full((1, 40), torch.nan)
    for kind in kernels.ACTIVATIONS:
        assert kernels.activation(broken, torch.zeros(40), kind, with_slope=False)[0].isnan().all()


def test_threads_never_change_a_bit(threads: None) -> None:
    rows, width = 500, 96
    y, x, grad = (values(rows, width, seed=seed) for seed in (1, 2, 3))
    bias, weight, shift = (values(width, seed=seed) for seed in (4, 5, 6))
    drop = Drop(0.1, STREAM, torch.arange(rows))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        normed = kernels.residual_norm(y, bias, x, weight, shift, 1e-12, drop)
        parts = kernels.residual_norm_gradient(
            grad, (normed.z, normed.mean, normed.rstd), weight, drop, norm=True, bias=True
        )
        _, slope = kernels.activation(y, bias, "gelu", with_slope=True)
        assert slope is not None
        every = [*normed, *parts, *kernels.activation_gradient(grad, slope, bias=True)]
        found.append([part for part in every if part is not None])
    assert len(found[0]) == len(found[1]) == 11
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_norm_that_keeps_nothing_is_that_of_training_to_the_bit(dtype: torch.dtype, rate: float) -> None:
    y, x = (values(19, 40, seed=seed, dtype=dtype) for seed in (1, 2))
    bias, weight, shift = (values(40, seed=seed) for seed in (3, 4, 5))
    drop = Drop(rate, STREAM, torch.arange(19))
    kept = kernels.residual_norm(y, bias, x, weight, shift, 1e-12, drop)
    assert torch.equal(kernels.residual_normed(y, bias, x, weight, shift, 1e-12, drop), kept.out)
