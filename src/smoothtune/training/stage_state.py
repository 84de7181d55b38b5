"""What a stage holds while it runs, and how it goes on from the state of another process: checked whole, then put in place.

Each part checks its own state; here is what parts must agree on. Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from smoothtune.training.best import BestState, fitting_weights, give_weights
from smoothtune.training.notices import Notices
from smoothtune.training.optimiser import give_moments, rates_at
from smoothtune.training.optimiser_step import LoopParts
from smoothtune.training.probe import Probe
from smoothtune.training.progress import Bounds, Progress, ProgressState
from smoothtune.training.rule import Evaluation, Rule, StageScores
from smoothtune.training.state import STRICT, under


class StageState(BaseModel):
    """The parts of a stage's state. Of `progress` all is checked here, of the others what they are made of."""

    model_config = STRICT

    progress: ProgressState
    schedule: dict[str, Any]
    weights: dict[str, Tensor]
    weighting: dict[str, Tensor]
    moments: dict[str, dict[str, Any]]
    regularisers: list[dict[str, Any]]
    best: dict[str, Any]
    rule: dict[str, Any]
    notices: dict[str, Any]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(slots=True)
class Live:
    """What a stage holds while it runs; `before` are the scores it began with, where it began with a result."""

    chosen: dict[str, torch.nn.Parameter]
    parts: LoopParts
    probe: Probe
    notices: Notices
    best: BestState
    rule: Rule
    at: Progress = field(default_factory=Progress)
    before: StageScores | None = None
    after: StageScores | None = None


def go_on(live: Live, state: Mapping[str, Any], evaluate: Evaluation, *, entry_counts: bool) -> None:
    """Put `state` in place of what the stage begins with; with `entry_counts` that was a result.

    Raises `ValueError`, whose text begins with the key path, where no run of the stage comes to such a state; the model is
    as it was then.
    """
    found = StageState.model_validate(dict(state))
    model, weighting = live.parts.module.model, live.parts.module.weighting
    _take_position(live, found)
    with under("weights"):
        weights = fitting_weights(model, found.weights, live.best.names)
    with under("weighting"):
        factors = fitting_weights(weighting, found.weighting, weighting.state_dict())
    with under("moments"):
        give_moments(live.parts.optimiser, found.moments, steps=live.at.step)
    _take_regularisers(live, found.regularisers)
    _take_rule(live, found, {**model.state_dict(), **weights})
    live.before = _scores("before", found.before, live, evaluate)
    if live.before is not None:
        live.rule.set_floor(live.before)
    live.after = _scores("after", found.after, live, evaluate)
    _check_scores(live, entry_counts)
    give_weights(model, weights)
    give_weights(weighting, factors)
    rates_at(live.parts.rates, live.at.step)


def _take_position(live: Live, found: StageState) -> None:
    parts = live.parts
    with under("schedule"):
        parts.schedule.load_state_dict(found.schedule)
    terms = {regulariser.name for regulariser in parts.module.regularisers}
    with under("progress"):
        live.at = Progress.of(
            found.progress, Bounds(parts.total_steps, parts.stage.batch_size, terms, parts.schedule)
        )  # fmt: skip


def _take_regularisers(live: Live, memories: list[dict[str, Any]]) -> None:
    module, passed = live.parts.module, live.parts.schedule.passed()
    if len(memories) != len(module.regularisers):
        raise ValueError(f"regularisers: got {len(memories)}, expected {len(module.regularisers)}")
    trained = {name: part for name, part in module.model.named_parameters() if part.requires_grad}
    for number, (regulariser, memory) in enumerate(zip(module.regularisers, memories, strict=True)):
        with under(f"regularisers.{number}"):
            regulariser.load_state_dict(memory)
            regulariser.check_memory(passed, trained, whole=live.at.pieces == 1)


def _take_rule(live: Live, found: StageState, present: Mapping[str, Tensor]) -> None:
    """Best states, the stopping rule and what was said; `present` is all that the model will hold."""
    schedule, at = live.parts.schedule, live.at
    with under("best"):
        live.best.load_state_dict(found.best, present)
    with under("rule"):
        live.rule.load_state_dict(found.rule, live.parts.module.model, present, epochs=_epochs(live))
    if not live.rule.agrees(schedule.active, ended=at.step >= live.parts.total_steps):
        raise ValueError(
            f"rule.running: got {found.rule['running']}, but the schedule has {list(schedule.active)} left"
        )
    with under("notices"):
        live.notices.load_state_dict(found.notices, schedule.sources.keys())


def _epochs(live: Live) -> int:
    """How many were judged. That in which the last step was made is over, though the schedule has not left it."""
    schedule = live.parts.schedule
    return schedule.epoch + (live.at.epoch is None and schedule.begun)


def _scores(name: str, found: dict[str, Any] | None, live: Live, evaluate: Evaluation) -> StageScores | None:
    if found is None:
        return None
    try:
        scores = evaluate.scores_of(found)
        tasks = scores.main.keys()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: are no scores ({type(error).__name__}: {error})") from None
    if tasks != live.parts.schedule.sources.keys():
        raise ValueError(f"{name}: got scores of {sorted(tasks)}, expected {sorted(live.parts.schedule.sources)}")
    return scores


def _check_scores(live: Live, entry_counts: bool) -> None:
    """The best value is that of the scores that were kept, and has a state."""
    best, metric = live.rule.stopping.best, live.parts.stage.stop.metric
    if (live.before is not None) != entry_counts:
        raise ValueError(f"before: got {'none' if entry_counts else 'scores'} where the stage begins otherwise")
    if (live.after is not None) != (entry_counts or _epochs(live) > 0):
        raise ValueError(f"after: got {'none' if live.after is None else 'scores'} after {_epochs(live)} epochs")
    if not math.isfinite(best):
        return
    if not live.best.kept:
        raise ValueError(f"best.kept: holds no state for the best value {best}")
    if live.after is None or _value(live.after, metric) != best:
        raise ValueError(f"rule.stopping.best: got {best}, which is not the {metric} of `after`")


def _value(scores: StageScores, metric: str) -> float:
    try:
        return scores.value(metric)
    except LookupError:
        raise ValueError(f"after: has no {metric}") from None
