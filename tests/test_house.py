"""The house test: every trunk, schedule, weighting and regulariser goes through one harness on a tiny real encoder."""

from __future__ import annotations

import copy
import math
import typing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from smoothtune.config.experiment import ModelConfig
from smoothtune.config.regularisers import PRESETS, RegulariserOptions
from smoothtune.config.schedules import ScheduleName, ScheduleOptions
from smoothtune.config.stage import WeightingName
from smoothtune.config.tasks import shape_of
from smoothtune.config.trunks import TrunkOptions
from smoothtune.inference.answering import answer_examples
from smoothtune.nn.folder import read_model_folder, write_model_folder
from smoothtune.objective.look import Regulariser
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.registry import TABLE
from smoothtune.training.step import StepModule, StepName
from smoothtune.types import Batch, Tokens
from tests.small_data import SINGLE, TASKS, Prepared, changed, epochs, prepare, snapshot, steps, table

TRUNKS: dict[str, dict[str, Any]] = {
    "cls": {"dropout": 0.0},
    "mean": {"dropout": 0.0},
    "conv_bilstm": {"dropout": 0.0, "layers": 2, "pool": "mean"},
    "siamese": {"dropout": 0.0, "pooling": "cls"},
    "cosine": {"pooling": "mean"},
    "joint": {"dropout": 0.0, "pooling": "mean"},
    "pwim_dcnn": {"dropout": 0.0, "depth": 2},
    "pwim_resnet": {"dropout": 0.0, "depth": 1},
}
REGULARISERS: dict[str, dict[str, Any]] = {
    **{preset: {"kind": "smoothness", "preset": preset} for preset in PRESETS},
    "proximal": {"kind": "proximal"},
    "r_drop": {"kind": "r_drop"},
    "r3f": {"kind": "r3f", "noise": 0.1},
    "vat": {"kind": "vat"},
    "freelb": {"kind": "freelb"},
}
STEPS = 16
SCHEDULES: list[dict[str, Any]] = [
    {"schedule": "proportional"},
    {"schedule": "round_robin"},
    {"schedule": "round_robin", "schedule_options": {"until": "all_exhausted"}},
    {"schedule": "round_robin", "schedule_options": {"every_task": True}},
    {"schedule": "loop_to_largest"},
    {"schedule": "loop_to_largest", "schedule_options": {"every_task": True}},
    {"schedule": "temperature", "schedule_options": {"alpha": 0.3, "steps_per_epoch": 12}},
    {"schedule": "annealed", "schedule_options": {"start": 1.0, "end": 0.0}},
]
WEIGHTINGS: list[list[str]] = [["none"], ["fixed"], ["inverse_size"], ["learned"], ["inverse_size", "learned"]]


def kinds(union: Any) -> set[str]:
    """The values of `kind` in a union of options."""
    classes = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(cls.model_fields["kind"].annotation)[0] for cls in classes}


def test_the_harness_covers_every_kind() -> None:
    assert set(TRUNKS) == kinds(TrunkOptions) == set(TABLE["trunks"])
    schedules = {str(row["schedule"]) for row in SCHEDULES}
    assert schedules == kinds(ScheduleOptions) == set(typing.get_args(ScheduleName)) == set(TABLE["schedules"])
    weightings = {name for names in WEIGHTINGS for name in names}
    assert weightings == set(typing.get_args(WeightingName)) == set(TABLE["weightings"])
    regularisers = {str(row["kind"]) for row in REGULARISERS.values()}
    assert regularisers == kinds(RegulariserOptions) == set(TABLE["regularisers"])
    assert (len(TRUNKS), len(schedules), len(weightings), len(regularisers)) == (8, 5, 4, 6)


