"""The step module and the Look it gives to regularisers, seen through a small regulariser of our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothtune.nn import recomputing
from smoothtune.nn.trunks import packed_grid
from smoothtune.objective.look import Look
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.training.step import StepModule, StepName
from smoothtune.types import Batch
from tests.small_data import TASKS, Always, Prepared, changed, prepare, snapshot, table

NAME = StepName(seed=1, stage="together", number=5, rank=0, progress=0.25)
RATE = 0.2


@dataclass
class Watch(Always):
    """Lets a test look, and returns what it says as the term."""

    see: Callable[[Look], Tensor]
    name: str = "watch"
    looks: list[Look] = field(default_factory=list)
    precision: Literal["float32", "bfloat16"] | None = None
    only: str | None = None
    every: int = 1
    counts: dict[str, int] = field(default_factory=dict)

    def applies(self, task: str) -> bool:
        return self.only in (None, task)

    def due(self, task: str) -> bool:
        return self.counts.get(task, 0) % self.every == 0

    def count(self, task: str) -> None:
        self.counts[task] = self.counts.get(task, 0) + 1

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        self.looks.append(look)
        term = self.see(look)
        return term, {"value": float(term.detach())}


def random_smoothness(look: Look) -> Tensor:
    """The divergence under random noise of the embedding output."""
    states = look.states_at(0)
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    return 3.0 * look.divergence(look.logits_of(noise), look.logits).mean()


@pytest.fixture(params=["native", "transformers"])
def prepared(request: pytest.FixtureRequest, tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    """The small experiment with dropout everywhere and batch norm in the pair trunk."""
    options = table(tiny_encoder, trunk={"kind": "pwim_resnet", "depth": 1, "dropout": RATE})
    options["encoder"] |= {"implementation": request.param, "dropout": RATE, "attention_dropout": RATE}
    found = prepare(options, small_data, shared_cache)
    found.model.train()
    return found


def batch_of(prepared: Prepared, task: str, rows: int = 6) -> Batch:
    return prepared.train[task].batch(np.arange(rows))


def step(prepared: Prepared, *regularisers: Watch, weighting: tuple[str, ...] = ("none",)) -> StepModule:
    facts = {name: TaskFacts(40, 1.0) for name in TASKS}
    return StepModule(
        prepared.model, WeightingProduct(weighting, facts), dtype=torch.float32, regularisers=regularisers
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_parts_are_the_weighted_loss_the_penalty_and_each_regulariser(prepared: Prepared, task: str) -> None:
    watch = Watch(random_smoothness)
    module = step(prepared, watch, weighting=("inverse_size", "learned"))
    parts = module(batch_of(prepared, task), NAME)
    assert list(parts) == ["task", "weight", "watch", "unweighted"]
    assert all(part.shape == () and torch.isfinite(part) for part in parts.values())
    assert not parts["unweighted"].requires_grad
    assert parts["task"].item() == pytest.approx(parts["unweighted"].item(), rel=1e-6)
    assert parts["watch"].item() > 0
    factor = module.weighting.factor(task)
    assert module.records["watch"]["value"] * factor == pytest.approx(parts["watch"].item(), rel=1e-6)
    look = watch.looks[0]
    labels = batch_of(prepared, task).labels
    assert labels is not None
    assert look.loss_of(look.logits).mean().item() == pytest.approx(parts["unweighted"].item())
    assert (look.task, look.progress) == (task, 0.25)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_zero_perturbation_under_the_same_masks_changes_nothing(prepared: Prepared, task: str, layer: int) -> None:
    def see(look: Look) -> Tensor:
        zero = torch.zeros_like(look.states_at(layer))
        again = look.logits_of(zero, layer=layer, dropout="as_clean")
        assert torch.equal(again, look.logits)
        return look.divergence(again, look.logits).sum()

    parts = step(prepared, Watch(see))(batch_of(prepared, task), NAME)
    assert parts["watch"].item() == 0


@pytest.mark.parametrize("task", TASKS)
def test_fresh_masks_and_no_masks_are_other_passes(prepared: Prepared, task: str) -> None:
    def see(look: Look) -> Tensor:
        fresh, other, off = (look.logits_of(dropout=mode) for mode in ("fresh", "fresh", "off"))
        assert torch.equal(off, look.logits_of(dropout="off"))
        for a, b in ((fresh, look.logits), (off, look.logits), (fresh, other), (fresh, off)):
            assert not torch.equal(a, b)
        return look.divergence(fresh, look.logits).mean()

    modes = {name: part.training for name, part in prepared.model.named_modules()}
    parts = step(prepared, Watch(see))(batch_of(prepared, task), NAME)
    assert parts["watch"].item() > 0
    assert {name: part.training for name, part in prepared.model.named_modules()} == modes


@pytest.mark.parametrize("name", ["native", "transformers"])
def test_without_dropout_a_single_text_answers_as_in_eval_mode(
    tiny_encoder: Path, small_data: Path, shared_cache: Path, name: str
) -> None:
    options = table(tiny_encoder)
    options["encoder"] |= {"implementation": name, "dropout": 0.5, "attention_dropout": 0.5}
    prepared = prepare(options, small_data, shared_cache, ["mood"])
    found: list[Tensor] = []

    def see(look: Look) -> Tensor:
        found.append(look.logits_of(dropout="off"))
        return found[0].sum() * 0

    prepared.model.train()
    batch = batch_of(prepared, "mood")
    step(prepared, Watch(see))(batch, NAME)
    torch.testing.assert_close(found[0], prepared.model.eval()(batch).logits, rtol=1e-5, atol=1e-6)


def test_passes_of_the_same_name_are_equal_and_others_differ(prepared: Prepared) -> None:
    module, batch = step(prepared), batch_of(prepared, "mood")
    first, again = module(batch, NAME)["task"], module(batch, NAME)["task"]
    later = module(batch, StepName(1, "together", 6, 0, 0.25))["task"]
    other_rank = module(batch, StepName(1, "together", 5, 1, 0.25))["task"]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other_rank)


def test_other_weights_are_used_functionally(prepared: Prepared) -> None:
    before = snapshot(prepared.model)
    teacher = {name: tensor.detach() * 1.1 for name, tensor in prepared.model.named_parameters()}
    same = {name: tensor.detach().clone() for name, tensor in prepared.model.named_parameters()}

    def see(look: Look) -> Tensor:
        told = look.logits_of(weights=teacher)
        assert not told.requires_grad
        assert torch.equal(look.logits_of(weights=same), look.logits)
        assert not torch.equal(told, look.logits)
        return look.divergence(look.logits, told).mean()

    parts = step(prepared, Watch(see))(batch_of(prepared, "mood"), NAME)
    parts["watch"].backward()
    assert not changed(prepared.model, before)
    assert any(part.grad is not None for part in prepared.model.encoder.parameters())


@pytest.mark.parametrize(("task", "texts"), [("mood", 1), ("same", 2), ("near", 2)])
def test_states_are_those_of_the_clean_pass_without_gradient(prepared: Prepared, task: str, texts: int) -> None:
    watch = Watch(lambda look: look.logits.sum() * 0)
    batch = batch_of(prepared, task)
    step(prepared, watch)(batch, NAME)
    look = watch.looks[0]
    for layer in (0, 1):
        assert look.states_at(layer).shape == (6 * texts, batch.tokens.input_ids.shape[1], 16)
        assert not look.states_at(layer).requires_grad
    assert look.mask.shape == (6 * texts, batch.tokens.input_ids.shape[1])
    assert look.logits.requires_grad
    assert look.logits.shape == ((6, 3) if task == "mood" else (6,))
    assert look.kind == prepared.model.tasks[task].kind


def test_divergence_of_a_regression_is_in_units_of_its_range(prepared: Prepared) -> None:
    watch = Watch(lambda look: look.logits.sum() * 0)
    step(prepared, watch)(batch_of(prepared, "near"), NAME)
    found = watch.looks[0].divergence(torch.tensor([5.0]), torch.tensor([0.0]))
    assert found.item() == 1.0


def test_running_statistics_move_once_however_often_a_regulariser_looks(prepared: Prepared) -> None:
    def see(look: Look) -> Tensor:
        for mode in ("as_clean", "fresh", "off"):
            look.logits_of(dropout=mode)
        return look.logits_of(torch.randn_like(look.states_at(1)), layer=1).sum() * 0

    before = snapshot(prepared.model)
    batch = batch_of(prepared, "same")
    step(prepared)(batch, NAME)
    alone = snapshot(prepared.model)
    counts = {name for name in changed(prepared.model, before) if name.endswith("num_batches_tracked")}
    assert len(counts) == 2
    prepared.model.load_state_dict(before)
    step(prepared, Watch(see))(batch, NAME)
    assert not changed(prepared.model, alone)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_flow_through_the_second_pass_into_model_and_perturbation(prepared: Prepared, task: str) -> None:
    seen: list[Tensor] = []

    def see(look: Look) -> Tensor:
        noise = torch.full_like(look.states_at(1), 0.05).requires_grad_()
        term = look.divergence(look.logits_of(noise, layer=1), look.logits.detach()).mean()
        seen.extend(torch.autograd.grad(term, noise, retain_graph=True))
        return term

    parts = step(prepared, Watch(see))(batch_of(prepared, task), NAME)
    assert seen[0].abs().max() > 0
    parts["watch"].backward()
    node = prepared.model.tasks[task]
    reached = {name for name, part in prepared.model.named_parameters() if part.grad is not None}
    assert any(name.startswith("encoder.") for name in reached)
    assert any(name.startswith(f"outputs.{task}.") for name in reached)
    assert not any(name.startswith("outputs.") and f".{task}." not in name for name in reached)
    assert node.trunk == "single" or any(name.startswith("trunks.pair.") for name in reached)


def test_two_regularisers_come_back_under_their_names_with_draws_of_their_own(prepared: Prepared) -> None:
    found: list[Tensor] = []

    def see(look: Look) -> Tensor:
        found.append(look.logits_of(dropout="fresh"))
        return look.divergence(found[-1], look.logits).mean()

    module = step(prepared, Watch(see, "one"), Watch(see, "two"))
    parts = module(batch_of(prepared, "mood"), NAME)
    assert list(parts) == ["task", "weight", "one", "two", "unweighted"]
    assert list(module.records) == ["one", "two"]
    assert not torch.equal(found[0], found[1])


def test_other_weights_reach_tasks_of_any_name(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> None:
    options = table(tiny_encoder)
    options["tasks"] = {"train": options["tasks"]["mood"]}
    prepared = prepare(options, small_data, shared_cache, ["train"])
    zero = {name: torch.zeros_like(tensor) for name, tensor in prepared.model.named_parameters()}
    watch = Watch(lambda look: look.logits_of(weights=zero).abs().sum())
    module = StepModule(
        prepared.model,
        WeightingProduct(("none",), {"train": TaskFacts(40, 1.0)}),
        dtype=torch.float32,
        regularisers=[watch],
    )
    assert module(batch_of(prepared, "train"), NAME)["watch"].item() == 0


def test_other_weights_reach_an_lstm_and_leave_it_as_it_was(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    options = table(tiny_encoder, trunk={"kind": "conv_bilstm", "dropout": 0.0})
    prepared = prepare(options, small_data, shared_cache, ["mood"])
    other = {name: part.detach() * 2 for name, part in prepared.model.named_parameters() if ".weight_hh_" in name}
    assert len(other) == 2

    def see(look: Look) -> Tensor:
        assert not torch.equal(look.logits_of(weights=other), look.logits)
        with pytest.raises(KeyError):
            look.logits_of(weights={**other, "outputs.mood.linear.wait": torch.zeros(1)})
        assert torch.equal(look.logits_of(), look.logits)
        return look.logits.sum() * 0

    step(prepared, Watch(see))(batch_of(prepared, "mood"), NAME)


def moving(look: Look, layer: int) -> Tensor:
    """The divergence under a fixed perturbation of layer `layer`'s input."""
    generator = torch.Generator().manual_seed(3)
    states = look.states_at(layer)
    noise = 0.1 * torch.randn(states.shape, generator=generator) * look.mask.unsqueeze(-1)
    return look.divergence(look.logits_of(noise, layer=layer), look.logits).mean()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_pass_that_begins_at_a_layer_is_the_whole_pass(
    prepared: Prepared, task: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, found = batch_of(prepared, task), []
    for begins in (True, False):
        if not begins:
            monkeypatch.setattr(type(prepared.model.encoder), "begins_anywhere", False)
        prepared.model.zero_grad()
        term = step(prepared, Watch(lambda look: moving(look, layer)))(batch, NAME)["watch"]
        term.backward()
        gradients = {
            name: part.grad.clone() for name, part in prepared.model.named_parameters() if part.grad is not None
        }
        found.append((term.detach(), gradients))
    (term, gradients), (whole, expected) = found
    assert term > 0
    torch.testing.assert_close(term, whole, rtol=1e-5, atol=1e-7)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_lower_layers_are_not_run_again_for_a_perturbation_above_them(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = prepare(table(tiny_encoder), small_data, shared_cache, ["mood"])
    calls: list[int] = []
    for number, block in enumerate(prepared.model.encoder.layers):  # type: ignore[arg-type]
        for piece in (block.up,):
            piece.register_forward_hook(lambda *_, number=number: calls.append(number))

    def see(look: Look) -> Tensor:
        calls.clear()
        term = moving(look, 1)
        assert calls == [1]
        return term

    step(prepared, Watch(see))(batch_of(prepared, "mood"), NAME)


@pytest.mark.parametrize("task", TASKS)
def test_a_pass_that_does_not_teach_reaches_the_perturbation_alone(prepared: Prepared, task: str) -> None:
    wanted = [part.requires_grad for part in prepared.model.parameters()]

    def see(look: Look) -> Tensor:
        found = []
        for learn in (True, False):
            noise = torch.full_like(look.states_at(0), 0.01).requires_grad_()
            value = look.divergence(look.logits_of(noise, learn=learn), look.logits.detach()).sum()
            found.append((value, *torch.autograd.grad(value, noise, retain_graph=True)))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1])
        return found[1][0]

    parts = step(prepared, Watch(see))(batch_of(prepared, task), NAME)
    assert [part.requires_grad for part in prepared.model.parameters()] == wanted
    prepared.model.zero_grad()
    assert not parts["watch"].requires_grad or not _reached(prepared, parts["watch"])


