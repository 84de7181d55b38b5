"""Perturbations: norms, steps and the way back to the radius, over many shapes and sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smoothtune.objective.perturbation import Direction, Norm, Per, Projection, masked, moved, norms, projected

NORMS: tuple[Norm, ...] = ("inf", "2")
PERS: tuple[Per, ...] = ("token", "text")
DIRECTIONS: tuple[Direction, ...] = ("raw", "normalised", "sign")
PROJECTIONS: tuple[Projection, ...] = ("ball", "sphere", "unit")
WAYS = list(itertools.product(NORMS, PERS))


@st.composite
def vectors(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A vector (R, T, D) of any size, some tokens of it 0, and the mask of its real tokens."""
    rows, tokens, width = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    size = 10.0 ** draw(st.floats(-12, 6))
    d = torch.randn(rows, tokens, width, generator=generator) * size
    d = d * (torch.rand(rows, tokens, 1, generator=generator) > 0.2)
    mask = torch.rand(rows, tokens, generator=generator) > 0.3
    return d, mask


def exact_norms(d: Tensor, mask: Tensor, norm: Norm, per: Per) -> Tensor:
    """By definition, entry by entry, float64, (R, T) or (R,)."""
    texts = []
    for row, real in zip(d.double(), mask, strict=True):
        kept = [token.tolist() if one else [0.0] for token, one in zip(row, real.tolist(), strict=True)]
        groups = kept if per == "token" else [[entry for token in kept for entry in token]]
        ends = [
            max(map(abs, group)) if norm == "inf" else math.sqrt(math.fsum(x * x for x in group)) for group in groups
        ]
        texts.append(ends)
    return torch.tensor(texts, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(vectors(), st.sampled_from(WAYS))
def test_norms_are_those_of_the_definition(vector: tuple[Tensor, Tensor], way: tuple[Norm, Per]) -> None:
    (d, mask), (norm, per) = vector, way
    found = norms(d, mask, norm, per)
    assert found.shape == (len(d), d.shape[1] if per == "token" else 1, 1)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.squeeze(-1), exact_norms(d, mask, norm, per), rtol=1e-12, atol=0)


@settings(max_examples=150, deadline=None)
@given(vectors(), st.sampled_from(WAYS), st.floats(1e-8, 1e4))
def test_no_norm_leaves_the_ball_and_what_is_inside_stays(
    vector: tuple[Tensor, Tensor], way: tuple[Norm, Per], radius: float
) -> None:
    (d, mask), (norm, per) = vector, way
    found = projected(d, mask, projection="ball", radius=radius, norm=norm, per=per)
    before, after = exact_norms(d, mask, norm, per), exact_norms(found, mask, norm, per)
    assert (after <= radius).all()
    inside = (before <= radius).view(len(d), -1, 1).expand(*d.shape) & mask.unsqueeze(-1)
    assert torch.equal(found[inside], d[inside])
    outside = before > radius
    torch.testing.assert_close(after[outside], torch.full_like(after[outside], radius), rtol=3e-7, atol=0)
    assert (found * d >= 0).all()


@settings(max_examples=150, deadline=None)
@given(vectors(), st.sampled_from(WAYS), st.floats(1e-8, 1e4), st.sampled_from(["sphere", "unit"]))
def test_the_sphere_is_met_from_within_and_nothing_stays_nothing(
    vector: tuple[Tensor, Tensor], way: tuple[Norm, Per], radius: float, projection: Projection
) -> None:
    (d, mask), (norm, per) = vector, way
    found = projected(d, mask, projection=projection, radius=radius, norm=norm, per=per)
    before, after = exact_norms(d, mask, norm, per), exact_norms(found, mask, norm, per)
    wanted = (1.0 if projection == "unit" else radius) * (before > 0).double()
    assert (after <= wanted).all()
    torch.testing.assert_close(after, wanted, rtol=3e-7, atol=0)


@pytest.mark.parametrize("radius", [1e-5, 1e-3, 0.1, 1.0, 3.0])
def test_a_max_norm_is_the_float_at_or_just_below_the_radius(radius: float) -> None:
    d, mask = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, dtype=torch.bool)
    below = torch.tensor(radius, dtype=torch.float32)
    if float(below) > radius:
        below = torch.nextafter(below, torch.tensor(0.0))
    for projection in ("ball", "sphere"):
        far = projected(d * 100, mask, projection=projection, radius=radius, norm="inf", per="token")
        assert torch.equal(far.abs().amax(-1), below.expand(2, 3))
    unit = projected(d, mask, projection="unit", radius=radius, norm="inf", per="token")
    assert torch.equal(unit.abs().amax(-1), torch.ones(2, 3))


