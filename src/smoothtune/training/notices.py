"""Says in plain words, and once, what a probe has found wrong with a regulariser. Knows nothing of who is told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from smoothtune.objective.look import Regulariser
from smoothtune.objective.measuring import DROWNED_ABOVE, LOST_BELOW, Search, search_of
from smoothtune.training.probe import Record, Records


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
    """Reads the probes of a stage that computes in `dtype`; nothing is said twice of the same regulariser and task."""

    stage: str
    regularisers: Sequence[Regulariser]
    dtype: str
    _said: set[tuple[str, str, str]] = field(default_factory=set)

    def new(self, records: Records) -> Iterator[Notice]:
        """What `records`, by task and regulariser, show for the first time; one notice for all tasks that show it."""
        for regulariser in self.regularisers:
            name = regulariser.name
            mine = {task: found[name] for task, found in records.items() if name in found}
            for fault in self._faults(regulariser):
                unsaid = {task: record for task, record in mine.items() if (name, fault.name, task) not in self._said}
                shown = {task: record for task, record in unsaid.items() if fault.shows(record)}
                self._said.update((name, fault.name, task) for task in shown)
                if shown:
                    yield Notice(self.stage, name, tuple(shown), fault.text(shown.values()))

    def state_dict(self) -> dict[str, list[tuple[str, str, str]]]:
        """What was said: regulariser, fault, task."""
        return {"said": sorted(self._said)}

    def load_state_dict(self, state: Mapping[str, Iterable[Iterable[str]]]) -> None:
        """Go on from a state."""
        self._said = {(name, fault, task) for name, fault, task in state["said"]}

    def _faults(self, regulariser: Regulariser) -> tuple[_Fault, ...]:
        search = search_of(regulariser)
        dtype = self.dtype if regulariser.precision is None else regulariser.precision
        return () if search is None else (_Lost(dtype), _Drowned(search))


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
    name: str = "lost"

    def shows(self, record: Record) -> bool:
        return record["surviving"] < LOST_BELOW

    def text(self, records: Collection[Record]) -> str:
        least = min(record["surviving"] for record in records)
        norm = max(record["norm"] for record in records)
        needed = max(record["norm_needed"] for record in records)
        wider = "" if self.dtype == "float32" else 'precision = "float32" for this regulariser, or '
        return (
            f"the perturbation of norm {norm:.3g} is lost in {self.dtype}: {100 * least:.0f} % of its entries survive; "
            f"set {wider}a radius of about {needed:.1g} or more"
        )


@dataclass(frozen=True, slots=True)
class _Drowned:
    """Dropout moves the answers so much more than the perturbation that the perturbation does not count."""

    search: Search
    name: str = "drowned"

    def shows(self, record: Record) -> bool:
        return record["dropout"] > DROWNED_ABOVE * record["adversarial"]

    def text(self, records: Collection[Record]) -> str:
        norm = max(record["norm"] for record in records)
        if self.search.masks == "independent":
            return (
                f'{_further(records)}: the term is in truth R-Drop; use kind = "r_drop" for that, or else set '
                f'dropout = "shared" and a radius larger than {norm:.3g} (in smoothness, preset = "exact" has both)'
            )
        return (
            f"{_further(records)}: beside what dropout does, the term asks for next to nothing; "
            f"set a radius larger than {norm:.3g}, or leave the term out"
        )


def _further(records: Collection[Record]) -> str:
    ratios = [record["dropout"] / record["adversarial"] for record in records if record["adversarial"] > 0]
    if len(ratios) < len(records):
        return "two passes that differ in dropout alone lie apart, and the perturbed pass does not from the clean one"
    return (
        f"two passes that differ in dropout alone lie {max(ratios):.1g} times further apart than the perturbed pass "
        "from the clean one under the same masks"
    )