def _reached(prepared: Prepared, value: Tensor) -> list[str]:
    value.backward()
    return [name for name, part in prepared.model.named_parameters() if part.grad is not None]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_narrowed_look_is_the_whole_look_at_these_examples(prepared: Prepared, task: str, layer: int) -> None:
    rows = torch.tensor([4, 1])

    def see(look: Look) -> Tensor:
        part = look.narrowed(rows)
        assert part.mask.any(dim=1).sum() == len(part.mask) // 3
        states = part.states_at(layer)
        noise = 0.1 * torch.randn(states.shape, generator=torch.Generator().manual_seed(1)) * part.mask.unsqueeze(-1)
        assert torch.equal(part.logits, look.logits[rows])
        whole = look.logits_of(noise, layer=layer)[rows]
        torch.testing.assert_close(part.logits_of(noise, layer=layer), whole, rtol=1e-5, atol=1e-6)
        assert not torch.equal(whole, part.logits)
        assert torch.equal(part.loss_of(part.logits), look.loss_of(look.logits)[rows])
        return look.divergence(part.logits_of(noise, layer=layer), part.logits).mean()

    parts = step(prepared, Watch(see))(batch_of(prepared, task), NAME)
    parts["watch"].backward()


def test_only_the_regularisers_that_are_due_look(prepared: Prepared) -> None:
    rare, other = Watch(random_smoothness, "rare", every=2), Watch(random_smoothness, "other", only="near")
    module, batch = step(prepared, rare, other), batch_of(prepared, "mood")
    names = [[name for name in module(batch, NAME) if name in ("rare", "other")] for _ in range(4)]
    assert names == [["rare"], [], ["rare"], []]
    assert rare.counts == {"mood": 4}
    assert other.counts == {}


