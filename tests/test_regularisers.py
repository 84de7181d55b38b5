"""Every regulariser over a small pure function: against definitions, float64 and the papers' algorithms."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from smoothtune.config.regularisers import PRESETS, RegulariserOptions, SmoothnessOptions
from smoothtune.errors import TrainingError
from smoothtune.objective.divergences import divergence
from smoothtune.objective.look import Look
from smoothtune.objective.perturbation import norms
from smoothtune.objective.regularisers import Term, build_regularisers
from smoothtune.registry import TABLE
from smoothtune.types import Kind
from tests.pure_look import SPAN, Net, look_at, net, passes_of

KINDS: tuple[Kind, ...] = ("classification", "binary", "regression")
MASKS = ("independent", "shared", "off")
DEPTH = 2
SEARCHING = ("smoothness", "vat")
# One of every kind, with what makes its term large enough to see.
EVERY: dict[str, dict[str, Any]] = {
    "smoothness": {},
    "proximal": {},
    "r_drop": {},
    "r3f": {"noise": 0.1},
    "vat": {},
    "freelb": {},
}


def built(**options: Any) -> Term:
    """One regulariser as a stage would have it."""
    (found,) = build_regularisers((TypeAdapter(RegulariserOptions).validate_python(options),), depth=DEPTH)
    assert isinstance(found, Term)
    return found


def slopes(term: Tensor, given: Net) -> dict[str, Tensor]:
    found = torch.autograd.grad(term, list(given.weights.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros(()) if one is None else one for name, one in zip(given.weights, found, strict=True)}


def apart(given: Net, a: Tensor, b: Tensor) -> Tensor:
    return divergence(given.kind, a, b, span=SPAN if given.kind == "regression" else 1.0).mean()


def silent(look: Look) -> Look:
    """The same Look with draws of nothing but 0."""
    fields = {name: getattr(look, name) for name in Look.__dataclass_fields__}
    return Look(**{**fields, "draw": lambda like, distribution: torch.zeros(like.shape)})


# --- what holds for all of them


def test_every_kind_of_the_configuration_is_built_and_tried_here() -> None:
    kinds = [get_args(one.model_fields["kind"].annotation)[0] for one in get_args(get_args(RegulariserOptions)[0])]
    assert list(TABLE["regularisers"]) == kinds
    assert sorted(EVERY) == sorted(kinds)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("task_kind", KINDS)
@pytest.mark.parametrize("kind", EVERY)
def test_a_term_is_a_finite_scalar_that_teaches_every_weight(kind: str, task_kind: Kind, pairs: bool) -> None:
    given = net(task_kind, pairs=pairs)
    regulariser = built(kind=kind, weight=2.0, **EVERY[kind])
    if kind == "proximal":  # at its first look the teacher is the model
        regulariser(look_at(given, progress=0.1))
        with torch.no_grad():
            given.weights["first"].add_(0.1)
    term, record = regulariser(look_at(given))
    assert term.shape == ()
    assert term > 0
    assert math.isfinite(record["value"])
    assert all(isinstance(value, float) for value in record.values())
    assert all(slope.abs().sum() > 0 and torch.isfinite(slope).all() for slope in slopes(term, given).values())
    assert all(weight.grad is None for weight in given.weights.values())


@pytest.mark.parametrize("kind", EVERY)
def test_the_weight_multiplies_the_value(kind: str) -> None:
    given, extra = net("binary"), {"second_loss": False} if kind == "r_drop" else {}
    for weight in (0.0, 1.0, 3.0):
        regulariser = built(kind=kind, weight=weight, **EVERY[kind], **extra)
        term, record = regulariser(look_at(given))
        assert float(term.detach()) == pytest.approx(weight * record["value"], rel=1e-6)


@pytest.mark.parametrize("task_kind", KINDS)
@pytest.mark.parametrize("kind", ["smoothness", "r3f", "vat", "proximal"])
@pytest.mark.parametrize("masks", ["shared", "off"])
def test_a_perturbation_of_nothing_has_a_term_of_exactly_nothing(kind: str, task_kind: Kind, masks: str) -> None:
    given = net(task_kind)
    term, record = built(kind=kind, dropout=masks, **EVERY[kind])(silent(look_at(given)))
    assert float(term.detach()) == 0
    assert record["value"] == 0
    assert record.get("norm", 0) == 0
    assert all(torch.equal(slope, torch.zeros_like(slope)) for slope in slopes(term, given).values())


@pytest.mark.parametrize("kind", ["r_drop", "proximal"])
def test_equal_outputs_of_regression_are_not_pushed_together(kind: str) -> None:
    """(B,) against (B, 1) would broadcast to twice the variance of the outputs."""
    given = net("regression", rate=0.0)
    look = look_at(given)
    assert look.logits.std() > 0.1
    term, record = built(kind=kind, **({"second_loss": False} if kind == "r_drop" else {}))(look)
    assert (float(term.detach()), record["value"]) == (0.0, 0.0)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("masks", MASKS)
def test_passes_have_the_masks_that_are_asked_for(kind: str, masks: str) -> None:
    if kind == "r_drop" or (kind == "freelb" and masks == "off"):
        return
    look = look_at(net("classification"))
    built(kind=kind, dropout=masks, **EVERY[kind])(look)
    made = passes_of(look)
    assert {one["dropout"] for one in made} == {{"independent": "fresh", "shared": "as_clean", "off": "off"}[masks]}
    compared = [one for one in made if one["perturbation"] is None]
    assert len(compared) == (masks == "off") + (kind == "proximal")


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("kind", SEARCHING)
def test_the_search_teaches_no_weight_and_the_last_pass_does(kind: str, masks: str) -> None:
    look = look_at(net("classification"))
    built(kind=kind, dropout=masks, steps=3)(look)
    perturbed = [one["learn"] for one in passes_of(look) if one["perturbation"] is not None]
    assert perturbed == [False, False, False, True]


@pytest.mark.parametrize("kind", [*SEARCHING, "freelb"])
def test_the_perturbation_alone_is_the_one_that_the_term_uses(kind: str) -> None:
    given, regulariser = net("classification", pairs=True), built(kind=kind)
    look = look_at(given)
    regulariser(look)
    used = passes_of(look)[-1]["perturbation"]
    again = look_at(given)
    alone = regulariser.perturbation(again)
    assert torch.equal(alone, used)
    assert not alone.requires_grad
    assert not any(one["learn"] for one in passes_of(again))
    assert torch.equal(alone[~given.mask], torch.zeros_like(alone[~given.mask]))
    assert all(
        hasattr(built(kind=other), "perturbation") == (other in (*SEARCHING, "r3f", "freelb")) for other in EVERY
    )


# --- smoothness


@pytest.mark.parametrize(
    ("norm", "per", "direction", "projection", "masks"),
    itertools.product(
        ["inf", "2"], ["token", "text"], ["raw", "normalised", "sign"], ["ball", "sphere", "unit"], MASKS
    ),
)
def test_every_choice_of_the_search_keeps_its_radius(
    norm: Any, per: Any, direction: str, projection: str, masks: str
) -> None:
    given = net("classification", pairs=True)
    choice = {"norm": norm, "per": per, "direction": direction, "projection": projection, "dropout": masks}
    regulariser = built(kind="smoothness", radius=0.02, noise=0.01, step_size=0.5, steps=2, **choice)
    look = look_at(given)
    term, record = regulariser(look)
    d = passes_of(look)[-1]["perturbation"]
    lengths = norms(d, given.mask, norm, per)
    radius = 1.0 if projection == "unit" else 0.02
    assert (lengths <= radius).all()
    assert record["norm"] == float(lengths.max())
    assert torch.equal(d[~given.mask], torch.zeros_like(d[~given.mask]))
    if projection != "ball":
        real = given.mask if per == "token" else given.mask.any(1, keepdim=True)
        wanted = torch.full((int(real.sum()),), radius).double()
        torch.testing.assert_close(lengths.squeeze(-1)[real], wanted, rtol=1e-6, atol=0)
    assert all(torch.isfinite(slope).all() for slope in slopes(term, given).values())


def test_the_presets_have_the_norms_that_they_name() -> None:
    given = net("classification")
    found = {name: built(kind="smoothness", preset=name).perturbation(look_at(given)) for name in PRESETS}
    tokens = {name: norms(d, given.mask, "inf", "token").squeeze(-1)[given.mask] for name, d in found.items()}
    below = float(torch.tensor(1e-5))
    assert below <= 1e-5
    assert torch.equal(tokens["wang"], torch.full_like(tokens["wang"], below))
    assert torch.equal(tokens["mtdnn"], torch.ones_like(tokens["mtdnn"]))
    assert (tokens["paper"] <= 1e-5).all()
    assert set(found) == set(get_args(SmoothnessOptions.model_fields["preset"].annotation))
    for name in ("exact", "cheap"):
        assert (tokens[name] <= SmoothnessOptions(preset=name).radius).all()
    assert min(float(one.min()) for one in tokens.values()) > 0


@pytest.mark.parametrize("task_kind", KINDS)
@pytest.mark.parametrize("preset", ["paper", "exact", "cheap"])
def test_the_perturbation_found_is_worse_than_a_random_one_of_its_norms(preset: str, task_kind: Kind) -> None:
    for seed in range(20):
        given = net(task_kind, seed=seed, pairs=seed % 2 == 1)
        regulariser = built(kind="smoothness", preset=preset, dropout="shared")
        look, (layer,) = look_at(given, seed=seed), regulariser.layers
        d = regulariser.perturbation(look)
        draws = torch.randn(d.shape, generator=torch.Generator().manual_seed(seed)) * given.mask.unsqueeze(-1)
        lengths, drawn = (norms(one, given.mask, "inf", "token") for one in (d, draws))
        random = (draws * lengths / torch.where(drawn == 0, 1.0, drawn)).float()
        worst, chance = (look.divergence(look.logits_of(one, layer=layer), look.logits).mean() for one in (d, random))
        assert worst >= chance, f"seed {seed}: {float(worst)} below {float(chance)}"
        assert worst > 0


@pytest.mark.parametrize("detach_clean", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("task_kind", KINDS)
def test_the_gradient_at_a_fixed_perturbation_is_that_of_float64_differences(
    task_kind: Kind, layer: int, detach_clean: bool
) -> None:
    given = net(task_kind)
    regulariser = built(
        kind="smoothness", radius=0.2, step_size=0.2, layer=layer, detach_clean=detach_clean, weight=2.0
    )
    look = look_at(given)
    term, _ = regulariser(look)
    d, wide = passes_of(look)[-1]["perturbation"].double(), given.wide()
    held = wide.logits(wide.weights).detach()

    def value(weights: dict[str, Tensor]) -> float:
        clean = held if detach_clean else wide.logits(weights)
        return float(2.0 * apart(wide, wide.logits(weights, 0, d, layer), clean).detach())

    compared = 0
    for name, slope in slopes(term, given).items():
        scale = float(slope.abs().max())
        for place in [(0, 0), (1, 2), (3, 1), (5, 3)]:
            step = torch.zeros_like(wide.weights[name])
            step[place] = 1e-5
            up, down = ({**wide.weights, name: wide.weights[name].detach() + sign * step} for sign in (1, -1))
            difference = (value(up) - value(down)) / 2e-5
            assert float(slope[place]) == pytest.approx(difference, rel=1e-3, abs=1e-4 * scale), (name, place)
            compared += abs(difference) > 0
    assert compared >= (4 if task_kind == "classification" else 1)


def test_the_search_is_the_algorithm_step_by_step() -> None:
    """Jiang et al. (2020), Algorithm 1: normal noise, a normalised step, back to the ball; twice."""
    given = net("classification")
    choice = {"radius": 0.05, "noise": 0.01, "step_size": 0.03, "steps": 2, "direction": "normalised"}
    found = built(kind="smoothness", **choice).perturbation(look_at(given, seed=3))
    real = given.mask.unsqueeze(-1)
    d = 0.01 * torch.empty(given.states.shape).normal_(generator=torch.Generator().manual_seed(3)) * real
    for _ in range(2):
        d.requires_grad_()
        clean = given.logits(given.weights).detach()
        (g,) = torch.autograd.grad(apart(given, given.logits(given.weights, 0, d), clean), d)
        d = (d.detach() + 0.03 * g / g.abs().amax(-1, keepdim=True).clamp(min=1e-30)).clamp(-0.05, 0.05) * real
    torch.testing.assert_close(found, d, rtol=1e-3, atol=1e-5)


def test_detaching_the_clean_side_changes_the_gradient_and_not_the_value() -> None:
    given = net("classification")
    both, one = (built(kind="smoothness", detach_clean=flag)(look_at(given))[0] for flag in (False, True))
    assert torch.equal(both, one)
    assert not torch.allclose(slopes(both, given)["out"], slopes(one, given)["out"], rtol=1e-2)


def test_without_dropout_both_sides_have_none() -> None:
    given = net("classification")
    look = look_at(given)
    _, record = built(kind="smoothness", dropout="off")(look)
    d = passes_of(look)[-1]["perturbation"]
    wanted = apart(given, given.logits(given.weights, None, d), given.logits(given.weights, None))
    assert record["value"] == pytest.approx(float(wanted), rel=1e-5)
    shared = built(kind="smoothness", dropout="shared")(look_at(given))[1]["value"]
    assert record["value"] != pytest.approx(shared, rel=1e-2)


# --- the relatives, each against its paper


def test_r_drop_is_the_mean_of_both_divergences_and_the_second_loss() -> None:
    given = net("classification")
    fresh = given.logits(given.weights, 1)
    p, q = (torch.log_softmax(one, -1) for one in (given.logits(given.weights), fresh))
    kl = torch.nn.functional.kl_div
    wanted = sum(kl(a, b, log_target=True, reduction="batchmean") for a, b in ((p, q), (q, p))) / 2
    loss = torch.nn.functional.cross_entropy(fresh, given.labels)
    for second, every in ((True, 1), (False, 1), (True, 4)):
        regulariser = built(kind="r_drop", weight=3.0, second_loss=second, every=every)
        term, record = regulariser(look_at(given))
        expected = every * (3 * wanted + loss * second)
        torch.testing.assert_close(term, expected, rtol=1e-4, atol=0)
        assert record["value"] == pytest.approx(float(wanted), rel=1e-4)
        for name, slope in slopes(term, given).items():
            torch.testing.assert_close(slope, slopes(expected, given)[name], rtol=1e-3, atol=1e-6)


def test_r_drop_of_regression_is_the_squared_difference_in_units_of_the_range() -> None:
    given = net("regression")
    _, record = built(kind="r_drop")(look_at(given))
    difference = given.logits(given.weights) - given.logits(given.weights, 1)
    assert record["value"] == pytest.approx(float((difference / SPAN).square().mean()), rel=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_r3f_compares_with_one_noisy_pass(distribution: str, layer: int) -> None:
    given, generator = net("classification"), torch.Generator().manual_seed(0)
    z = torch.empty(given.states.shape)
    z = z.normal_(generator=generator) if distribution == "normal" else z.uniform_(-1, 1, generator=generator)
    z = 0.1 * z * given.mask.unsqueeze(-1)
    regulariser = built(kind="r3f", noise=0.1, distribution=distribution, dropout="shared", layer=layer)
    look = look_at(given)
    term, _ = regulariser(look)
    assert torch.equal(passes_of(look)[-1]["perturbation"], z)
    wanted = apart(given, given.logits(given.weights, 0, z, layer), given.logits(given.weights))
    torch.testing.assert_close(term, wanted, rtol=1e-5, atol=0)
    for name, slope in slopes(term, given).items():  # both sides carry gradient
        torch.testing.assert_close(slope, slopes(wanted, given)[name], rtol=1e-4, atol=1e-6)


def test_vat_finds_the_direction_of_largest_curvature() -> None:
    given = net("classification", examples=1, rate=0.0)
    wide = given.wide()
    clean = wide.logits(wide.weights).detach()

    def value(d: Tensor) -> Tensor:
        p, q = (torch.log_softmax(one, -1) for one in (clean, wide.logits(wide.weights, 0, d)))
        return (p.exp() * (p - q)).sum()

    curvature = torch.autograd.functional.hessian(value, torch.zeros(wide.states.shape).double())
    size = wide.states.numel()
    _, directions = torch.linalg.eigh(curvature.reshape(size, size))
    found = built(kind="vat", steps=20, radius=0.7).perturbation(look_at(given)).double().flatten()
    assert float(found.norm()) == pytest.approx(0.7, rel=1e-6)
    assert abs(float(found @ directions[:, -1])) / 0.7 > 0.999


@pytest.mark.parametrize("radius", [0.2, 2.0])
def test_vat_is_the_one_sided_divergence_at_its_radius_from_a_fixed_clean_side(radius: float) -> None:
    given = net("classification", pairs=True)
    look = look_at(given)
    term, record = built(kind="vat", radius=radius, finite_difference=0.05)(look)
    steps = [norms(one["perturbation"].detach(), given.mask, "2", "text").flatten() for one in passes_of(look)]
    for found, length in zip(steps, (0.05, radius), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, length), rtol=1e-6, atol=0)
    d = passes_of(look)[-1]["perturbation"]
    p = torch.log_softmax(given.logits(given.weights).detach(), -1)
    wanted = (p.exp() * (p - torch.log_softmax(given.logits(given.weights, 0, d), -1))).sum(-1).mean()
    torch.testing.assert_close(term, wanted, rtol=1e-3, atol=1e-7)
    assert record["norm"] == pytest.approx(radius, rel=1e-6)
    for name, slope in slopes(term, given).items():
        torch.testing.assert_close(slope, slopes(wanted, given)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("steps", "noise"), [(1, 0.1), (2, 0.1), (3, 0.0), (4, 0.2)])
def test_freelb_is_its_algorithm(steps: int, noise: float) -> None:
    """Zhu et al. (2020), Algorithm 1, with a gradient of the weights added up pass by pass."""
    given = net("classification")
    choice = {"steps": steps, "noise": noise, "step_size": 0.15, "radius": 0.2}
    term, record = built(kind="freelb", **choice)(look_at(given, seed=7))
    real = given.mask.unsqueeze(-1)
    numbers = (given.mask.sum(1) * given.states.shape[-1]).view(-1, 1, 1)
    d = torch.empty(given.states.shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(7))
    d = noise * d * real / numbers.sqrt()
    wanted = {name: torch.zeros_like(weight) for name, weight in given.weights.items()}
    for step in range(steps):
        d = d.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(given.logits(given.weights, 0, d), given.labels)
        for name, slope in slopes(loss, given).items():
            wanted[name] += slope / steps
        if step < steps - 1:
            (g,) = torch.autograd.grad(loss, d)
            d = d + 0.15 * g / g.norm(dim=(1, 2), keepdim=True)
            d = d * (0.2 / d.norm(dim=(1, 2), keepdim=True)).clamp(max=1)
    for name, slope in slopes(term, given).items():
        torch.testing.assert_close(slope, wanted[name], rtol=1e-3, atol=1e-5)
    assert record["norm"] == pytest.approx(float(d.norm(dim=(1, 2)).max()), rel=1e-4)
    assert record["norm"] <= max(0.2, noise)


def test_freelb_climbs() -> None:
    given = net("classification", rate=0.0)
    one, many = (built(kind="freelb", steps=steps, radius=1.0)(look_at(given))[1]["value"] for steps in (1, 6))
    assert many > one + 0.01


# --- proximal: the teacher


def follow(start: Tensor, *moves: tuple[Tensor, float]) -> Tensor:
    for weight, beta in moves:
        start = beta * start + (1 - beta) * weight
    return start


def moved_by(given: Net, amount: float) -> Tensor:
    with torch.no_grad():
        given.weights["first"].add_(amount)
    return given.weights["first"].detach().clone()


def test_the_teacher_follows_once_per_step_faster_in_the_first_tenth() -> None:
    given, regulariser = net("classification"), built(kind="proximal", beta_first=0.5, beta=0.9)
    first = given.weights["first"].detach().clone()
    assert regulariser(look_at(given, progress=0.0))[0] == 0
    second = moved_by(given, 0.2)
    for task in ("mood", "near"):  # two batches of one optimiser step
        look = look_at(given, progress=0.05, task=task)
        term, _ = regulariser(look)
        assert [one["gradient"] for one in passes_of(look)] == [False]
    teacher = regulariser.state_dict()["memory.teacher.first"]
    torch.testing.assert_close(teacher, follow(first, (second, 0.5)))
    theirs = given.logits({**given.weights, "first": teacher}).detach()
    wanted = apart(given, given.logits(given.weights), theirs)
    torch.testing.assert_close(term, wanted, rtol=1e-4, atol=0)
    for name, slope in slopes(term, given).items():
        torch.testing.assert_close(slope, slopes(wanted, given)[name], rtol=1e-3, atol=1e-6)
    third = moved_by(given, -0.5)
    regulariser(look_at(given, progress=0.1))
    assert regulariser.state_dict()["memory.teacher.first"] is teacher
    torch.testing.assert_close(teacher, follow(first, (second, 0.5), (third, 0.9)))


def test_a_resumed_teacher_goes_on_as_if_it_had_never_stopped() -> None:
    given, regulariser = net("classification"), built(kind="proximal", every=2)
    for step in range(3):
        regulariser(look_at(given, progress=step / 10))
        regulariser.count("mood")
        moved_by(given, 0.1)
    state = {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in regulariser.state_dict().items()
    }
    resumed = built(kind="proximal", every=2)
    resumed.load_state_dict(state)
    assert [one.due("mood") for one in (regulariser, resumed)] == [False, False]
    for progress in (0.2, 0.4):  # the first belongs to the step that was looked at last
        moved_by(given, 0.1)
        terms = [one(look_at(given, progress=progress))[0] for one in (regulariser, resumed)]
        assert torch.equal(*terms)
        assert terms[0] > 0
    before = regulariser.state_dict()
    regulariser.load_state_dict(state)
    after = regulariser.state_dict()
    assert before.keys() == after.keys() == state.keys()
    assert all(after[key] is before[key] for key in after if key.startswith("memory.teacher."))
    assert all(torch.equal(torch.as_tensor(after[key]), torch.as_tensor(state[key])) for key in state)


def test_a_teacher_is_float32_whatever_the_weights_are() -> None:
    given = net("classification")
    halves = {name: weight.detach().bfloat16() for name, weight in given.weights.items()}
    look = look_at(given)
    fields = {name: getattr(look, name) for name in Look.__dataclass_fields__}
    regulariser = built(kind="proximal")
    regulariser(Look(**{**fields, "weights": lambda: halves}))
    state = regulariser.state_dict()
    assert {value.dtype for value in state.values() if isinstance(value, Tensor)} == {torch.float32}


def test_a_teacher_of_another_model_is_refused() -> None:
    given, regulariser = net("classification"), built(kind="proximal", name="slow")
    regulariser(look_at(given, progress=0.1))
    state = regulariser.state_dict()
    del state["memory.teacher.out"]
    regulariser.load_state_dict(state)
    with pytest.raises(TrainingError) as error:
        regulariser(look_at(given, progress=0.2))
    assert str(error.value) == (
        "regulariser slow: the teacher's weights are not those that train (out: the teacher lacks it); "
        "resume with the experiment that wrote the checkpoint, or begin the stage again"
    )


# --- what all kinds share: how much, on which tasks, how often, on how much of a batch


def test_names_layers_and_precision_are_those_of_the_options() -> None:
    found = [built(kind=kind, precision="float32", name="mine", **EVERY[kind]) for kind in EVERY]
    assert {(one.name, one.precision) for one in found} == {("mine", "float32")}
    assert [built(kind=kind).name for kind in EVERY] == list(EVERY)
    assert built(kind="vat").precision is None
    assert built(kind="vat", precision="bfloat16").precision == "bfloat16"
    for kind in ("smoothness", "r3f", "vat", "freelb"):
        assert [built(kind=kind, layer=layer).layers for layer in (0, 1, "middle")] == [(0,), (1,), (1,)]
    assert built(kind="r_drop").layers == built(kind="proximal").layers == ()
    (deep,) = build_regularisers((SmoothnessOptions(layer="middle"),), depth=13)
    assert deep.layers == (6,)


@pytest.mark.parametrize("kind", ["smoothness", "r3f", "vat", "freelb"])
def test_all_passes_begin_at_the_layer(kind: str) -> None:
    look = look_at(net("classification"))
    built(kind=kind, layer="middle")(look)
    perturbed = [one["layer"] for one in passes_of(look) if one["perturbation"] is not None]
    assert perturbed
    assert set(perturbed) == {1}


def test_several_are_built_in_their_order() -> None:
    options = [TypeAdapter(RegulariserOptions).validate_python({"kind": kind}) for kind in EVERY]
    assert [one.name for one in build_regularisers(options, depth=DEPTH)] == list(EVERY)
    assert build_regularisers((), depth=DEPTH) == ()


def test_it_applies_to_its_tasks() -> None:
    some, every = built(kind="vat", tasks=["near", "mood"]), built(kind="vat")
    assert [one.applies(task) for one in (some, every) for task in ("mood", "far")] == [True, False, True, True]


def test_it_looks_at_each_nth_batch_of_a_task_with_n_times_the_weight() -> None:
    regulariser = built(kind="vat", every=3, weight=2.0)
    due = []
    for number in range(7):
        due.append(regulariser.due("mood"))
        regulariser.count("mood")
        if number == 0:
            assert regulariser.due("near")
    assert due == [True, False, False, True, False, False, True]
    assert regulariser.factor(0.5) == 6.0
    resumed = built(kind="vat", every=3)
    resumed.load_state_dict(regulariser.state_dict())
    assert regulariser.state_dict() == {"seen.mood": 7}
    assert (resumed.due("mood"), resumed.due("near")) == (False, True)


def test_the_weight_rises_over_the_warmup() -> None:
    regulariser = built(kind="vat", warmup=0.2, weight=4.0)
    assert [regulariser.factor(progress) for progress in (0.0, 0.1, 0.2, 0.9)] == [0.0, 2.0, 4.0, 4.0]
    given = net("binary")
    half, whole = (regulariser(look_at(given, progress=progress))[0] for progress in (0.1, 0.5))
    torch.testing.assert_close(2 * half, whole)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", EVERY)
def test_a_fraction_looks_at_some_rows_alone(kind: str, pairs: bool) -> None:
    given = net("classification", examples=10, pairs=pairs)
    looks: list[Look] = []
    look = look_at(given)
    regulariser = built(kind=kind, fraction=0.3, **EVERY[kind])
    term, record = regulariser(look)
    rows: list[Tensor] = []
    fields = {name: getattr(look, name) for name in Look.__dataclass_fields__}

    def narrowed(chosen: Tensor) -> Look:
        rows.append(chosen)
        looks.append(look_at(given).narrowed(chosen))
        return looks[-1]

    draws = [look_at(given, seed=seed).draw for seed in range(40)]
    for draw in draws:
        built(kind=kind, fraction=0.3, **EVERY[kind])(Look(**{**fields, "draw": draw, "narrowed": narrowed}))
    assert {len(chosen) for chosen in rows} == {3}
    assert all(len(set(chosen.tolist())) == 3 for chosen in rows)
    assert {row for chosen in rows for row in chosen.tolist()} == set(range(10))
    assert len({tuple(chosen.tolist()) for chosen in rows}) > 20
    for chosen, part in zip(rows[:5], looks, strict=False):
        for one in passes_of(part):
            if one["perturbation"] is not None:
                untouched = torch.ones(10, dtype=torch.bool).index_fill(0, chosen, False).repeat(2 if pairs else 1)
                assert not one["perturbation"][untouched].any()
                assert one["perturbation"][~untouched].any()
    assert math.isfinite(float(term))
    assert math.isfinite(record["value"])


def test_the_mean_over_all_choices_of_rows_is_that_of_the_batch() -> None:
    """So a fraction needs no factor of its own."""
    given = net("classification", rate=0.0)
    whole = float(built(kind="r3f", noise=0.3, dropout="shared")(look_at(given))[0])
    regulariser = built(kind="r3f", noise=0.3, dropout="shared")
    parts = [float(regulariser.measure(look_at(given).narrowed(torch.tensor([row])))[0]) for row in range(6)]
    assert sum(parts) / 6 == pytest.approx(whole, rel=1e-4)
    assert len(set(parts)) == 6
