"""Says in plain words, and once, what a probe has found wrong with a regulariser. Knows nothing of who is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from pydantic import BaseModel, Strict

from smoothtune.objective.look import Regulariser
from smoothtune.objective.measuring import DROWNED_ABOVE, LOST_BELOW, Search, in_words, search_of
from smoothtune.training.probe import Record, Records
from smoothtune.training.state import STRICT, shown

_FAULTS = ("lost", "drowned")


class NoticesState(BaseModel):
    """What was said: regulariser, fault, task. JSON has lists for what is a tuple here."""

    model_config = STRICT

    said: list[Annotated[tuple[str, str, str], Strict(False)]]


@dataclass(frozen=True, slots=True)
class Notice:
    """What is wrong with a regulariser on some tasks, and what to change."""

    stage: str
    regulariser: str
    tasks: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        """One line for people."""
        return f"stage {self.stage}, {self.regulariser} ({', '.join(self.tasks)}): {self.text}"


@dataclass(slots=True)
class Notices:
    """Reads the probes of a stage; nothing is said twice of the same regulariser and task.

    `dtype_with(regulariser, task)` is the dtype of the steps in which it looks.
    """

    stage: str
    regularisers: Sequence[Regulariser]
    dtype_with: Callable[[Regulariser, str], torch.dtype]
    _said: set[tuple[str, str, str]] = field(default_factory=set)

    def new(self, records: Records) -> Iterator[Notice]:
        """What `records`, by task and regulariser, show for the first time; one notice for all tasks that show it."""
        for regulariser, dtype, mine in self._by_dtype(records):
            name = regulariser.name
            for fault in _faults(regulariser, dtype):
                unsaid = {task: record for task, record in mine.items() if (name, fault.name, task) not in self._said}
                shown = {task: record for task, record in unsaid.items() if fault.shows(record)}
                self._said.update((name, fault.name, task) for task in shown)
                if shown:
                    yield Notice(self.stage, name, tuple(shown), fault.text(shown.values()))

    def state_dict(self) -> dict[str, list[tuple[str, str, str]]]:
        """What was said: regulariser, fault, task."""
        return {"said": sorted(self._said)}

    def load_state_dict(self, state: Mapping[str, Any], tasks: Collection[str]) -> None:
        """Go on from the state of a stage with these `tasks`. Raises `ValueError` for what is none."""
        said = NoticesState.model_validate(state).said
        names = {regulariser.name for regulariser in self.regularisers}
        for number, (name, fault, task) in enumerate(said):
            if name not in names or fault not in _FAULTS or task not in tasks:
                raise ValueError(
                    f"said.{number}: got {shown(name)}, {shown(fault)}, {shown(task)}, expected a regulariser, a fault and a task"
                )
        self._said = set(said)

    def _by_dtype(self, records: Records) -> Iterator[tuple[Regulariser, torch.dtype, dict[str, Record]]]:
        """The records of each regulariser, by task, apart for each dtype in which it looks."""
        for regulariser in self.regularisers:
            tasks = [task for task, found in records.items() if regulariser.name in found]
            dtypes = {task: self.dtype_with(regulariser, task) for task in tasks}
            for dtype in dict.fromkeys(dtypes.values()):
                yield (
                    regulariser,
                    dtype,
                    {task: records[task][regulariser.name] for task in tasks if dtypes[task] == dtype},
                )


def _faults(regulariser: Regulariser, dtype: torch.dtype) -> tuple[_Fault, ...]:
    search = search_of(regulariser)
    return () if search is None else (_Lost(str(dtype).removeprefix("torch."), search), _Drowned(search))


class _Fault(Protocol):
    """Something that may be wrong, as records of a probe show it; `name` is what it is kept under."""

    @property
    def name(self) -> str: ...

    def shows(self, record: Record) -> bool:
        """Whether this task's record shows it."""
        ...

    def text(self, records: Collection[Record]) -> str:
        """What is wrong in these records, and what to change."""
        ...


@dataclass(frozen=True, slots=True)
class _Lost:
    """The dtype cannot carry the perturbation."""

    dtype: str
    search: Search
    name: str = _FAULTS[0]

    def shows(self, record: Record) -> bool:
        return record["surviving"] < LOST_BELOW

    def text(self, records: Collection[Record]) -> str:
        least = min(record["surviving"] for record in records)
        norm = max(record["norm"] for record in records)
        needed = max(record["norm_needed"] for record in records)
        wider = "" if self.dtype == "float32" else 'precision = "float32" for this regulariser, or '
        return (
            f"the perturbation of norm {norm:.3g} is lost in {self.dtype}: {100 * least:.0f} % of its entries survive; "
            f"set {wider}a {self.search.key_at(norm)} of about {needed:.1g} or more"
        )


@dataclass(frozen=True, slots=True)
class _Drowned:
    """Dropout moves the answers so much more than the perturbation that the perturbation does not count."""

    search: Search
    name: str = _FAULTS[1]

    def shows(self, record: Record) -> bool:
        return record["dropout"] > DROWNED_ABOVE * record["adversarial"]

    def text(self, records: Collection[Record]) -> str:
        norm = max(record["norm"] for record in records)
        key = self.search.key_at(norm)
        if self.search.compares and self.search.masks == "independent":
            return (
                f'{_further(records)}: the term is in truth R-Drop; use kind = "r_drop" for that (second_loss = false, and '
                "twice the weight but for regression, make it as strong), or else set "
                f'dropout = "shared" and a {key} larger than {norm:.3g} (in smoothness, preset = "exact" has both)'
            )
        return (
            f"{_further(records)}: beside what dropout does, the term asks for next to nothing; "
            f"set a {key} larger than {norm:.3g}, or leave the term out"
        )


def _further(records: Collection[Record]) -> str:
    ratios = [record["dropout"] / record["adversarial"] for record in records if record["adversarial"] > 0]
    if len(ratios) < len(records):
        return "two passes that differ in dropout alone lie apart, and the perturbed pass does not from the clean one"
    return (
        f"two passes that differ in dropout alone lie {in_words(max(ratios))} times further apart than the perturbed pass "
        "from the clean one under the same masks"
    )
