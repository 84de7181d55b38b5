"""Weightings: their formulas, and that a learned weight neither vanishes nor runs away."""

from __future__ import annotations

import math
import typing

import pytest
import torch

from smoothtune.config.stage import WeightingName
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.registry import TABLE

FACTS = {"large": TaskFacts(300, 2.0), "small": TaskFacts(100, 0.5)}
ONE = torch.tensor(1.0)


def weights(*names: str) -> WeightingProduct:
    return WeightingProduct(names, FACTS)


def factors(product: WeightingProduct) -> dict[str, float]:
    return {task: product(task, ONE)[0].item() for task in FACTS}


def test_every_weighting_of_the_configuration_is_registered() -> None:
    assert set(typing.get_args(WeightingName)) == set(TABLE["weightings"])
    assert len(TABLE["weightings"]) == 4


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("none",), {"large": 1.0, "small": 1.0}),
        (("fixed",), {"large": 2.0, "small": 0.5}),
        (("inverse_size",), {"large": 0.5, "small": 1.5}),
        (("learned",), {"large": 1.0, "small": 1.0}),
        (("fixed", "inverse_size"), {"large": 1.0, "small": 0.75}),
        (("inverse_size", "learned"), {"large": 0.5, "small": 1.5}),
    ],
)
def test_factors(names: tuple[str, ...], wanted: dict[str, float]) -> None:
    assert factors(weights(*names)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["none", "fixed", "inverse_size"])
def test_constant_weightings_have_no_penalty_and_nothing_to_train(name: str) -> None:
    product = weights(name)
    assert product("large", ONE)[1].item() == 0
    assert not list(product.parameters())
    assert product.factors() == {}


def test_inverse_size_factors_have_mean_one() -> None:
    assert sum(factors(weights("inverse_size")).values()) / 2 == pytest.approx(1)


@pytest.mark.parametrize("loss", [0.01, 0.5, 2.0, 30.0])
def test_learned_weight_stands_still_at_its_optimum(loss: float) -> None:
    product = weights("learned")
    best = (loss + math.sqrt(loss**2 + 8 * loss)) / 4  # of 2 s^2 = loss (1 + s)
    with torch.no_grad():
        next(product.parameters()).fill_(math.log(best))
    weighted, penalty = product("large", torch.tensor(loss))
    (weighted + penalty).backward()
    gradient = next(product.parameters()).grad
    assert gradient is not None
    assert gradient[0].item() == pytest.approx(0, abs=1e-5 * (1 + loss))
    assert weighted.item() == pytest.approx(loss / (2 * best), rel=1e-5)


@pytest.mark.parametrize("loss", [1e-3, 1.0, 100.0])
def test_learned_weight_stays_positive_and_bounded_away_from_nothing(loss: float) -> None:
    product = weights("learned")
    optimiser = torch.optim.SGD(product.parameters(), lr=0.02)
    for _ in range(500):
        optimiser.zero_grad()
        sum(product("large", torch.tensor(loss))).backward()
        optimiser.step()
    factor = product.factors()["large"]
    assert math.isfinite(factor)
    assert factor > 0.5 / (1 + loss)
    assert product.factors()["small"] == pytest.approx(1)


def test_penalty_is_scaled_by_the_other_factors() -> None:
    alone = weights("learned")("small", ONE)[1].item()
    assert alone == pytest.approx(math.log(1.5))
    assert weights("inverse_size", "learned")("small", ONE)[1].item() == pytest.approx(1.5 * alone)
    assert weights("learned", "inverse_size", "fixed")("small", ONE)[1].item() == pytest.approx(0.75 * alone)


def test_the_optimum_of_a_learned_weight_does_not_depend_on_the_other_factors() -> None:
    found = []
    for names in (("learned",), ("inverse_size", "learned")):
        product = weights(*names)
        sum(product("small", torch.tensor(2.0))).backward()
        gradient = next(product.parameters()).grad
        assert gradient is not None
        found.append(gradient[1].item())
    assert found[1] == pytest.approx(1.5 * found[0])


def test_gradient_reaches_the_loss_through_the_factor() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    weights("inverse_size", "learned")("small", loss)[0].backward()
    assert loss.grad is not None
    assert loss.grad.item() == pytest.approx(1.5)
