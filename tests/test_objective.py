"""Losses against torch, divergences against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from smoothtune.objective.divergences import divergence, squared_difference, symmetric_bernoulli_kl, symmetric_kl
from smoothtune.objective.losses import example_losses
from smoothtune.types import Kind

KINDS: tuple[Kind, ...] = ("classification", "binary", "regression")
GAPS = (1e-4, 1e-3, 1e-2, 0.1, 0.4, 0.6, 1.0, 5.0)


def logits_like(kind: Kind, rows: int = 64, spread: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, 5) if kind == "classification" else (rows,), generator=generator) * spread


def exact(kind: Kind, a: Tensor, b: Tensor) -> Tensor:
    """The divergences by their definitions, float64."""
    if kind == "classification":
        log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    if kind == "binary":
        return (torch.sigmoid(a) - torch.sigmoid(b)) * (a - b)
    return (a - b).square()


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", GAPS)
def test_divergence_is_within_a_percent_of_float64(kind: Kind, gap: float) -> None:
    a = logits_like(kind).clamp(-8, 8)
    b = a + gap * logits_like(kind, seed=1).sign()
    found, wanted = divergence(kind, a, b).double(), exact(kind, a.double(), b.double())
    assert (wanted > 0).any()
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_identical_logits_diverge_by_exactly_nothing(kind: Kind, spread: float) -> None:
    a = logits_like(kind, spread=spread)
    assert torch.equal(divergence(kind, a, a.clone()), torch.zeros(64))


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_is_symmetric_and_never_clearly_negative(kind: Kind) -> None:
    a = logits_like(kind)
    for gap in GAPS:
        b = a + gap * logits_like(kind, seed=2)
        forth, back = divergence(kind, a, b), divergence(kind, b, a)
        torch.testing.assert_close(forth, back, rtol=1e-3, atol=1e-12)
        assert (forth >= -1e-12).all()


@pytest.mark.parametrize("kind", ["classification", "binary"])
def test_large_logits_stay_finite_with_their_gradient(kind: Kind) -> None:
    a = (logits_like(kind) * 1000).requires_grad_()
    b = (-logits_like(kind, seed=1) * 1000).requires_grad_()
    total = divergence(kind, a, b).sum()
    total.backward()
    assert torch.isfinite(total)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [1e-3, 0.1, 0.7, 3.0])
def test_gradient_is_that_of_float64(kind: Kind, gap: float) -> None:
    a = logits_like(kind).clamp(-6, 6)
    b = a + gap * logits_like(kind, seed=3).sign()
    narrow, wide = (part.clone().requires_grad_() for part in (b, b.double()))
    divergence(kind, a, narrow).sum().backward()
    exact(kind, a.double(), wide).sum().backward()
    assert narrow.grad is not None
    assert wide.grad is not None
    scale = float(wide.grad.abs().max())
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-2, atol=1e-3 * scale)
    assert torch.autograd.gradcheck(lambda x: exact(kind, a.double(), x).sum(), (wide,))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_at_equality_is_finite_and_nothing(kind: Kind) -> None:
    a = logits_like(kind)
    b = a.clone().requires_grad_()
    divergence(kind, a, b).sum().backward()
    assert b.grad is not None
    assert torch.isfinite(b.grad).all()
    assert b.grad.abs().max() < 1e-6


def test_the_divergences_have_the_values_of_the_formulas() -> None:
    two = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    single = torch.tensor([1.0]), torch.tensor([-1.0])
    gap = torch.sigmoid(torch.tensor(1.0)) - torch.sigmoid(torch.tensor(-1.0))
    assert symmetric_kl(*two).item() == pytest.approx(2 * gap.item(), rel=1e-6)
    assert symmetric_bernoulli_kl(*single).item() == pytest.approx(2 * gap.item(), rel=1e-6)
    assert squared_difference(torch.tensor([4.0]), torch.tensor([1.0]), 5.0).item() == pytest.approx(0.36)
    assert divergence("regression", torch.tensor([4.0]), torch.tensor([1.0]), span=5.0).item() == pytest.approx(0.36)
