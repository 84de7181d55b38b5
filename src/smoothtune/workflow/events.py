"""What a run tells whoever listens, beside the events of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smoothtune.evaluation.scores import Scores
from smoothtune.training.stage_events import StageEvent
from smoothtune.workflow.check import CheckReport
from smoothtune.workflow.frozen import Encoding, FrozenStates
from smoothtune.workflow.recipe import Choosing, RecipeChosen
from smoothtune.workflow.run import Run


@dataclass(frozen=True, slots=True)
class RunBegin:
    """The data are read and checked and the run folder is there. `notes` are sentences on this machine."""

    folder: Path
    check: CheckReport
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resumed:
    """An earlier process began the run; this one goes on from `checkpoint`, at step `step` of `stage`.

    Where there is none that is whole, `checkpoint` is None and the run starts over. `damaged` says what is wrong with those that
    were passed over; `differs`, where the result may not be what it would have been without the stop, why.
    """

    folder: Path
    checkpoint: Path | None
    stage: str
    step: int
    damaged: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interrupting:
    """Ctrl-C has come: the run ends after the step or evaluation under way, with a `checkpoint` if it writes any.

    With `at_once` a second one ends it without.
    """

    checkpoint: bool
    at_once: bool


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The model is written; `scores` are those of all tasks on dev, None when the run was interrupted.

    `undefined` says, by `TASK.METRIC`, why a score is `nan`.
    """

    run: Run
    scores: Scores | None
    undefined: dict[str, str]


Event = Choosing | RecipeChosen | RunBegin | Resumed | Encoding | FrozenStates | StageEvent | Interrupting | RunEnd
