"""Losses against torch, divergences against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from smoothtune.objective.divergences import (
    divergence,
    one_sided_bernoulli_kl,
    one_sided_divergence,
    one_sided_kl,
    squared_difference,
    symmetric_bernoulli_kl,
    symmetric_kl,
)
from smoothtune.objective.losses import example_losses
from smoothtune.types import Kind

KINDS: tuple[Kind, ...] = ("classification", "binary", "regression")
GAPS = (1e-4, 1e-3, 1e-2, 0.1, 0.4, 0.6, 1.0, 5.0, 30.0)
SPREADS = (0.1, 2.0, 10.0)  # of the logits: the last gives answers that are all but certain


def logits_like(kind: Kind, rows: int = 64, spread: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, 5) if kind == "classification" else (rows,), generator=generator) * spread


def exact(kind: Kind, a: Tensor, b: Tensor) -> Tensor:
    """The symmetric divergences by their definitions, float64."""
    if kind == "regression":
        return (a - b).square()
    p, q, d = ratio(kind, a, b)
    return ((p - q) * d).sum(-1)


def exact_one_sided(kind: Kind, a: Tensor, b: Tensor) -> Tensor:
    """KL(p || q), float64; q - p sums to 0 and takes what would cancel."""
    if kind == "regression":
        return (a - b).square()
    p, q, d = ratio(kind, a, b)
    return (p * d + q - p).sum(-1)


def ratio(kind: Kind, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if kind == "binary":
        a, b = (torch.stack([logit, torch.zeros_like(logit)], -1) for logit in (a, b))
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    return log_p.exp(), log_q.exp(), log_p - log_q


FORMS = {"symmetric": (divergence, exact), "one-sided": (one_sided_divergence, exact_one_sided)}


def test_losses_are_those_of_torch() -> None:
    scores, classes = logits_like("classification"), torch.arange(64) % 5
    single, binary, number = logits_like("binary"), (torch.arange(64) % 2).float(), torch.linspace(0, 5, 64)
    expected = functional.cross_entropy(scores, classes, reduction="none")
    assert torch.equal(example_losses("classification", scores, classes), expected)
    expected = functional.binary_cross_entropy_with_logits(single, binary, reduction="none")
    assert torch.equal(example_losses("binary", single, binary), expected)
    assert torch.equal(example_losses("regression", single, number), (single - number).square())


def test_losses_of_half_precision_logits_are_float32() -> None:
    found = example_losses("classification", logits_like("classification").bfloat16(), torch.arange(64) % 5)
    assert found.dtype == torch.float32
    assert found.shape == (64,)


def sized(gradient: Tensor) -> Tensor:
    """2-norm of each example's gradient, (B,)."""
    return gradient.reshape(len(gradient), -1).double().norm(dim=-1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("spread", SPREADS)
def test_divergence_and_its_gradient_are_within_a_percent_of_float64(
    form: str, kind: Kind, gap: float, spread: float
) -> None:
    """The gradient of what is compared; values below 1e-13 are left out, as float64 itself cancels there."""
    formed, defined = FORMS[form]
    a = logits_like(kind, 500, spread)
    b = a + gap * logits_like(kind, 500, 1.0, seed=1)
    narrow, wide = b.clone().requires_grad_(), b.double().requires_grad_()
    found, wanted = formed(kind, a, narrow), defined(kind, a.double(), wide)
    (slope,), (true_slope,) = (torch.autograd.grad(v.sum(), x) for v, x in ((found, narrow), (wanted, wide)))
    seen = (wanted > 1e-13).detach()
    assert seen.sum() > 150
    torch.testing.assert_close(found[seen].double(), wanted[seen], rtol=1e-2, atol=0)
    assert (sized(slope.double() - true_slope)[seen] <= 1e-2 * sized(true_slope)[seen]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [1e-3, 0.1, 0.45, 0.55, 3.0])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_either_side_is_the_slope_of_the_value(form: str, kind: Kind, gap: float) -> None:
    formed, _ = FORMS[form]
    a = logits_like(kind, 8).double().requires_grad_()
    b = (a + gap * logits_like(kind, 8, seed=1).double()).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: formed(kind, x, y), (a, b), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_as_wide_as_the_logits_and_float32_at_least(form: str, kind: Kind) -> None:
    formed, _ = FORMS[form]
    a = logits_like(kind)
    for given, wanted in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        found = formed(kind, a.to(given), (a + 1).to(given))
        assert (found.dtype, found.shape) == (wanted, (64,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_identical_logits_diverge_by_exactly_nothing(kind: Kind, spread: float) -> None:
    a = logits_like(kind, spread=spread)
    assert torch.equal(divergence(kind, a, a.clone()), torch.zeros(64))
    assert torch.equal(one_sided_divergence(kind, a, a.clone()), torch.zeros(64))


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_is_symmetric_the_mean_of_both_sides_and_never_negative(kind: Kind) -> None:
    a = logits_like(kind)
    for gap in GAPS:
        b = a + gap * logits_like(kind, seed=2)
        forth, back = divergence(kind, a, b), divergence(kind, b, a)
        torch.testing.assert_close(forth, back, rtol=1e-3, atol=1e-12)
        sides = one_sided_divergence(kind, a, b), one_sided_divergence(kind, b, a)
        torch.testing.assert_close(sum(sides), forth * (2 if kind == "regression" else 1), rtol=1e-3, atol=1e-12)
        assert (forth >= 0).all()
        assert min(float(side.min()) for side in sides) >= 0


@pytest.mark.parametrize("kind", ["classification", "binary"])
def test_large_logits_stay_finite_with_their_gradient(kind: Kind) -> None:
    a = (logits_like(kind) * 1000).requires_grad_()
    b = (-logits_like(kind, seed=1) * 1000).requires_grad_()
    total = divergence(kind, a, b).sum() + one_sided_divergence(kind, a, b).sum()
    total.backward()
    assert torch.isfinite(total)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_at_equality_is_finite_and_nothing(kind: Kind) -> None:
    a = logits_like(kind)
    b = a.clone().requires_grad_()
    (divergence(kind, a, b) + one_sided_divergence(kind, a, b)).sum().backward()
    assert b.grad is not None
    assert torch.isfinite(b.grad).all()
    assert b.grad.abs().max() < 1e-6


def test_the_divergences_have_the_values_of_the_formulas() -> None:
    two = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    single = torch.tensor([1.0]), torch.tensor([-1.0])
    gap = torch.sigmoid(torch.tensor(1.0)) - torch.sigmoid(torch.tensor(-1.0))
    assert symmetric_kl(*two).item() == pytest.approx(2 * gap.item(), rel=1e-6)
    assert symmetric_bernoulli_kl(*single).item() == pytest.approx(2 * gap.item(), rel=1e-6)
    odds = torch.tensor([2.0, 1.0]).log()  # p = (2/3, 1/3) against q = (1/2, 1/2)
    wanted = (2 / 3) * math.log(4 / 3) + (1 / 3) * math.log(2 / 3)
    assert one_sided_kl(odds[None], torch.zeros(1, 2)).item() == pytest.approx(wanted, rel=1e-6)
    assert one_sided_bernoulli_kl(odds[:1], torch.zeros(1)).item() == pytest.approx(wanted, rel=1e-6)
    assert one_sided_divergence("regression", torch.tensor([4.0]), torch.tensor([1.0]), span=5.0).item() == (
        pytest.approx(0.36)
    )
    assert squared_difference(torch.tensor([4.0]), torch.tensor([1.0]), 5.0).item() == pytest.approx(0.36)
    assert divergence("regression", torch.tensor([4.0]), torch.tensor([1.0]), span=5.0).item() == pytest.approx(0.36)