def test_a_text_has_one_norm_over_its_tokens() -> None:
    d = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert norms(d, mask, "2", "text").flatten().tolist() == [5.0, 1.0]
    assert norms(d, mask, "inf", "text").flatten().tolist() == [4.0, 1.0]
    assert norms(d, mask, "2", "token").squeeze(-1).tolist() == [[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]]
    whole = projected(d, mask, projection="sphere", radius=10.0, norm="2", per="text")
    torch.testing.assert_close(whole[0], torch.tensor([[6.0, 0.0], [0.0, 8.0], [0.0, 0.0]]), rtol=1e-6, atol=0)


@settings(max_examples=100, deadline=None)
@given(vectors(), st.sampled_from(WAYS), st.sampled_from(DIRECTIONS), st.floats(1e-6, 10))
def test_steps_go_along_the_gradient_by_the_step_size(
    vector: tuple[Tensor, Tensor], way: tuple[Norm, Per], direction: Direction, step_size: float
) -> None:
    (gradient, mask), (norm, per) = vector, way
    found = moved(
        torch.zeros_like(gradient), gradient, mask, step_size=step_size, direction=direction, norm=norm, per=per
    )
    real = masked(gradient, mask)
    assert torch.isfinite(found).all()
    assert torch.equal(found.sign(), real.sign()) or direction != "sign"
    if direction == "raw":
        torch.testing.assert_close(found, step_size * real)
    elif direction == "sign":
        torch.testing.assert_close(found, step_size * real.sign())
    else:
        had = exact_norms(real, mask, norm, per)
        torch.testing.assert_close(
            exact_norms(found, mask, norm, per), step_size * (had > 0).double(), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_step_is_added_to_where_one_stands(direction: Direction) -> None:
    d, gradient = torch.full((1, 2, 2), 5.0), torch.tensor([[[2.0, -2.0], [1.0, 1.0]]])
    mask = torch.tensor([[True, False]])
    found = moved(d, gradient, mask, step_size=0.5, direction=direction, norm="inf", per="token")
    size = 1.0 if direction == "raw" else 0.5
    assert found.tolist() == [[[5 + size, 5 - size], [0.0, 0.0]]]


@pytest.mark.parametrize(("norm", "per"), WAYS)
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padding_stays_at_nothing_whatever_stands_in_it(
    norm: Norm, per: Per, projection: Projection, direction: Direction
) -> None:
    d, mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    d[~mask] = math.nan
    gradient = torch.where(mask.unsqueeze(-1), torch.randn(3, 4, 5), math.inf)
    there = moved(d, gradient, mask, step_size=0.1, direction=direction, norm=norm, per=per)
    for found in (there, projected(d, mask, projection=projection, radius=0.1, norm=norm, per=per)):
        assert torch.isfinite(found).all()
        assert torch.equal(found[~mask], torch.zeros(7, 5))
        assert (found[mask] != 0).all()


@pytest.mark.parametrize(("norm", "per"), WAYS)
def test_a_gradient_that_is_not_finite_is_not_hidden(norm: Norm, per: Per) -> None:
    mask, gradient = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[[1.0, math.nan], [1.0, 1.0]]])
    for direction in DIRECTIONS:
        d = moved(torch.zeros(1, 2, 2), gradient, mask, step_size=0.1, direction=direction, norm=norm, per=per)
        for projection in PROJECTIONS:
            found = projected(d, mask, projection=projection, radius=0.01, norm=norm, per=per)
            assert found.isnan().any(), (direction, projection)


def test_entries_too_small_to_square_are_normalised_too() -> None:
    tiny, mask = torch.full((1, 1, 4), 1e-30), torch.ones(1, 1, dtype=torch.bool)
    for norm in NORMS:
        found = projected(tiny, mask, projection="unit", radius=1.0, norm=norm, per="token")
        assert float(norms(found, mask, norm, "token")) == pytest.approx(1.0, rel=1e-6)
