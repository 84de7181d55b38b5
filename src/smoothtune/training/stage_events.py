"""What a stage tells whoever reads it. Knows nothing of how a stage runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from smoothtune.training.loop import EpochReport, Pieces, StepReport
from smoothtune.training.notices import Notice
from smoothtune.training.probe import Records


@dataclass(frozen=True, slots=True)
class StageBegin:
    """Before the first step: what trains, and its share of all parameters.

    `trains` counts the parameters that train by part: `encoder` or its layers, `trunks.NAME`, `outputs.TASK`,
    `lora.TASK`, `adapters.TASK`. `done` are the steps made before, where the stage goes on. With `keeps_last` the stage
    leaves its last state, not the best. `others` are the tasks of the model that are not in the stage, each with what it
    goes through and the stage trains: the encoder, its trunk.
    """

    stage: str
    tasks: tuple[str, ...]
    steps: int
    trains: dict[str, int]
    parameters: int
    dtype: str
    done: int = 0
    keeps_last: bool = False
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """The number of parameters that train."""
        return sum(self.trains.values())


@dataclass(frozen=True, slots=True)
class StageEpoch:
    """After an epoch: the loop's report, whether this is the new best, and the tasks that finished with it.

    Where the state that the stage began with is the one to beat, it comes first, as epoch -1. `probe` holds what the
    regularisers do to this state, by task and regulariser. `below` are the tasks that keep it from being the best state:
    their metric before the first step and now (`stop.no_task_below_start`); where the stage leaves `each_task` in a state of its
    own, the tasks whose state this cannot be.
    """

    report: EpochReport
    best: bool
    finished: tuple[str, ...]
    factors: dict[str, float]
    probe: Records = field(default_factory=dict)
    below: dict[str, tuple[float, float]] = field(default_factory=dict)
    each_task: bool = False


@dataclass(frozen=True, slots=True)
class StageEnd:
    """After the stage: why it ended and the best value of its metric (nan when there was none).

    `before` are the scores of the state that the stage began with, None where that was no result; `after` those of the
    state that it leaves, which it had after `best_step` steps (None where no state was the best). `best_steps` are those of
    each task, where the stage leaves each in a state of its own.
    """

    stage: str
    reason: str
    metric: str
    best: float
    before: Any = None
    after: Any = None
    best_step: int | None = None
    best_steps: dict[str, int] = field(default_factory=dict)


StageEvent = StageBegin | StepReport | Pieces | StageEpoch | Notice | StageEnd
