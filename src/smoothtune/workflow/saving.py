"""When a run writes a checkpoint, and what of the run stands in it beside the state of the stage under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field

from smoothtune.config.experiment import CheckpointEvery
from smoothtune.errors import ModelFileError
from smoothtune.training.checkpoint import Checkpoint, Checkpoints
from smoothtune.training.loop import StepReport
from smoothtune.training.stage_events import StageEpoch, StageEvent
from smoothtune.training.stage_state import StageState
from smoothtune.training.state import STRICT, KeptState, State, bytes_of, refusal, under
from smoothtune.workflow.kept_scores import ScoresState

_FIRST_RATE = 2e8  # bytes a second that a disk is trusted to write, until it has shown how fast it is


@dataclass(slots=True)
class Saver:
    """Writes a checkpoint after those events of a stage after which one is due; `state` gives what stands in it.

    Epochs may be shorter than the writing: one after an epoch waits for a later epoch while all writing would take more than
    its share of the time.
    """

    checkpoints: Checkpoints
    every: CheckpointEvery
    state: Callable[[], State]
    _began: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)
    _spent: float = 0.0
    _cost: float | None = None

    def take(self, event: StageEvent) -> None:
        """Follow one event. Raises `WriteError`; checkpoints before are untouched then."""
        if self._due(event):
            self.write()

    def write(self) -> None:
        """Write one now."""
        began = time.monotonic()
        self.checkpoints.write(self.state())
        self._last = time.monotonic()
        self._cost = self._last - began
        self._spent += self._cost

    def _due(self, event: StageEvent) -> bool:
        every = self.every
        if isinstance(event, StageEpoch):
            epoch = event.report.epoch + 1
            return epoch > 0 and every.epochs > 0 and epoch % every.epochs == 0 and self._affordable()
        if not isinstance(event, StepReport):
            return False
        late = every.minutes > 0 and time.monotonic() - self._last > 60 * every.minutes
        return late or (every.steps > 0 and event.step % every.steps == 0)

    def _affordable(self) -> bool:
        if self.every.share == 1:
            return True
        if self._cost is None:
            self._cost = bytes_of(self.state()) / _FIRST_RATE
        return self._spent + self._cost <= self.every.share * (time.monotonic() - self._began)


class RunState(BaseModel):
    """What a checkpoint holds of a run beside its stage.

    `stage` is the number of the stage under way, `told` what `run.json` will say of those before; `metrics` is the size of
    metrics.jsonl in bytes; `resumed` tells of every time that the run went on.
    """

    model_config = STRICT

    identity: dict[str, Any]
    machine: dict[str, Any]
    threads: int = Field(ge=1, le=4096)
    stage: int = Field(ge=0)
    told: list[dict[str, Any]]
    frozen: list[dict[str, Any]]
    notices: list[dict[str, Any]]
    metrics: int = Field(ge=0)
    resumed: list[dict[str, Any]]

    def with_stage(self, state: State) -> State:
        """The whole state."""
        return {"run": self.model_dump(), "stage": state}


def run_state(checkpoint: Checkpoint, stages: int) -> tuple[RunState, KeptState]:
    """What a checkpoint holds of the run, and of its stage. Raises `ModelFileError` where it is no such state."""
    whole = KeptState(checkpoint.state, checkpoint.folder)
    try:
        if whole.keys() != {"run", "stage"}:
            raise ValueError(f": got {sorted(whole)}, expected run and stage")
        with under("run"):
            found = RunState.model_validate(whole["run"])
            _check_stage(found, stages)
        with under("stage"):
            stage = StageState.model_validate(whole["stage"])
            for name, scores in (("before", stage.before), ("after", stage.after)):
                with under(name):
                    _ = scores is None or ScoresState.model_validate(scores)
    except ValueError as error:
        raise ModelFileError(refusal(whole, "state.json", error)) from None
    return found, KeptState(whole["stage"], checkpoint.folder)


def _check_stage(found: RunState, stages: int) -> None:
    if found.stage >= stages:
        raise ValueError(f"stage: got {found.stage}, but the run has {stages} stages, counted from 0")
    if len(found.told) != found.stage:
        raise ValueError(f"told: got {len(found.told)} stages, expected the {found.stage} before the one under way")
