"""Adversarial smoothness on the bundled encoder and real sentences: what it claims, by measurement, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.config.tasks import Shape
from smoothtune.config.trunks import TrunkOptions
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.nn.building import build_model
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.objective.look import Look, Regulariser
from smoothtune.objective.measuring import rescaled, search_of
from smoothtune.objective.perturbation import norms
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.runtime.random import Pass
from smoothtune.training.step import StepModule
from smoothtune.types import Batch, Tokens

TEXTS = (
    "The film is slow, but its last half hour is worth the wait.",
    "Nothing in it works.",
    "A warm and quietly funny story about two brothers who have not spoken for years.",
    "How do I learn to cook when I have only one pan?",
    "I would not watch it again.",
    "The best thing I have seen this year, and the loudest.",
)
TASKS = ("stars", "same", "near")
SEEDS = range(20)


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    options = EncoderOptions()
    shapes: dict[str, Any] = {
        "stars": {"kind": "classification", "text": ("text",), "trunk": "single"},
        "same": {"kind": "binary", "text": ("a", "b"), "trunk": "pair"},
        "near": {"kind": "regression", "text": ("a", "b"), "trunk": "pair", "range": (0, 5)},
    }
    taken = {name: TypeAdapter(Shape).validate_python(shape) for name, shape in shapes.items()}
    trunks = {
        name: TypeAdapter(TrunkOptions).validate_python({"kind": kind})
        for name, kind in (("single", "mean"), ("pair", "siamese"))
    }
    encoder = load_encoder(find_checkpoint(options), options)
    labels = {"stars": tuple("12345"), "same": ("0", "1"), "near": None}
    return build_model(encoder, taken, trunks, labels, seed=1).train()


@pytest.fixture(scope="module")
def batches() -> dict[str, Batch]:
    tokenizer = load_tokenizer(find_checkpoint(EncoderOptions()))
    found = tokenizer.encode_batch(list(TEXTS))
    longest = max(sum(one.attention_mask) for one in found)
    ids, mask = torch.zeros(len(TEXTS), longest, dtype=torch.long), torch.zeros(len(TEXTS), longest, dtype=torch.bool)
    for row, one in enumerate(found):
        count = sum(one.attention_mask)
        ids[row, :count] = torch.tensor(one.ids[:count])
        mask[row, :count] = True
    tokens, half = Tokens(ids, mask, None), len(TEXTS) // 2
    pairs = torch.arange(half)
    return {
        "stars": Batch("stars", "single", tokens, torch.zeros(len(TEXTS), dtype=torch.long), torch.arange(len(TEXTS))),
        "same": Batch("same", "separate", tokens, torch.zeros(half), pairs),
        "near": Batch("near", "separate", tokens, torch.zeros(half), pairs),
    }


def built(model: MultiTaskModel, **options: Any) -> Regulariser:
    given: RegulariserOptions = TypeAdapter(RegulariserOptions).validate_python({"kind": "smoothness", **options})
    return build_regularisers([given], depth=model.encoder.depth)[0]


def look_of(model: MultiTaskModel, regulariser: Regulariser, batch: Batch, seed: int) -> Look:
    module = StepModule(
        model,
        WeightingProduct(("none",), {task: TaskFacts(6, 1.0) for task in TASKS}),
        dtype=torch.float32,
        regularisers=[regulariser],
    )
    return module.looked(batch, Pass(seed, "truth", 1, update_statistics=False), regulariser, 0.5)


def apart(look: Look, d: Tensor, layer: int) -> float:
    with torch.no_grad():
        return float(look.divergence(look.logits_of(d, layer=layer), look.logits).mean())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("preset", "more"), [("exact", {}), ("cheap", {}), ("paper", {"dropout": "shared"})])
def test_the_perturbation_found_moves_the_answers_more_than_a_random_one_of_its_norms(
    model: MultiTaskModel, batches: dict[str, Batch], task: str, preset: str, more: dict[str, Any]
) -> None:
    regulariser = built(model, preset=preset, **more)
    search = search_of(regulariser)
    assert search is not None
    worse = []
    for seed in SEEDS:
        look = look_of(model, regulariser, batches[task], seed)
        d = search.perturbation(look)
        random = rescaled(look.draw(d, "normal"), d, look.mask, search)
        worse.append(apart(look, d, search.layer) >= apart(look, random, search.layer))
    assert worse == [True] * len(SEEDS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", ["exact", "cheap", "paper", "wang", "mtdnn"])
def test_the_radius_holds_on_real_tokens_and_padding_is_not_touched(
    model: MultiTaskModel, batches: dict[str, Batch], task: str, preset: str
) -> None:
    regulariser = built(model, preset=preset)
    search = search_of(regulariser)
    assert search is not None
    look = look_of(model, regulariser, batches[task], 3)
    d = search.perturbation(look)
    assert not look.mask.all()
    assert (d[~look.mask] == 0).all()
    found = norms(d, look.mask, "inf", "token")[look.mask]
    radius = {"paper": 1e-5, "wang": 1e-5, "mtdnn": 1.0}.get(preset, regulariser.options.radius)  # type: ignore[attr-defined]
    assert float(found.max()) <= radius
    if preset in ("wang", "mtdnn"):  # on the sphere every token is as far away as the radius allows
        torch.testing.assert_close(found, torch.full_like(found, radius), rtol=1e-7, atol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", [0, 3, 5])
def test_nothing_added_under_the_same_masks_is_exactly_nothing(
    model: MultiTaskModel, batches: dict[str, Batch], task: str, layer: int
) -> None:
    regulariser = built(model, layer=layer)
    look = look_of(model, regulariser, batches[task], 1)
    assert apart(look, torch.zeros_like(look.states_at(layer), dtype=torch.float32), layer) == 0.0
    assert apart(look, torch.full_like(look.states_at(layer), 0.1, dtype=torch.float32), layer) > 0.0


def test_the_terms_gradient_at_a_fixed_perturbation_is_that_of_finite_differences(
    model: MultiTaskModel, batches: dict[str, Batch]
) -> None:
    """In float64 throughout, on weights of every part: the plain path, since kernels compute in float32 at most."""
    wide = model.double()
    try:
        regulariser = built(model)
        look = look_of(wide, regulariser, batches["stars"], 2)
        d = 0.05 * torch.randn(look.states_at(0).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        d = d * look.mask.unsqueeze(-1)
        wide.zero_grad(set_to_none=True)
        _term(look, d).backward()
        for name in (
            "encoder.layers.2.up.weight",
            "encoder.layers.0.attention.qkv.weight",
            "outputs.stars.linear.weight",
        ):
            part = wide.get_parameter(name)
            assert part.grad is not None
            expected = _slope(wide, regulariser, batches["stars"], part, d)
            torch.testing.assert_close((part.grad * part.grad).sum(), expected, rtol=1e-4, atol=0)
    finally:
        model.float()
        model.zero_grad(set_to_none=True)


def _term(look: Look, d: Tensor) -> Tensor:
    return look.divergence(look.logits_of(d), look.logits).mean()


def _slope(model: MultiTaskModel, regulariser: Regulariser, batch: Batch, part: Tensor, d: Tensor) -> Tensor:
    """The central difference of the term along the gradient of `part`."""
    assert part.grad is not None
    gradient, step, values = part.grad.clone(), 1e-5 / float(part.grad.norm()), []
    for sign in (1, -1):
        with torch.no_grad():
            part.add_(sign * step * gradient)
            values.append(_term(look_of(model, regulariser, batch, 2), d))
            part.sub_(sign * step * gradient)
    return (values[0] - values[1]) / (2 * step)
