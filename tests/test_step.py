"""The step module and the Look it gives to regularisers, seen through a small regulariser of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothtune.objective.look import Look
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.training.step import StepModule, StepName
from smoothtune.types import Batch
from tests.small_data import TASKS, Prepared, changed, prepare, snapshot, table

NAME = StepName(seed=1, stage="together", number=5, rank=0, progress=0.25)
RATE = 0.2


@dataclass
class Watch:
    """Lets a test look, and returns what it says as the term."""

    see: Callable[[Look], Tensor]
    name: str = "watch"
    looks: list[Look] = field(default_factory=list)

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        self.looks.append(look)
        term = self.see(look)
        return term, {"value": float(term.detach())}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state


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
    assert module.records == {"watch": {"value": parts["watch"].item()}}
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
