"""Rates, groups, stopping, the loop and the stages on the tiny encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smoothtune.config.stage import Stage
from smoothtune.data.batching import Examples
from smoothtune.errors import TrainingError, UsageError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.runtime.kernels import adamw as adamw_kernels
from smoothtune.training.adamw import KernelAdamW
from smoothtune.training.best import BestState
from smoothtune.training.loop import Pieces
from smoothtune.training.optimiser import build_optimiser, build_rates, parameter_groups, rate_at
from smoothtune.training.selection import begins_trained, counted
from smoothtune.training.stage import StageRun
from smoothtune.training.stage_events import StageBegin, StageEnd
from smoothtune.training.step import StepModule, StepName
from smoothtune.training.stopping import Stopping
from smoothtune.types import Batch
from tests.small_data import TASKS, Always, Prepared, changed, epochs, prepare, snapshot, steps, table


@dataclass(frozen=True)
class Told:
    """Scores as a test wants them."""

    score: float
    main: Mapping[str, float] = field(default_factory=dict)
    plain_mean: float = 0.0
    loss: float = math.nan
    scoreless: tuple[str, ...] = ()

    def value(self, metric: str) -> float:
        return {"score": self.score, "plain_mean": self.plain_mean, **self.main}[metric]


class Teller:
    """Gives out scores one after another, and keeps the model's state at each."""

    def __init__(self, *scores: Told) -> None:
        self.scores = list(scores)
        self.states: list[dict[str, torch.Tensor]] = []

    def __call__(self, model: MultiTaskModel) -> Told:
        self.states.append(snapshot(model))
        return self.scores[len(self.states) - 1]


@pytest.fixture
def make(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Any:
    def made(*tasks: str, stages: list[dict[str, Any]] | None = None, **stage: Any) -> Prepared:
        wanted = table(tiny_encoder, **stage)
        if stages is not None:
            wanted["stages"] = [{**wanted["stages"][0], **each} for each in stages]
        return prepare(wanted, small_data, shared_cache, tasks or TASKS)

    return made


# rates


@given(total=st.integers(1, 400), share=st.floats(0, 1))
def test_rate_rises_then_falls_to_nothing(total: int, share: float) -> None:
    warmup = min(round(share * total), total - 1)
    rates = [rate_at(step, warmup=warmup, total=total) for step in range(total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] == 0
    assert all(before < after for before, after in pairwise(rates[: warmup + 1]))
    assert all(before > after for before, after in pairwise(rates[warmup:]))
    assert rates[warmup] == 1
    assert rates[0] > 0


def test_rate_without_warmup_or_with_warmup_alone_divides_by_nothing() -> None:
    assert [rate_at(step, warmup=0, total=2) for step in range(4)] == [1.0, 0.5, 0.0, 0.0]
    assert [rate_at(step, warmup=2, total=2) for step in range(3)] == [1 / 3, 2 / 3, 0.0]


def test_rates_follow_the_optimiser_steps() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimiser = build_optimiser([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}])
    rates = build_rates(optimiser, warmup_share=0.5, total=4)
    seen = []
    for _ in range(4):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        rates.step()
    assert seen == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.05])


# parameter groups