@pytest.fixture(params=list(TRUNKS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_trunk(kind: str, encoder: Path, data: Path, cache: Path, **stage: Any) -> Prepared:
    """The tasks that this trunk reads, one batch of 16 rows each, so that every step sees the same rows."""
    rate = 2e-4 if kind.startswith("pwim") else 2e-3
    wanted = table(
        encoder, trunk={"kind": kind, **TRUNKS[kind]}, batch_size=16, warmup=0.0, learning_rate=rate, **stage
    )
    return prepare(wanted, data, cache, ["mood"] if kind in SINGLE else ["same", "near"])


@pytest.fixture
def prepared(kind: str, tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    return with_trunk(kind, tiny_encoder, small_data, shared_cache, stop={"max_epochs": STEPS})


@pytest.fixture
def frozen(kind: str, tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    return with_trunk(kind, tiny_encoder, small_data, shared_cache, train=["outputs"], stop={"max_epochs": 2})


def test_loss_on_fixed_rows_is_finite_and_falls(prepared: Prepared) -> None:
    events = list(prepared.run(rows=16).events())
    assert len(steps(events)) == STEPS * len(prepared.train)
    for task in prepared.train:
        losses = [step.losses[task]["unweighted"] for step in steps(events) if task in step.losses]
        assert len(losses) == STEPS
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] < losses[0]


def test_gradients_reach_all_that_trains(prepared: Prepared) -> None:
    gradients = gradients_of(prepared)
    assert [name for name, found in gradients.items() if found is None] == []
    assert all(bool(torch.isfinite(found).all()) for found in gradients.values() if found is not None)


def test_frozen_parts_get_no_gradient_and_do_not_move_by_a_bit(frozen: Prepared) -> None:
    before = snapshot(frozen.model)
    list(frozen.run(rows=16).events())
    moved = changed(frozen.model, before)
    assert moved
    assert all(name.startswith("outputs.") for name in moved), moved
    reached = {name for name, found in gradients_of(frozen).items() if found is not None}
    assert {name.partition(".")[0] for name in reached} == {"outputs"}


def gradients_of(prepared: Prepared) -> dict[str, Tensor | None]:
    """Gradients after one step of every task, by parameter."""
    module = StepModule(
        prepared.model,
        WeightingProduct(("none",), {name: TaskFacts(40, 1.0) for name in TASKS}),
        dtype=torch.float32,
    )
    prepared.model.zero_grad(set_to_none=True)
    for examples in prepared.train.values():
        module(examples.batch(np.arange(16)), StepName(0, "s", 0, 0, 0.0))["task"].backward()
    return {name: parameter.grad for name, parameter in prepared.model.named_parameters()}


def test_save_load_and_same_predictions_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    list(prepared.run(rows=16).events())
    save(prepared, tmp_path / "model")
    loaded = read_model_folder(tmp_path / "model")
    assert loaded.labels == prepared.labels
    for task, examples in prepared.dev.items():
        before, after = (
            answer_examples(model, examples, dtype=torch.float32, batch_size=8)
            for model in (prepared.model, loaded.model)
        )
        assert np.array_equal(before, after), task
        assert before.std() > 0


def save(prepared: Prepared, folder: Path) -> None:
    experiment = prepared.experiment
    config = ModelConfig(
        encoder=experiment.encoder,
        tasks={name: shape_of(task) for name, task in experiment.tasks.items()},
        trunks=experiment.trunks,
    )
    write_model_folder(
        folder, prepared.model, config, prepared.labels, tokenizer=prepared.tokenizer, provenance={"seed": 1}
    )


def test_one_example_is_its_row_in_a_batch(prepared: Prepared) -> None:
    model = prepared.model.eval()
    for examples in prepared.dev.values():
        together = model(examples.batch(np.arange(12))).logits
        alone = torch.cat([model(examples.batch(np.array([row]))).logits for row in range(12)])
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(prepared: Prepared) -> None:
    model = prepared.model.eval()
    for examples in prepared.dev.values():
        batch = examples.batch(np.arange(8))
        torch.testing.assert_close(model(padded(batch, 7)).logits, model(batch).logits, rtol=1e-5, atol=1e-5)


def padded(batch: Batch, more: int) -> Batch:
    """The batch with `more` columns of padding, filled with a token that would be seen if the mask did not count."""
    rows = len(batch.tokens.mask)
    filling = torch.full((rows, more), 9)
    segments = batch.tokens.segments
    tokens = Tokens(
        torch.cat([batch.tokens.input_ids, filling], 1),
        torch.cat([batch.tokens.mask, torch.zeros(rows, more, dtype=torch.bool)], 1),
        None if segments is None else torch.cat([segments, torch.zeros_like(filling)], 1),
    )
    return replace(batch, tokens=tokens)


@pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda row: "-".join(map(str, [row["schedule"], *row.get("schedule_options", {})]))
)
def test_every_schedule_trains(
    schedule: dict[str, Any], tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    assert_trains(table(tiny_encoder, **schedule, stop={"max_epochs": 4}), small_data, shared_cache)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids="-".join)
def test_every_weighting_trains(weighting: list[str], tiny_encoder: Path, small_data: Path, shared_cache: Path) -> None:
    wanted = table(tiny_encoder, weighting=weighting, stop={"max_epochs": 4})
    if "fixed" in weighting:
        wanted["tasks"]["near"]["loss_weight"] = 0.5
    events = assert_trains(wanted, small_data, shared_cache)
    learned = epochs(events)[-1].factors
    assert set(learned) == (set(TASKS) if "learned" in weighting else set())
    assert all(0 < factor < 100 for factor in learned.values())


def built(name: str) -> tuple[Regulariser, ...]:
    """A regulariser as a stage builds it, for the tiny encoder of two layers."""
    options: RegulariserOptions = TypeAdapter(RegulariserOptions).validate_python(REGULARISERS[name])
    return build_regularisers([options], depth=2)


def with_dropout(encoder: Path, data: Path, cache: Path, implementation: str, **stage: Any) -> Prepared:
    """All three tasks, dropout in the encoder, batch norm in the pair trunk."""
    wanted = table(encoder, trunk={"kind": "pwim_resnet", "depth": 1, "dropout": 0.1}, **stage)
    wanted["encoder"] |= {"implementation": implementation, "dropout": 0.1, "attention_dropout": 0.1}
    return prepare(wanted, data, cache)


@pytest.mark.parametrize("implementation", ["native", "transformers"])
@pytest.mark.parametrize("name", list(REGULARISERS))
def test_every_regulariser_trains(
    name: str, implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    rates = {"encoder": 5e-4, "trunks": 5e-4, "outputs": 2e-3}
    prepared = with_dropout(
        tiny_encoder, small_data, shared_cache, implementation, learning_rate=rates, stop={"max_epochs": 4}
    )
    (regulariser,) = built(name)
    events = list(prepared.run(regularisers=[regulariser]).events())
    terms = [parts.get(regulariser.name) for step in steps(events) for parts in step.losses.values()]
    looks = [term for term in terms if term is not None]
    seen = Counter(task for step in steps(events) for task in step.losses)
    every = TypeAdapter(RegulariserOptions).validate_python(REGULARISERS[name]).every
    assert len(looks) == sum(math.ceil(count / every) for count in seen.values()) > 12 / every
    assert all(math.isfinite(term) for term in looks)
    assert any(term > 0 for term in looks)
    sums = [sum(parts["unweighted"] for parts in epoch.report.losses.values()) for epoch in epochs(events)]
    assert sums[-1] < sums[0]


@pytest.mark.parametrize("implementation", ["native", "transformers"])
@pytest.mark.parametrize("name", list(REGULARISERS))
def test_a_regulariser_teaches_what_trains_and_nothing_else(
    name: str, implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = with_dropout(tiny_encoder, small_data, shared_cache, implementation)
    for part in prepared.model.outputs.parameters():
        part.requires_grad_(False)
    module = StepModule(
        prepared.model.train(),
        WeightingProduct(("none",), {task: TaskFacts(40, 1.0) for task in TASKS}),
        dtype=torch.float32,
        regularisers=built(name),
    )
    every = TypeAdapter(RegulariserOptions).validate_python(REGULARISERS[name]).every
    for number in range(every + 1):  # at its second look: a teacher is the model itself at its first
        for task, examples in prepared.train.items():
            parts = module(examples.batch(np.arange(8)), StepName(0, "s", number, 0, number / (every + 1)))
            if number == every:
                prepared.model.zero_grad(set_to_none=True)
                parts[module.regularisers[0].name].backward()
                own = ("encoder.", f"trunks.{prepared.model.tasks[task].trunk}.")
                wrong = {
                    path: None if part.grad is None else "reached"
                    for path, part in prepared.model.named_parameters()
                    if (part.grad is not None) != path.startswith(own)
                }
                assert wrong == {}
        with torch.no_grad():
            for part in prepared.model.encoder.parameters():
                part.mul_(1.01)


@pytest.mark.parametrize("name", list(REGULARISERS))
def test_a_regulariser_goes_on_from_its_memory_as_if_it_had_never_stopped(
    name: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    ends = []
    for stopped in (False, True):
        prepared = with_dropout(tiny_encoder, small_data, shared_cache, "native")
        (regulariser,) = built(name)
        ends.append(_four_steps(prepared, regulariser, name if stopped else None))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def _four_steps(prepared: Prepared, regulariser: Regulariser, again: str | None) -> dict[str, Tensor]:
    """The weights after four plain gradient steps; `again`: after the first the regulariser is built anew from its memory."""
    model, batch = prepared.model.train(), prepared.train["same"].batch(np.arange(8))
    weighting = WeightingProduct(("none",), {task: TaskFacts(40, 1.0) for task in TASKS})
    for number in range(4):
        if number == 1 and again is not None:
            memory = copy.deepcopy(regulariser.state_dict())
            (regulariser,) = built(again)
            regulariser.load_state_dict(memory)
        module = StepModule(model, weighting, dtype=torch.float32, regularisers=[regulariser])
        parts = module(batch, StepName(0, "s", number, 0, number / 4))
        model.zero_grad(set_to_none=True)
        (parts["task"] + parts.get(regulariser.name, 0.0)).backward()  # not each step has a look
        with torch.no_grad():
            for part in model.parameters():
                if part.grad is not None:
                    part.sub_(0.01 * part.grad)
    return snapshot(model)


def assert_trains(wanted: dict[str, Any], data: Path, cache: Path) -> list[Any]:
    """Losses of all tasks are finite, and their sum is lower in the last epoch than in the first."""
    prepared = prepare(wanted, data, cache)
    before = snapshot(prepared.model)
    events = list(prepared.run().events())
    sums = [sum(parts["unweighted"] for parts in epoch.report.losses.values()) for epoch in epochs(events)]
    assert len(sums) == 4
    assert all(math.isfinite(value) for value in sums)
    assert sums[-1] < sums[0]
    seen = {task for step in steps(events) for task in step.losses}
    assert seen == set(TASKS)
    assert {name.partition(".")[0] for name in changed(prepared.model, before)} >= {"encoder", "outputs"}
    return events