def test_all_passes_of_a_step_have_the_widest_dtype_that_is_asked_for(prepared: Prepared) -> None:
    batch, dtypes = batch_of(prepared, "mood"), []

    def see(look: Look) -> Tensor:
        zero = torch.zeros_like(look.states_at(0))
        assert torch.equal(look.logits_of(zero), look.logits)
        dtypes.append(look.states_at(1).dtype)
        return look.logits.float().sum() * 0

    facts = {name: TaskFacts(40, 1.0) for name in TASKS}
    for given, asked in (
        (torch.bfloat16, ("float32", None)),
        (torch.float32, ("bfloat16",)),
        (torch.bfloat16, (None,)),
        (torch.float32, (None, "bfloat16")),  # None: that of the stage
    ):
        watches = [Watch(see, f"watch{number}", precision=one) for number, one in enumerate(asked)]  # type: ignore[arg-type]
        module = StepModule(prepared.model, WeightingProduct(("none",), facts), dtype=given, regularisers=watches)
        module(batch, NAME)
    if prepared.model.encoder.begins_anywhere:  # the wrapped encoder's layer inputs are float32 sums under autocast
        assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2 + [torch.float32] * 2
    assert len(dtypes) == 6


def test_draws_belong_to_the_regulariser_and_the_step(prepared: Prepared) -> None:
    found: dict[str, list[Tensor]] = {}

    def see(look: Look) -> Tensor:
        like = look.states_at(0)
        found.setdefault(look.task, []).extend([look.draw(like, "normal"), look.draw(like, "uniform")])
        return look.logits.sum() * 0

    batch = batch_of(prepared, "mood")
    for name in (NAME, NAME, StepName(1, "together", 6, 0, 0.25)):
        step(prepared, Watch(see))(batch, name)
    normal, uniform, again, _, later, _ = found["mood"]
    assert torch.equal(normal, again)
    assert not torch.equal(normal, later)
    assert normal.dtype == uniform.dtype == torch.float32
    assert uniform.abs().max() <= 1
    assert float(uniform.var()) == pytest.approx(1 / 3, abs=0.1)
    assert float(normal.var()) == pytest.approx(1, abs=0.2)


