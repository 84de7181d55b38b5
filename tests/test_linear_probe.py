"""The linear probe: its fits are scikit-learn's, its strength is chosen on held-out rows, and an output takes it exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from smoothtune.evaluation import linear_probe
from smoothtune.evaluation.linear_probe import LENGTH, ProbeTargets, balanced, choose, fit, folds_of, score
from smoothtune.nn.outputs import LinearOutput, TwoLayerOutput, set_linear
from smoothtune.types import Kind

FEATURES = 40


def rows_of(kind: Kind, count: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, ProbeTargets]:
    """Features (count, F) that tell the target, with noise, and the rows."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, FEATURES)).astype(np.float32)
    values = features @ draw.normal(size=(FEATURES, classes)) + draw.normal(size=(count, classes))
    if kind == "regression":
        targets = np.clip(2.5 + values[:, 0] / 4, 0, 5)
        return features, ProbeTargets(kind, targets, 1, np.arange(count), None, 5.0)
    targets = values.argmax(axis=1) if kind == "classification" else (values[:, 0] > 0).astype(np.float32)
    return features, ProbeTargets(kind, targets, classes if kind == "classification" else 2, np.arange(count))


@pytest.mark.parametrize("count", [25, 120])  # fewer rows than features, and more
@pytest.mark.parametrize(("kind", "classes"), [("classification", 2), ("classification", 5), ("binary", 2)])
def test_a_fit_of_classes_is_that_of_scikit_learn(kind: Kind, classes: int, count: int) -> None:
    features, rows = rows_of(kind, count, classes)
    found = fit(features, rows, 3.0)
    size = np.sqrt(LENGTH / np.square(features).sum(axis=1).mean())
    model = LogisticRegression(C=3.0, tol=1e-8, max_iter=5000).fit(features * size, rows.targets.astype(int))
    expected = model.predict_proba(features * size)
    logits = found(features)
    wide = np.concatenate([np.zeros_like(logits), logits], axis=1) if kind == "binary" else logits
    chances = np.exp(wide - wide.max(axis=1, keepdims=True))
    np.testing.assert_allclose(chances / chances.sum(axis=1, keepdims=True), expected, atol=1e-3)


@pytest.mark.parametrize("count", [25, 120])
def test_a_fit_of_numbers_is_the_ridge_of_scikit_learn(count: int) -> None:
    features, rows = rows_of("regression", count)
    size = np.sqrt(LENGTH / np.square(features).sum(axis=1).mean())
    expected = Ridge(alpha=0.1).fit(features * size, rows.targets).predict(features * size)
    np.testing.assert_allclose(fit(features, rows, 10.0)(features)[:, 0], expected, atol=1e-4)


def test_a_class_without_rows_is_never_the_answer_and_a_single_class_always() -> None:
    features, rows = rows_of("classification", 60, 3)
    wider = ProbeTargets("classification", rows.targets, 5, rows.groups)
    logits = fit(features, wider, 1.0)(features)
    assert logits.shape == (60, 5)
    assert logits[:, 3:].max() < logits[:, :3].min() - 5
    alone = ProbeTargets("classification", np.full(60, 2), 3, rows.groups)
    assert (fit(features, alone, 1.0)(features).argmax(axis=1) == 2).all()
    assert (fit(features, ProbeTargets("binary", np.ones(60), 2, rows.groups), 1.0)(features) > 3).all()
    assert (fit(features, ProbeTargets("binary", np.zeros(60), 2, rows.groups), 1.0)(features) < -3).all()


def test_weights_of_classes_move_the_answers_towards_the_rare_class() -> None:
    features, rows = rows_of("binary", 200)
    rare = np.flatnonzero(rows.targets == 1)[:8]
    kept = np.sort(np.concatenate([np.flatnonzero(rows.targets == 0), rare]))
    part = rows.part(kept)
    weights = balanced(part.targets, 2)
    assert weights @ np.bincount(part.targets.astype(int)) == pytest.approx(len(kept))
    plain = fit(features[kept], part, 0.1)(features)
    heavy = fit(features[kept], ProbeTargets("binary", part.targets, 2, part.groups, weights), 0.1)(features)
    assert (heavy > 0).sum() > (plain > 0).sum()


def test_the_strength_is_one_that_held_out_rows_prefer() -> None:
    features, rows = rows_of("classification", 60)
    noise = np.concatenate([features, np.random.default_rng(1).normal(size=(60, 400)) * 3], axis=1).astype(np.float32)
    losses = {}
    for strength in linear_probe.STRENGTHS:
        losses[strength] = linear_probe.cross_validated(
            noise.astype(float), rows, strength, folds_of(rows, seed=3)
        ).loss
    chosen = choose(noise, rows, seed=3)
    least = min(losses.values())
    assert chosen.score.loss == pytest.approx(losses[chosen.strength], rel=1e-2)
    assert chosen.score.loss < max(losses.values())
    assert least <= chosen.score.loss
    assert choose(noise, rows, seed=3).strength == chosen.strength  # the same for the same seed


def test_rows_of_one_text_are_in_one_fold_and_every_row_is_held_out_once() -> None:
    _, rows = rows_of("classification", 30)
    doubled = ProbeTargets("classification", np.tile(rows.targets, 2), 3, np.tile(np.arange(30), 2))
    folds = folds_of(doubled, seed=1)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    for train, test in folds:
        assert not set(doubled.groups[train]) & set(doubled.groups[test])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_rows_for_folds_still_have_a_fit(count: int) -> None:
    features, rows = rows_of("classification", count)
    chosen = choose(features, rows, seed=1)
    assert np.isnan(chosen.score.loss)
    assert np.isfinite(fit(features, rows, chosen.strength)(features)).all()


def test_a_score_knows_losses_and_values() -> None:
    about = ProbeTargets("classification", np.array([0, 1]), 2, np.arange(2))
    found = score(np.array([[0.0, 0.0], [0.0, np.log(3.0)]]), about)
    assert found.loss == pytest.approx((np.log(2) - np.log(0.75)) / 2)
    numbers = ProbeTargets("regression", np.array([1.0, 3.0]), 1, np.arange(2), None, 4.0)
    assert score(np.array([[1.0], [1.0]]), numbers).loss == pytest.approx((2 / 4) ** 2 / 2)


@pytest.mark.parametrize("output", [LinearOutput, TwoLayerOutput])
@pytest.mark.parametrize(
    ("kind", "classes"), [("classification", 2), ("classification", 150), ("binary", 1), ("regression", 1)]
)
def test_an_output_answers_as_the_fit_to_1e_5(output: type, kind: Kind, classes: int) -> None:
    draw = torch.Generator().manual_seed(1)
    limits = (0.0, 5.0) if kind == "regression" else None
    part = output(64, classes, kind=kind, value_range=limits)
    weight = torch.randn(classes, 64, generator=draw, dtype=torch.float64) / 8
    bias = torch.randn(classes, generator=draw, dtype=torch.float64)
    set_linear(part, weight, bias)
    x = torch.randn(32, 64, generator=draw)
    expected = x.double() @ weight.T + bias
    found = part(x).double()
    torch.testing.assert_close(found.view(32, -1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("classes", "count"), [(25, 25), (15, 30), (30, 60)])
def test_classes_of_a_row_or_two_each_are_cross_validated_too(classes: int, count: int) -> None:
    draw = np.random.default_rng(0)
    about = ProbeTargets("classification", np.arange(count) % classes, classes, np.arange(count))
    chosen = choose(draw.normal(size=(count, FEATURES)), about, seed=1)
    assert np.isfinite(chosen.score.loss)
