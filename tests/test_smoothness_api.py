"""Smoothness of any function of a tensor: what it returns, what it leaves alone, what it refuses."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from smoothtune.config.regularisers import PRESETS
from smoothtune.errors import ConfigurationError, UsageError
from smoothtune.objective.divergences import divergence
from smoothtune.runtime.generators import Generators, kept, seeded
from smoothtune.smoothness import Clean, Measured, Smoothness
from smoothtune.types import Kind

KINDS = typing.get_args(Kind)
WIDTH, TOKENS, ROWS = 6, 4, 5
RANGES = {"regression": {"range": (0.0, 5.0)}}
OUTSIDE = list(PRESETS)


class Net(nn.Module):
    """Token states to logits, with dropout: a function of embeddings as anyone may have one."""

    def __init__(self, outputs: int = 3, rate: float = 0.1, columns: bool = True) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 16)
        self.dropout = nn.Dropout(rate)
        self.outer = nn.Linear(16, outputs)
        self.columns = columns
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.dropout(torch.tanh(self.inner(x)))
        logits = self.outer(hidden.mean(1) if hidden.ndim == 3 else hidden)
        return logits if self.columns else logits[:, 0]


def net_for(kind: str, **options: typing.Any) -> Net:
    torch.manual_seed(0)
    return Net(3 if kind == "classification" else 1, **options)


def texts(seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    mask[0, 2:] = mask[3, 1:] = False
    return torch.randn(ROWS, TOKENS, WIDTH), mask


def smooth_for(kind: str, **options: typing.Any) -> Smoothness:
    return Smoothness(kind, **RANGES.get(kind, {}), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", OUTSIDE)
def test_logits_are_those_of_a_plain_call_and_the_term_is_positive_with_a_gradient(kind, preset):
    net, (x, mask) = net_for(kind), texts()
    torch.manual_seed(7)
    plain = net(x)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    smooth = smooth_for(kind, preset=preset)
    logits, term = smooth(net, x, mask)
    assert torch.equal(logits, plain)
    assert torch.equal(torch.get_rng_state(), after)
    assert term.shape == ()
    assert term.item() > 0
    assert smooth.options.every * smooth.last["value"] == pytest.approx(term.item(), rel=1e-6)
    assert smooth.last["norm"] == pytest.approx(smooth.options.radius, rel=1e-5)
    term.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_texts_of_one_token(kind):
    net, x = net_for(kind), torch.randn(ROWS, WIDTH)
    torch.manual_seed(3)
    logits, term = smooth_for(kind, radius=0.1)(net, x)
    torch.manual_seed(3)
    as_texts, same = smooth_for(kind, radius=0.1)(net, x[:, None])
    assert torch.equal(logits, as_texts)
    assert torch.equal(term, same)


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_one_logit_may_have_a_column_or_none(kind):
    terms = []
    for columns in (True, False):
        net, (x, mask) = net_for(kind, columns=columns), texts()
        torch.manual_seed(3)
        logits, term = smooth_for(kind)(net, x, mask)
        assert logits.ndim == (2 if columns else 1)
        terms.append(term)
    assert torch.equal(*terms)


def test_the_weight_is_a_factor():
    net, (x, mask) = net_for("classification"), texts()
    terms = []
    for weight in (0.0, 1.0, 5.0):
        torch.manual_seed(3)
        terms.append(Smoothness(weight=weight)(net, x, mask)[1].item())
    assert terms[0] == 0
    assert terms[2] == pytest.approx(5 * terms[1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_perturbation_under_the_same_masks_is_exactly_nothing(kind):
    net, (x, mask) = net_for(kind, rate=0.5), texts()
    passes: list[Tensor] = []
    smooth = smooth_for(kind, radius=1e-38, noise=1e-38, step_size=1e-38)

    def forward(x: Tensor) -> Tensor:
        passes.append(net(x))
        return passes[-1]

    _, term = smooth(forward, x, mask)
    assert term.item() == 0.0
    assert len(passes) == 3
    assert all(torch.equal(passes[0], other) for other in passes)


def test_independent_dropout_draws_new_masks_in_every_pass_and_call():
    net, (x, mask) = net_for("classification", rate=0.5), texts()
    passes: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        passes.append(net(x))
        return passes[-1]

    smooth = Smoothness(dropout="independent", radius=1e-6, noise=1e-6, step_size=1e-6)
    for _ in range(2):
        torch.manual_seed(0)
        smooth(forward, x, mask)
    assert len(passes) == 6
    assert torch.equal(passes[0], passes[3])  # the clean pass, from the same seed
    different = [passes[0], *passes[1:3], *passes[4:]]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in itertools.combinations(different, 2))


def test_padding_is_never_perturbed_and_the_search_teaches_no_weights():
    net, (x, mask) = net_for("classification"), texts()
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x)
        return net(x)

    x.requires_grad_()
    _, term = Smoothness(steps=2, radius=0.1, step_size=0.1)(forward, x, mask)
    assert len(seen) == 4
    assert all(torch.equal(one[~mask], x[~mask]) for one in seen)
    assert (seen[-1] - x)[mask].abs().max().item() == pytest.approx(0.1)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert x.grad is None
    term.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_mask_of_numbers_is_a_mask():
    net, (x, mask) = net_for("classification"), texts()
    terms = []
    for given in (mask, mask.long()):
        torch.manual_seed(3)
        terms.append(Smoothness()(net, x, given)[1])
    assert torch.equal(*terms)


def test_the_value_is_the_divergence_of_the_last_pass():
    net, (x, mask) = net_for("regression"), texts()
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(net(x))
        return seen[-1]

    _, term = smooth_for("regression", radius=0.1, weight=2.0)(forward, x, mask)
    expected = 2 * divergence("regression", seen[-1][:, 0], seen[0][:, 0], span=5.0).mean()
    assert term.item() == pytest.approx(expected.item())


def test_training_on_the_term_alone_lowers_it():
    net, (x, mask) = net_for("classification"), texts()
    smooth = Smoothness(radius=0.1, step_size=0.1, noise=0.01)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    values = []
    for _ in range(30):
        _, term = smooth(net, x, mask)
        optimiser.zero_grad()
        term.backward()
        optimiser.step()
        values.append(term.item())
    assert values[-1] < 0.5 * values[0]


def test_every_looks_at_each_nth_batch_with_n_times_the_weight():
    net, (x, mask) = net_for("classification", rate=0.0), texts()
    always = Smoothness(radius=0.1, step_size=0.1, noise=1e-6)
    third = Smoothness(radius=0.1, step_size=0.1, noise=1e-6, every=3)
    terms = [third(net, x, mask)[1].item() for _ in range(6)]
    assert [bool(term) for term in terms] == [True, False, False, True, False, False]
    assert third.last == {}
    assert terms[0] == pytest.approx(3 * always(net, x, mask)[1].item(), rel=1e-3)
    net.calls = 0
    third(net, x, mask)
    assert third.last["value"] > 0
    third(net, x, mask)
    assert net.calls == 3 + 1


def test_warmup_raises_the_weight_and_needs_to_be_told():
    net, (x, mask) = net_for("classification", rate=0.0), texts()
    smooth = Smoothness(radius=0.1, step_size=0.1, noise=1e-6, warmup=0.5)
    with pytest.raises(UsageError, match=r"^progress: is missing; with `warmup` pass the share of training"):
        smooth(net, x, mask)
    for progress, factor in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        _, term = smooth(net, x, mask, progress=progress)
        assert smooth.last["value"] > 0
        assert term.item() == pytest.approx(factor * smooth.last["value"])


@pytest.mark.parametrize("warmup", [0.0, 0.5])
@pytest.mark.parametrize("progress", [-1, 7, 1.001, float("nan"), "0.5"])
def test_progress_is_a_share(progress, warmup):
    net, (x, mask) = net_for("classification"), texts()
    told = rf"^progress: got {re.escape(repr(progress))}, expected the share of training that is done, 0 to 1: step / steps"
    with pytest.raises(UsageError, match=told):
        Smoothness(warmup=warmup)(net, x, mask, progress=progress)
    assert net.calls == 1


@pytest.mark.parametrize(
    ("state", "got"),
    [
        ({}, "keys none"),
        ({"seed": 1}, "keys seed"),
        ({"seed": "1", "calls": 0, "regulariser": {}}, "keys seed, calls, regulariser"),
        (None, "NoneType"),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(state, got):
    smooth = Smoothness()
    before = smooth.state_dict()
    told = (
        rf"^state: got {got}, expected what state_dict\(\) of a Smoothness returned: the whole numbers seed and calls"
    )
    with pytest.raises(UsageError, match=told):
        smooth.load_state_dict(state)
    assert smooth.state_dict() == before


def test_a_run_that_goes_on_is_one_that_never_stopped():
    net, (x, mask) = net_for("classification"), texts()
    torch.manual_seed(5)
    whole = Smoothness(every=2, dropout="independent")
    for _ in range(3):
        whole(net, x, mask)
    torch.manual_seed(99)
    resumed = Smoothness(every=2, dropout="independent")
    resumed.load_state_dict(whole.state_dict())
    for _ in range(2):
        terms = []
        for one in (whole, resumed):
            torch.manual_seed(8)
            terms.append(one(net, x, mask)[1])
        assert torch.equal(*terms)


@pytest.mark.parametrize("preset", OUTSIDE)
def test_what_is_measured(preset):
    net, (x, mask) = net_for("classification", rate=0.3), texts()
    smooth = Smoothness(preset=preset, **({"radius": 0.1, "step_size": 0.1} if preset == "exact" else {}))
    before = torch.get_rng_state()
    state = smooth.state_dict()
    found = smooth.measure(net, x, mask)
    assert torch.equal(torch.get_rng_state(), before)
    assert smooth.state_dict() == state
    assert isinstance(found, Measured)
    assert found.norm == pytest.approx(smooth.options.radius, rel=1e-5)
    assert found.dropout > 1e-3
    assert found.surviving > (0.9 if smooth.options.radius > 1e-3 else 0.5)
    assert all(parameter.grad is None for parameter in net.parameters())
    if preset == "exact":
        assert found.adversarial > found.random > 0


def test_measuring_with_bfloat16_sees_what_is_lost_and_leaves_the_weights_their_gradient():
    net, (x, mask) = net_for("classification", rate=0.0), texts()
    smooth = Smoothness(radius=1e-5, noise=1e-5, step_size=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = smooth.measure(net, x, mask)
        loss = cross_entropy(net(x).float(), torch.zeros(ROWS, dtype=torch.long))
    loss.backward()
    assert found.surviving < 0.1
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changed", "masks", "told"),
    [
        ({}, "shared", []),
        ({"dropout": 0.99}, "independent", []),
        ({"surviving": 0.49}, "shared", ["the perturbation of norm 0.03 is lost: 49% of its entries survive the dtype; "
            "compute in float32, or set a radius of at least 0.2"]),
        ({"dropout": 4.0}, "independent", ["dropout alone moves the answers 400 times further than the perturbation: "
            'the term is in truth R-Drop; set dropout = "shared" and a larger radius']),
        ({"dropout": 4.0}, "shared", ["dropout alone moves the answers 400 times further than the perturbation: "
            "beside what dropout does, the term asks for next to nothing; set a larger radius"]),
        ({"surviving": 0.4, "key": "step_size"}, "shared", ["the perturbation of norm 0.03 is lost: 40% of its entries survive "
            "the dtype; compute in float32, or set a step_size of at least 0.2"]),
        ({"dropout": 0.0, "adversarial": 0.0}, "shared", []),
        ({"adversarial": 0.0}, "independent", ["dropout alone moves the answers, and the perturbation does not: "
            'the term is in truth R-Drop; set dropout = "shared" and a larger radius']),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_plain_words(changed, masks, told):
    usual = {"dropout": 0.1, "random": 0.001, "adversarial": 0.01, "norm": 0.03, "surviving": 1.0, "norm_needed": 0.2}
    assert list(Measured(**{**usual, "key": "radius", **changed}, masks=masks).faults()) == told


def test_a_search_that_ends_short_of_the_radius_says_so():
    net, (x, mask) = net_for("classification", rate=0.0), texts()
    assert Smoothness(radius=0.1).measure(net, x, mask).key == "radius"
    found = Smoothness(radius=0.1, noise=1e-3, step_size=1e-3).measure(net, x, mask)
    assert (found.key, found.masks) == ("step_size", "shared")


def test_a_clean_pass_that_was_made_elsewhere_gives_the_same_term():
    net, (x, mask) = net_for("classification"), texts()
    torch.manual_seed(3)
    first, second = Smoothness(), Smoothness()
    _, term = first(net, x, mask)
    torch.manual_seed(3)
    before = Generators.now(x.device)

    def run(perturbation: Tensor | None, *, learn: bool) -> Tensor:
        return net(x if perturbation is None else x + perturbation)

    assert torch.equal(second.term(Clean(run, x, net(x), before, torch.float32), mask), term)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"preset": "exat"}, r"preset: got 'exat', expected one of wang, paper, .* Did you mean 'exact'\?"),
        ({"radios": 1.0}, r"radios: unknown key\. Did you mean 'radius'\?"),
        ({"radius": 0.0}, r"radius: input should be greater than 0, got 0\.0"),
        ({"layer": 2}, r"layer: what is perturbed is the tensor that you pass; set layer = 0; got 2$"),
        ({"fraction": 0.25}, r"fraction: dropout masks fit whole batches only; .* got 0\.25$"),
        ({"dropout": "off"}, r"dropout: got 'off', but .* put the model in eval mode"),
        ({"tasks": "sst"}, r"tasks: there is one task here"),
        ({"name": "mine"}, r"name: the term is returned"),
        ({"precision": "float32"}, r"precision: the passes run as the loop runs them"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        Smoothness(**options)
    assert str(caught.value).startswith("smoothness: these options cannot be used:\n  ")


def test_cheap_looks_at_every_fifth_batch():
    assert Smoothness(preset="cheap").options.every == 5


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("clasification", {}, r"^kind: got 'clasification', expected one of .* Did you mean 'classification'\?"),
        ("regression", {}, r"^range: is missing; regression needs"),
        ("binary", {"range": (0, 1)}, r"^range: got \(0, 1\) for kind 'binary'; only regression has"),
        ("regression", {"range": (5, 0)}, r"^range: got \(5, 0\), expected two finite numbers, the lower first"),
        ("regression", {"range": (0, float("inf"))}, r"^range: got \(0, inf\), expected two finite"),
        ("regression", {"range": (float("nan"), 1)}, r"^range: got \(nan, 1\), expected two finite"),
        ("regression", {"range": 5}, r"^range: got 5, expected two finite numbers, the lower first, such as \(0, 5\)"),
        ("regression", {"range": "05"}, r"^range: got '05', expected two finite"),
        ("regression", {"range": ("0", "5")}, r"^range: got \('0', '5'\), expected two finite"),
        ("regression", {"range": (0, None)}, r"^range: got \(0, None\), expected two finite"),
        ("regression", {"range": (0, 1, 2)}, r"^range: got \(0, 1, 2\), expected two finite"),
    ],
)
def test_kinds_and_ranges_that_cannot_be_meant_are_refused(kind, options, told):
    with pytest.raises(UsageError, match=told):
        Smoothness(kind, **options)


@pytest.mark.parametrize(
    ("kind", "outputs", "x", "mask", "told"),
    [
        ("classification", 3, torch.zeros(2, 4, dtype=torch.long), None, r"^x: got torch\.int64 of shape \(2, 4\)"),
        ("classification", 3, torch.zeros(WIDTH), None, r"^x: .* of shape \(6,\), expected a tensor of floats"),
        ("classification", 3, torch.zeros(2, 4, WIDTH), torch.ones(2, 3), r"^mask: got shape \(2, 3\), expected .* \(2, 4\)"),
        ("classification", 1, torch.zeros(2, WIDTH), None, r"^logits: got shape \(2, 1\), expected \(B, C\) with two"),
        ("binary", 3, torch.zeros(2, WIDTH), None, r"^logits: got shape \(2, 3\), expected \(B,\) or \(B, 1\)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(kind, outputs, x, mask, told):
    with pytest.raises(UsageError, match=told):
        Smoothness(kind)(Net(outputs), x, mask)


@pytest.mark.parametrize(
    "ends", [(0, 5), [0, 5], (0.0, 5.0), (torch.tensor(0), torch.tensor(5.0)), (np.float32(0), np.int64(5))]
)
def test_numbers_of_any_library_are_a_range(ends):
    net, (x, mask) = net_for("regression"), texts()
    terms = []
    for given in (ends, (0.0, 5.0)):
        torch.manual_seed(3)
        terms.append(Smoothness("regression", range=given)(net, x, mask)[1])
    assert torch.equal(*terms)


@pytest.mark.parametrize("asked", ["term", "measure"])
@pytest.mark.parametrize(
    ("x", "told"),
    [
        (
            np.zeros((2, WIDTH), dtype=np.float32),
            r"^x: got ndarray, expected a tensor .*; torch\.as_tensor\(\.\.\.\) makes",
        ),
        (
            torch.zeros(0, 4, WIDTH),
            r"^x: got shape \(0, 4, 6\), which holds nothing to perturb; leave empty batches out",
        ),
        (torch.zeros(2, 0, WIDTH), r"^x: got shape \(2, 0, 6\), which holds nothing"),
    ],
)
def test_what_cannot_be_perturbed_is_refused(asked, x, told):
    smooth = Smoothness()
    with pytest.raises(UsageError, match=told):
        (smooth if asked == "term" else smooth.measure)(Net(), x)


def test_a_mask_that_is_no_tensor_is_refused():
    with pytest.raises(UsageError, match=r"^mask: got list, expected a tensor of shape \(2, 4\), one number per token"):
        Smoothness()(Net(), torch.zeros(2, 4, WIDTH), [[1] * 4] * 2)


class Answer(typing.NamedTuple):
    """As transformers answers: logits in a container."""

    logits: Tensor


DOES_NOT_USE_IT = (
    r"^forward: does not use the x that it is given, or cuts its gradient; compute the logits from its argument"
)
WRONG = {
    "a container": (lambda net, given, x: Answer(net(x)), r"^forward: returned Answer, .* return its `\.logits`$"),
    "a tuple": (lambda net, given, x: (net(x),), r"^forward: returned tuple, .*; return the logits alone$"),
    "nothing": (lambda net, given, x: None, r"^forward: returned NoneType, expected a tensor of logits"),
    "classes": (lambda net, given, x: net(x).argmax(1), r"^logits: got torch\.int64, expected floats; .*not the classes"),
    "too few rows": (lambda net, given, x: net(x)[:3], r"^logits: got shape \(3, 3\) for an x of 5 rows; return the logits of"),
    "another x": (lambda net, given, x: net(given), DOES_NOT_USE_IT),
    "a detached x": (lambda net, given, x: net(x.detach()), DOES_NOT_USE_IT),
    "no gradient": (lambda net, given, x: torch.no_grad()(net)(x), DOES_NOT_USE_IT),
    "reentrant checkpoints": (
        lambda net, given, x: checkpoint(net, x, use_reentrant=True),
        r"^forward: has reentrant checkpoints, .*; set use_reentrant=False$",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("asked", ["term", "measure"])
@pytest.mark.parametrize("wrong", WRONG)
def test_functions_that_cannot_be_made_smooth_are_refused_in_words(wrong, asked):
    net, (x, mask) = net_for("classification"), texts()
    answer, told = WRONG[wrong]
    smooth = Smoothness()
    with pytest.raises(UsageError, match=told):
        (smooth if asked == "term" else smooth.measure)(lambda given: answer(net, x, given), x, mask)


def test_an_error_of_the_function_itself_comes_through():
    def forward(x: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        Smoothness()(forward, torch.zeros(2, WIDTH))


def test_without_gradients_there_is_no_search():
    net, (x, mask) = net_for("classification"), texts()
    with torch.no_grad(), pytest.raises(UsageError, match=r"under torch\.no_grad call the model alone, or measure\(\)"):
        Smoothness()(net, x, mask)
    with torch.no_grad():
        assert Smoothness().measure(net, x, mask).norm > 0


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("name", DEVICES)
def test_generators_go_back_and_draws_can_be_made_again(name):
    device = torch.device(name)
    before = Generators.now(device)
    first = torch.rand(3, device=device), torch.rand(3)
    with before.again():
        assert torch.equal(torch.rand(3, device=device), first[0])
    with before.again():  # as if nothing had been drawn
        assert torch.equal(torch.rand(3, device=device), first[0])
    numbers = []
    for seed in (5, 5, 6):
        with kept(device), seeded(seed, device):
            numbers.append(torch.rand(3, device=device))
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])
    before.put_back()
    assert torch.equal(torch.rand(3, device=device), first[0])
    assert torch.equal(torch.rand(3), first[1]) or name == "cpu"


@pytest.mark.parametrize("name", DEVICES)
def test_shared_dropout_on_every_device(name):
    net, (x, mask) = net_for("classification", rate=0.5).to(name), texts()
    tiny = {"radius": 1e-38, "noise": 1e-38, "step_size": 1e-38}
    assert Smoothness(**tiny)(net, x.to(name), mask.to(name))[1].item() == 0.0
    assert Smoothness(dropout="independent", **tiny)(net, x.to(name), mask)[1].item() > 1e-3


def test_a_device_whose_generator_cannot_be_set_back_is_refused():
    with pytest.raises(UsageError, match=r"drawn again on cpu and cuda, not on 'meta'; move the model to one of them"):
        Generators.now(torch.device("meta"))


def test_importing_it_loads_no_trainer_and_none_of_our_models():
    program = (
        "import json, sys\nimport smoothtune.smoothness\n"
        "print(json.dumps([name for name in ('transformers', 'datasets', 'accelerate', 'smoothtune.nn', "
        "'smoothtune.training', 'smoothtune.data') if name in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