def test_the_weights_of_a_look_are_those_that_train(prepared: Prepared) -> None:
    first = next(iter(prepared.model.parameters()))
    first.requires_grad_(False)

    def see(look: Look) -> Tensor:
        weights = look.weights()
        trained = {name for name, part in prepared.model.named_parameters() if part.requires_grad}
        assert set(weights) == trained
        assert not any(part.requires_grad for part in weights.values())
        return look.logits.sum() * 0

    step(prepared, Watch(see))(batch_of(prepared, "mood"), NAME)


def every_kind_of_pass(look: Look) -> Tensor:
    """A search that teaches nothing, then passes of every kind that do, one of them with other weights."""
    d = torch.full_like(look.states_at(0), 0.1).requires_grad_()
    searched = look.divergence(look.logits_of(d, learn=False), look.logits.detach()).sum()
    (direction,) = torch.autograd.grad(searched, d)
    others = {name: 0.9 * weight for name, weight in look.weights().items()}
    passes = [
        look.logits_of(0.1 * direction.sign()),
        look.logits_of(dropout="off"),
        look.logits_of(dropout="fresh"),
        look.logits_of(d, weights=others),
    ]
    return torch.stack([look.divergence(one, look.logits).mean() for one in passes]).sum()


def test_what_is_computed_again_is_what_was_computed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(prepared.model)
    monkeypatch.setattr(packed_grid, "available", lambda dtype: False)  # torch alone computes
    found = []
    for kept in (1 << 40, -1):
        monkeypatch.setattr(recomputing, "KEPT_BYTES", kept)
        prepared.model.load_state_dict(before)
        prepared.model.zero_grad()
        parts = step(prepared, Watch(every_kind_of_pass))(batch_of(prepared, "same"), NAME)
        (parts["task"] + parts["watch"]).backward()
        gradients = {name: part.grad for name, part in prepared.model.named_parameters() if part.grad is not None}
        found.append({**gradients, **{f"after {name}": part for name, part in snapshot(prepared.model).items()}})
    plain, again = found
    assert any(name.startswith("trunks.") for name in plain)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