def by_parameter(prepared: Prepared, stage: Stage) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter, by name."""
    model = prepared.model
    weighting = WeightingProduct(("learned",), {name: TaskFacts(1, 1.0) for name in TASKS})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    names |= {id(parameter): "weighting" for parameter in weighting.parameters()}
    groups = parameter_groups(model, weighting, dict(model.named_parameters()), stage)
    found = {names[id(part)]: (group["lr"], group["weight_decay"]) for group in groups for part in group["params"]}
    assert len(found) == len(names)
    return found


def test_vectors_and_loss_weights_are_not_decayed(make: Any) -> None:
    found = by_parameter(make(), Stage(weight_decay=0.3))
    decays = {name: decay for name, (_, decay) in found.items()}
    assert decays["encoder.layers.0.up.weight"] == 0.3
    assert decays["encoder.embeddings.word.weight"] == 0.3
    assert decays["outputs.mood.linear.weight"] == 0.3
    assert decays["weighting"] == 0
    assert all(decay == 0 for name, decay in decays.items() if name.endswith("bias") or "norm" in name)


def test_a_task_may_be_called_after_a_norm_and_is_decayed_all_the_same(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    wanted = table(tiny_encoder)
    wanted["tasks"] = {"bias-norm": wanted["tasks"]["mood"]}
    prepared = prepare(wanted, small_data, shared_cache, ["bias-norm"])
    assert by_parameter(prepared, Stage(weight_decay=0.3))["outputs.bias-norm.linear.weight"][1] == 0.3


def test_rates_go_by_part_and_fall_with_depth(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> None:
    wanted = table(tiny_encoder, trunk={"kind": "pwim_dcnn", "depth": 2})
    prepared = prepare(wanted, small_data, shared_cache)
    stage = Stage(learning_rate={"encoder": 0.01, "trunks": 0.02, "outputs": 0.03}, layer_decay=0.5)  # type: ignore[arg-type]
    rates = {name: rate for name, (rate, _) in by_parameter(prepared, stage).items()}
    assert rates["encoder.layers.1.up.weight"] == pytest.approx(0.01)
    assert rates["encoder.layers.0.up.weight"] == pytest.approx(0.005)
    assert rates["encoder.embeddings.word.weight"] == pytest.approx(0.0025)
    assert {rate for name, rate in rates.items() if name.startswith("trunks.")} == {0.02}
    assert {rate for name, rate in rates.items() if name.startswith("outputs.")} == {0.03}
    assert rates["weighting"] == 0.03


# stopping


def test_stopping_waits_for_its_patience_and_counts_only_what_beats_the_threshold() -> None:
    rule = Stopping(patience=2, threshold=0.1)
    assert [rule.improves(value) for value in (0.5, 0.55, 0.65, 0.7, 0.75)] == [True, False, True, False, False]
    assert rule.finished
    assert rule.best == 0.65


def test_stopping_takes_no_value_that_is_not_a_number_for_the_best() -> None:
    rule = Stopping(patience=2, threshold=0.0)
    assert [rule.improves(value) for value in (math.nan, -0.5, math.inf, math.nan)] == [False, True, False, False]
    assert rule.best == -0.5
    assert rule.finished


def test_stopping_begins_with_a_value_that_costs_no_patience() -> None:
    rule = Stopping(patience=1, threshold=0.1)
    rule.start(math.nan)
    assert (rule.best, rule.waited, rule.finished) == (-math.inf, 0, False)
    rule.start(0.5)
    assert (rule.best, rule.waited, rule.finished) == (0.5, 0, False)
    assert not rule.improves(0.55)
    assert rule.finished


def test_stopping_without_patience_never_finishes() -> None:
    rule = Stopping(patience=None, threshold=0.0)
    assert not any(rule.improves(0.0) and rule.finished for _ in range(50))
    assert not rule.finished


@pytest.mark.parametrize("values", [(), (math.nan,), (0.3, 0.2)])
def test_stopping_goes_on_from_its_state(values: tuple[float, ...]) -> None:
    rule, again = Stopping(patience=3, threshold=0.0), Stopping(patience=3, threshold=0.0)
    for value in values:
        rule.improves(value)
    again.load_state_dict(rule.state_dict(), epochs=len(values))
    assert (again.best, again.waited) == (rule.best, rule.waited)


# best state


def test_best_state_keeps_parameters_and_statistics_and_restores_by_prefix() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    best = BestState(model, [name for name, _ in model.named_parameters()])
    before = snapshot(model)
    best.restore()
    assert not best.kept
    best.keep()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    best.restore("0.")
    assert changed(model, before) == {name for name in before if name.startswith("1.")}
    best.restore()
    assert not changed(model, before)


def test_a_best_state_is_kept_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    best = BestState(model, ["weight", "bias"])
    best.keep()
    before = snapshot(model)
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.add_(1)
    moved = model.state_dict()

    class Cut(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            if name == "bias":
                raise KeyboardInterrupt
            return super().__getitem__(name)

    with monkeypatch.context() as patch:
        patch.setattr(model, "state_dict", lambda: Cut(moved))
        with pytest.raises(KeyboardInterrupt):
            best.keep()
    best.restore()
    assert not changed(model, before)


def test_encoders_of_transformers_go_through_a_stage(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> None:
    wanted = table(tiny_encoder, stop={"max_epochs": 1})
    wanted["encoder"]["implementation"] = "transformers"
    events = list(prepare(wanted, small_data, shared_cache).run().events())
    assert epochs(events)[0].best


# the loop


def first_step(run: StageRun) -> dict[str, torch.Tensor]:
    """Gradients that the first optimiser step used, by name."""
    found: dict[str, torch.Tensor] = {}
    kind = KernelAdamW if adamw_kernels.available() else torch.optim.AdamW
    step = kind.step

    def watched(optimiser: Any, closure: Any = None) -> Any:
        if not found:
            scale = getattr(optimiser, "scale", 1.0)
            found.update(
                {
                    name: part.grad.to_dense() * scale
                    for name, part in run.model.named_parameters()
                    if part.grad is not None
                }
            )
        return step(optimiser, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", watched)
        list(run.events())
    return found


@pytest.mark.parametrize("task", TASKS)
def test_accumulating_two_half_batches_is_one_whole_batch(make: Any, task: str) -> None:
    settings = {"stop": {"max_epochs": 1}, "gradient_clip": False}
    halves = first_step(make(task, batch_size=8, accumulate=2, **settings).run(rows=16))
    whole = first_step(make(task, batch_size=16, **settings).run(rows=16))
    assert set(halves) == set(whole)
    assert len(whole) > 10
    for name, gradient in whole.items():
        torch.testing.assert_close(halves[name], gradient, rtol=1e-5, atol=1e-6)


def test_steps_are_counted_in_optimiser_steps(make: Any) -> None:
    prepared = make("mood", accumulate=2, stop={"max_epochs": 3})
    events = list(prepared.run().events())
    begin = events[0]
    assert isinstance(begin, StageBegin)
    assert begin.steps == 3 * 3  # 40 rows in batches of 8, two batches a step
    assert [step.step for step in steps(events)] == list(range(1, 10))
    assert all(step.of_steps == 9 for step in steps(events))
    assert [epoch.report.step for epoch in epochs(events)] == [3, 6, 9]


def test_every_task_in_every_step(make: Any) -> None:
    options = {"schedule": "round_robin", "schedule_options": {"every_task": True}}
    events = list(make(**options, stop={"max_epochs": 1}).run().events())
    assert all(set(step.losses) == set(TASKS) for step in steps(events))
    assert len(steps(events)) == 5


@pytest.mark.parametrize("limit", [0.05, None])
def test_gradients_are_clipped_together(make: Any, limit: float | None) -> None:
    run = make("near", gradient_clip=False if limit is None else limit, stop={"max_epochs": 1}).run(rows=8)
    norm = torch.stack([gradient.norm() for gradient in first_step(run).values()]).norm().item()
    assert norm == pytest.approx(0.05, rel=1e-3) if limit else norm > 1


def poisoned(examples: Examples, row: int) -> Examples:
    """The examples with a label that is not a number at `row`."""
    assert examples.labels is not None
    labels = examples.labels.copy()
    labels[row] = math.nan
    return replace(examples, labels=labels)


def test_a_loss_that_is_not_finite_stops_with_the_task_and_the_rows(make: Any) -> None:
    prepared = make("near", stop={"max_epochs": 1})
    before = snapshot(prepared.model)
    run = prepared.run(examples={"near": poisoned(prepared.train["near"], 2)}, rows=4)
    with pytest.raises(TrainingError) as error:
        list(run.events())
    text = str(error.value)
    assert text.startswith("stage together, step 1: the loss of task near is nan on the batch with rows ")
    assert sorted(text.partition("rows ")[2].partition(" of ")[0].split(", ")) == ["2", "3", "4", "5"]
    assert 'set on_nan = "skip" to leave such batches out' in text
    assert not changed(prepared.model, before)


def test_bad_batches_are_skipped_and_counted(make: Any) -> None:
    prepared = make("mood", "near", on_nan="skip", stop={"max_epochs": 2})
    examples = {**prepared.train, "near": poisoned(prepared.train["near"], 2)}
    evaluate = Teller(Told(0.1), Told(0.2))
    events = list(prepared.run(examples=examples, evaluate=evaluate).events())
    assert [epoch.report.skipped for epoch in epochs(events)] == [1, 2]
    assert sum(not step.losses for step in steps(events)) == 2
    assert all(torch.isfinite(tensor).all() for tensor in prepared.model.state_dict().values())
    assert_all_finite(events)


class _Steep(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradients[0], math.inf)


class Steep(Always):
    """A regulariser that is 0 everywhere, with an infinite gradient on the first `times` batches of task near."""

    name = "steep"

    def __init__(self, times: int = 1000) -> None:
        self.left = times

    def __call__(self, look: Any) -> tuple[torch.Tensor, dict[str, float]]:
        if look.task != "near" or not self.left:
            return look.logits.sum() * 0, {}
        self.left -= 1
        return _Steep.apply(look.logits).sum(), {}  # type: ignore[no-untyped-call]

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.left = state["left"]


@pytest.mark.parametrize("clip", [1.0, False])
def test_a_gradient_that_is_not_finite_stops_with_the_tasks_and_the_rows(make: Any, clip: float | bool) -> None:
    options = {"schedule": "round_robin", "schedule_options": {"every_task": True}}
    prepared = make("mood", "near", gradient_clip=clip, batch_size=2, **options)
    before = snapshot(prepared.model)
    with pytest.raises(TrainingError) as error:
        list(prepared.run(rows=2, regularisers=[Steep()]).events())
    text = str(error.value)
    assert text.startswith("stage together, step 1: the norm of the gradients of mood, near is ")
    assert "(task mood); " in text
    assert "(task near); lower the learning rate" in text
    assert not changed(prepared.model, before)


@pytest.mark.parametrize("clip", [1.0, False])
def test_a_step_whose_gradient_is_not_finite_is_skipped_whole(make: Any, clip: float | bool) -> None:
    prepared = make("near", on_nan="skip", gradient_clip=clip, stop={"max_epochs": 2})
    before = snapshot(prepared.model)
    events = list(prepared.run(evaluate=Teller(Told(0.1), Told(0.2)), regularisers=[Steep(5)]).events())
    assert [epoch.report.skipped for epoch in epochs(events)] == [
        5,
        5,
    ]  # 40 rows in batches of 8: the whole first epoch
    assert [bool(step.losses) for step in steps(events)] == [False] * 5 + [True] * 5
    assert [epoch.report.coverage["near"].unseen for epoch in epochs(events)] == [40, 0]
    assert all(torch.isfinite(tensor).all() for tensor in prepared.model.state_dict().values())
    assert changed(prepared.model, before)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_skipped_batches_move_no_running_statistics(
    tiny_encoder: Path, small_data: Path, shared_cache: Path, bad: str
) -> None:
    trunk = {"kind": "pwim_resnet", "depth": 1}
    wanted = table(tiny_encoder, trunk=trunk, on_nan="skip", stop={"max_epochs": 1})
    prepared = prepare(wanted, small_data, shared_cache, ["near"])
    before = snapshot(prepared.model)
    assert any("running_mean" in name for name in before)
    examples = {"near": poisoned(prepared.train["near"], 2)} if bad == "loss" else None
    regularisers = [] if bad == "loss" else [Steep()]
    list(prepared.run(rows=8, examples=examples, regularisers=regularisers, evaluate=Teller(Told(0.1))).events())
    assert not changed(prepared.model, before)


def test_coverage_counts_the_batches_that_were_learned_from(make: Any) -> None:
    events = list(make("mood", stop={"max_epochs": 3, "max_steps": 7}).run().events())
    seen = [epoch.report.coverage["mood"] for epoch in epochs(events)]
    assert [(part.once, part.repeated, part.unseen) for part in seen] == [(40, 0, 0), (16, 0, 24)]
    prepared = make("near", on_nan="skip", stop={"max_epochs": 1})
    examples = {"near": poisoned(prepared.train["near"], 2)}
    events = list(prepared.run(examples=examples, evaluate=Teller(Told(0.1))).events())
    assert epochs(events)[0].report.coverage["near"].unseen == 8


def assert_all_finite(events: list[Any]) -> None:
    losses = [step.losses for step in steps(events)] + [epoch.report.losses for epoch in epochs(events)]
    values = [value for report in losses for parts in report.values() for value in parts.values()]
    assert len(values) >= 9
    assert all(math.isfinite(value) for value in values)


def test_largest_number_of_steps(make: Any) -> None:
    events = list(make(stop={"max_epochs": 5, "max_steps": 7}).run().events())
    assert [step.step for step in steps(events)] == list(range(1, 8))
    assert epochs(events)[-1].report.step == 7
    assert isinstance(events[-1], StageEnd)
    assert events[-1].reason == "all epochs or steps done"
    assert steps(events)[-1].rate == 0


def test_reports_hold_finite_losses_by_task_and_part(make: Any) -> None:
    events = list(make(weighting=["inverse_size", "learned"]).run().events())
    assert_all_finite(events)
    for epoch in epochs(events):
        assert set(epoch.report.losses) == set(TASKS)
        assert all(set(parts) == {"task", "weight", "unweighted"} for parts in epoch.report.losses.values())
    seconds = [step.seconds for step in steps(events)]
    assert seconds == sorted(seconds)
    seen = epochs(events)[0].report.coverage["mood"]
    assert (seen.once, seen.repeated, seen.unseen) == (40, 0, 0)


# stages


def test_a_stage_ends_by_patience_and_goes_back_to_its_best(make: Any) -> None:
    prepared = make("mood", stop={"max_epochs": 9, "patience": 2, "threshold": 0.05})
    teller = Teller(*(Told(score) for score in (0.5, 0.6, 0.62, 0.64)))
    events = list(prepared.run(evaluate=teller).events())
    assert [epoch.best for epoch in epochs(events)] == [True, True, False, False]
    why = "no improvement of more than 0.05 in 2 epochs"
    assert events[-1] == StageEnd("together", why, "score", 0.6, before=None, after=Told(0.6), best_step=10)
    assert not changed(prepared.model, teller.states[1])
    assert changed(prepared.model, teller.states[3])


def test_without_any_score_the_last_state_stays_and_the_best_is_not_a_number(make: Any) -> None:
    prepared = make("mood", stop={"max_epochs": 2})
    teller = Teller(Told(math.nan), Told(math.nan))
    end = list(prepared.run(evaluate=teller).events())[-1]
    assert isinstance(end, StageEnd)
    assert math.isnan(end.best)
    assert not changed(prepared.model, teller.states[1])


@pytest.mark.parametrize(("metric", "best"), [("score", 0), ("plain_mean", 1), ("mood", 2), ("mood.macro_f1", 3)])
def test_the_metric_of_the_rule_is_the_one_asked_for(make: Any, metric: str, best: int) -> None:
    prepared = make("mood", stop={"max_epochs": 4, "metric": metric})
    told = [
        Told(float(n == 0), {"mood": float(n == 2), "mood.macro_f1": float(n == 3)}, float(n == 1)) for n in range(4)
    ]
    teller = Teller(*told)
    list(prepared.run(evaluate=teller).events())
    assert not changed(prepared.model, teller.states[best])


LEFT = Told(0.77)  # scores of the state that a stage leaves, where tasks finished on their own


def per_task(mood: tuple[float, ...], same: tuple[float, ...], score: tuple[float, ...]) -> Teller:
    return Teller(*(Told(s, {"mood": m, "same": a}) for m, a, s in zip(mood, same, score, strict=True)), LEFT)


def output(state: Mapping[str, torch.Tensor], task: str) -> torch.Tensor:
    return state[f"outputs.{task}.linear.weight"]


def test_a_task_that_finishes_leaves_the_schedule_and_keeps_its_best_output(make: Any) -> None:
    prepared = make("mood", "same", stop={"max_epochs": 5, "patience": 2, "per_task": True})
    teller = per_task((0.9, 0.8, 0.7, 0.6, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5))
    events = list(prepared.run(evaluate=teller).events())
    assert [epoch.finished for epoch in epochs(events)] == [(), (), ("mood",), (), ()]
    assert [sorted(epoch.report.losses) for epoch in epochs(events)] == [["mood", "same"]] * 3 + [["same"]] * 2
    final = snapshot(prepared.model)
    assert torch.equal(output(final, "mood"), output(teller.states[0], "mood"))
    assert torch.equal(output(final, "same"), output(teller.states[4], "same"))
    for state in teller.states[3:]:
        assert torch.equal(output(state, "mood"), output(teller.states[0], "mood"))


def test_a_finished_task_keeps_its_best_output_when_the_best_epoch_came_before(make: Any) -> None:
    prepared = make("mood", "same", stop={"max_epochs": 9, "patience": 1, "per_task": True})
    teller = per_task((0.1, 0.9, 0.8, 0.0), (0.1, 0.2, 0.3, 0.2), (0.9, 0.2, 0.3, 0.4))
    events = list(prepared.run(evaluate=teller).events())
    assert [epoch.finished for epoch in epochs(events)] == [(), (), ("mood",), ("same",)]
    assert isinstance(events[-1], StageEnd)
    assert events[-1].reason == "every task spent its patience"
    assert events[-1].after == LEFT
    assert not changed(prepared.model, teller.states[-1])
    final = snapshot(prepared.model)
    assert torch.equal(output(final, "mood"), output(teller.states[1], "mood"))
    assert torch.equal(output(final, "same"), output(teller.states[2], "same"))
    word = "encoder.embeddings.word.weight"
    assert torch.equal(final[word], teller.states[0][word])


@pytest.mark.parametrize("stop", [{"max_epochs": 2}, {"max_epochs": 9, "max_steps": 13}])
def test_a_task_may_finish_at_the_very_last_step(make: Any, stop: dict[str, int]) -> None:
    prepared = make("mood", "same", stop={"patience": 1, "per_task": True, **stop})
    teller = per_task((0.9, 0.8), (0.1, 0.2), (0.1, 0.2))
    events = list(prepared.run(evaluate=teller).events())
    assert epochs(events)[-1].finished == ("mood",)
    assert torch.equal(output(snapshot(prepared.model), "mood"), output(teller.states[0], "mood"))


def test_stages_follow_each_other_from_the_best_state(make: Any) -> None:
    prepared = make(
        "mood",
        stages=[{"name": "one", "stop": {"max_epochs": 3}}, {"name": "two", "train": ["outputs"], "warmup": 0.5}],
    )
    teller = Teller(Told(0.1), Told(0.9), Told(0.2))
    list(prepared.run(evaluate=teller).events())
    start = prepared.run(stage=1).events()
    begin = next(start)
    assert isinstance(begin, StageBegin)
    assert begin.stage == "two"
    assert begin.trained == 3 * 16 + 3
    assert not changed(prepared.model, teller.states[1])
    assert len(list(start)) > 2
    assert changed(prepared.model, teller.states[1]) == {"outputs.mood.linear.weight", "outputs.mood.linear.bias"}


def later(make: Any, *tasks: str, **stop: Any) -> tuple[Prepared, Any]:
    prepared = make(*tasks, stop={"max_epochs": 2, **stop})
    run = prepared.run()
    run.entry_counts = True
    return prepared, run


def test_a_later_stage_never_leaves_the_model_worse_than_it_began(make: Any) -> None:
    prepared, run = later(make, "mood", threshold=0.1)
    before = snapshot(prepared.model)
    run.evaluate = Teller(Told(0.5), Told(0.55), Told(0.4))
    events = list(run.events())
    entry = epochs(events)[0]
    assert (entry.report.epoch, entry.report.step, entry.report.losses, entry.best) == (-1, 0, {}, True)
    assert [epoch.best for epoch in epochs(events)] == [True, False, False]
    assert isinstance(events[-1], StageEnd)
    assert (events[-1].best, events[-1].before, events[-1].after) == (0.5, Told(0.5), Told(0.5))
    assert not changed(prepared.model, before)


def test_a_later_stage_that_beats_its_beginning_goes_on_from_its_best(make: Any) -> None:
    prepared, run = later(make, "mood")
    run.evaluate = Teller(Told(0.5), Told(0.6), Told(0.4))
    list(run.events())
    assert not changed(prepared.model, run.evaluate.states[1])


def test_a_task_of_a_later_stage_keeps_the_output_it_began_with_if_that_was_better(make: Any) -> None:
    prepared, run = later(make, "mood", "same", patience=1, per_task=True)
    before = snapshot(prepared.model)
    run.evaluate = per_task((0.9, 0.8, 0.7), (0.1, 0.2, 0.3), (0.1, 0.2, 0.3))
    assert [epoch.finished for epoch in epochs(list(run.events()))] == [(), ("mood",), ()]
    assert torch.equal(output(snapshot(prepared.model), "mood"), output(before, "mood"))
    assert not torch.equal(output(snapshot(prepared.model), "same"), output(before, "same"))


def test_what_a_later_stage_began_with_comes_back_before_its_first_evaluation(make: Any) -> None:
    prepared, run = later(make, "mood")
    before = snapshot(prepared.model)
    events = run.events()
    while not steps([next(events)]):
        pass
    assert changed(prepared.model, before)
    assert run.restore()
    assert not changed(prepared.model, before)


def test_before_the_first_evaluation_of_a_first_stage_there_is_nothing_to_restore(make: Any) -> None:
    run = make("mood").run()
    assert not run.restore()
    events = run.events()
    next(events), next(events)
    assert not run.restore()


def test_restoring_brings_back_the_best_outputs_of_finished_tasks(make: Any) -> None:
    prepared = make("mood", "same", stop={"max_epochs": 5, "patience": 1, "per_task": True})
    teller = per_task((0.1, 0.9, 0.8, 0.7), (0.1, 0.2, 0.3, 0.4), (0.9, 0.2, 0.3, 0.4))
    run = prepared.run(evaluate=teller)
    for event in run.events():
        if epochs([event]) and event.finished:
            break
    assert run.restore()
    final = snapshot(prepared.model)
    assert torch.equal(output(final, "mood"), output(teller.states[1], "mood"))
    assert torch.equal(output(final, "same"), output(teller.states[0], "same"))


def test_a_model_is_a_result_where_every_head_of_the_tasks_was_trained(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = prepare(table(tiny_encoder, trunk={"kind": "conv_bilstm"}), small_data, shared_cache)
    names = {name for name, _ in prepared.model.named_parameters()}
    heads = {name for name in names if name.startswith(("outputs.mood.", "trunks.single."))}
    assert begins_trained(prepared.model, ("mood",), heads)
    assert begins_trained(prepared.model, TASKS, names)
    assert not begins_trained(prepared.model, ("mood", "same"), heads)
    assert not begins_trained(prepared.model, ("mood",), {name for name in heads if name.startswith("outputs")})


def test_what_trains_is_counted_by_part_and_of_the_encoder_by_what_was_selected(make: Any) -> None:
    model = make().model
    chosen = {
        name: part
        for name, part in model.named_parameters()
        if name.startswith(("encoder.layers.1.", "encoder.embeddings.", "outputs.mood."))
    }
    encoder = sum(part.numel() for name, part in chosen.items() if name.startswith("encoder."))
    told = {"encoder.layers.1, encoder.embeddings": encoder, "outputs.mood": 3 * 16 + 3}
    assert counted(chosen, ("encoder.layers.1", "encoder.embeddings", "outputs")) == told
    assert counted(chosen, ("outputs", "encoder", "encoder.layers.0")) == {"encoder": encoder, "outputs.mood": 51}


def test_tasks_outside_the_stage_do_not_change_by_a_bit(make: Any) -> None:
    prepared = make(tasks=["mood"], train=["encoder", "trunks", "outputs"], weight_decay=0.5)
    before = snapshot(prepared.model)
    list(prepared.run().events())
    moved = changed(prepared.model, before)
    assert {"outputs.mood.linear.weight"} < moved
    assert not [name for name in moved if name.startswith(("outputs.same", "outputs.near"))]


@pytest.mark.parametrize(
    ("selection", "moves"),
    [
        ("encoder.embeddings", "encoder.embeddings."),
        ("encoder.layers.1", "encoder.layers.1."),
        ("encoder.layers.0-1", "encoder.layers."),
        ("outputs.mood", "outputs.mood."),
    ],
)
def test_selections_train_what_they_name(make: Any, selection: str, moves: str) -> None:
    prepared = make("mood", train=[selection], stop={"max_epochs": 1})
    before = snapshot(prepared.model)
    list(prepared.run().events())
    wanted = {name for name in before if name.startswith(moves)}
    assert changed(prepared.model, before) <= wanted
    assert len(changed(prepared.model, before)) > len(wanted) / 2


def test_a_selection_without_parameters_is_refused(make: Any) -> None:
    with pytest.raises(UsageError) as error:
        list(make("mood", train=["encoder.layers.7-9"]).run().events())
    wanted = "stage together: train: 'encoder.layers.7-9' names no parameter of this model; correct the selection"
    assert str(error.value) == wanted


def test_a_task_that_can_learn_nothing_is_refused(make: Any) -> None:
    with pytest.raises(UsageError) as error:
        list(make("mood", "same", train=["outputs.mood"]).run().events())
    assert str(error.value) == (
        "stage together: train: outputs.mood leaves nothing to learn from task same; "
        "select its output, or leave it out of the stage's tasks"
    )


def test_a_frozen_trunk_rests_but_its_lstm_stays_in_training_mode(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    wanted = table(tiny_encoder, trunk={"kind": "conv_bilstm", "dropout": 0.5}, train=["encoder", "outputs"])
    prepared = prepare(wanted, small_data, shared_cache, ["mood"])
    events = prepared.run().events()
    next(events), next(events)
    trunk = prepared.model.trunks["single"]
    assert not trunk.training
    assert prepared.model.encoder.training
    assert {part.training for part in trunk.modules() if isinstance(part, torch.nn.LSTM)} == {True}


def test_the_same_seed_trains_the_same_model_to_the_bit(make: Any) -> None:
    def trained() -> Prepared:
        prepared: Prepared = make(stop={"max_epochs": 1}, weighting="learned")
        list(prepared.run().events())
        return prepared

    assert not changed(trained().model, snapshot(trained().model))


def test_rows_of_the_batches_are_lines_of_the_file(make: Any) -> None:
    batch = make("mood").train["mood"].batch(np.arange(3))
    assert batch.rows.tolist() == [2, 3, 4]


# a device whose memory is too small


class Narrow:
    """The forward pass of a step module on a device that holds at most `rows` rows."""

    def __init__(self, module: StepModule, rows: int) -> None:
        self.forward, self.rows = module.forward, rows
        self.sizes: list[int] = []

    def __call__(self, batch: Batch, name: StepName) -> Any:
        if len(batch) > self.rows:
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(batch))
        return self.forward(batch, name)


def narrow(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[Narrow]:
    made: list[Narrow] = []
    parts_of = StageRun._parts

    def parts(self: StageRun, chosen: Any) -> Any:
        found = parts_of(self, chosen)
        made.append(Narrow(found.module, rows))
        found.module.forward = made[-1]
        return found

    monkeypatch.setattr(StageRun, "_parts", parts)
    return made


def test_a_batch_that_does_not_fit_goes_through_in_pieces(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cut = make("near", stop={"max_epochs": 1}), make("near", stop={"max_epochs": 1})
    whole = list(plain.run().events())
    made = narrow(monkeypatch, 3)
    events = list(cut.run().events())
    (told,) = [event for event in events if isinstance(event, Pieces)]
    assert told == Pieces("together", 1, 4, 2)
    assert set(made[0].sizes) == {2}
    assert [event.step for event in steps(events)] == [event.step for event in steps(whole)]
    for ours, theirs in zip(steps(events), steps(whole), strict=True):
        assert ours.losses["near"]["unweighted"] == pytest.approx(theirs.losses["near"]["unweighted"], rel=2e-3)
    ours, theirs = cut.model.state_dict(), plain.model.state_dict()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-3


def test_a_row_that_does_not_fit_is_said(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, 0)
    with pytest.raises(TrainingError, match=r"step 1: out of memory on cpu with a single row; set a smaller encoder"):
        list(make("near").run().events())


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 9])
def test_pieces_hold_every_row_once(make: Any, pieces: int) -> None:
    whole = make("near").train["near"].batch(np.arange(7))
    cut = whole.cut(pieces)
    assert len(cut) == min(pieces, 7)
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert torch.equal(torch.cat([piece.rows for piece in cut]), whole.rows)
    assert torch.equal(torch.cat([piece.labels for piece in cut]), whole.labels)
    firsts = torch.cat([piece.tokens.input_ids[: len(piece)] for piece in cut])
    seconds = torch.cat([piece.tokens.input_ids[len(piece) :] for piece in cut])
    assert torch.equal(torch.cat([firsts, seconds]), whole.tokens.input_ids)
