"""The check of one row against what its task needs, and the tally of what is wrong. Knows nothing of files on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from smoothtune.data.source import Flaw, Record, Source
from smoothtune.data.values import label_text, parse_number
from smoothtune.errors import Problem
from smoothtune.types import Kind

KEPT = 20
NO_LABEL = "no label"
FATAL = frozenset({"file", "missing column", "no rows", "open quote"})


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What a task needs of a row: one or two text columns, and a label column (None in prediction).

    `value_range` (low, high) belongs to regression and is in label units. `on_bad_row` is "error" or "leave_out".
    `class_names`: whether class labels of `datasets` are their names, not their numbers; a regression has numbers.
    """

    texts: tuple[str, ...]
    label: str | None
    kind: Kind
    value_range: tuple[float, float] | None = None
    on_bad_row: str = "error"
    class_names: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """All wanted columns: the texts, then the label."""
        return self.texts if self.label is None else (*self.texts, self.label)


@dataclass(frozen=True, slots=True)
class Finding:
    """All flaws of one kind: how many there are, and the first of them (at most 20) with their places."""

    kind: str
    count: int
    examples: tuple[Problem, ...]

    @property
    def fatal(self) -> bool:
        """True for what `on_bad_row = "leave_out"` cannot help: the file, a column, all rows."""
        return self.kind in FATAL

    def problems(self, shown: str) -> Iterator[Problem]:
        """The examples, and a last one that counts the rest."""
        yield from self.examples
        if self.count > len(self.examples):
            yield Problem(shown, f"{self.count - len(self.examples):,} more of this kind ({self.kind})")


def check_row(spec: RowSpec, record: Record) -> tuple[str, list[Flaw]]:
    """The label in its one spelling and what is wrong with the row; "" means that the row has no label for this task.

    A row without a label is not looked at further. In prediction the label is "" too, and the texts are checked.
    """
    label = ""
    flaws: list[Flaw] = []
    if spec.label is not None:
        label = label_text(record.values[-1])
        if not label:
            return "", []
        if spec.kind == "regression":
            label, flaws = _check_number(spec, label, record.line)
    for column, text in zip(spec.texts, record.values, strict=False):
        if not text.strip():
            flaws.append(Flaw("empty text", record.line, f"column {column!r} is empty; write a text or remove the row"))
    return label, flaws


def _check_number(spec: RowSpec, label: str, line: int) -> tuple[str, list[Flaw]]:
    number = parse_number(label)
    if number is None:
        what = f"column {spec.label!r} is {label[:40]!r}, not a number; write it as 3.8, or leave it empty"
        return label, [Flaw("not a number", line, what)]
    if spec.value_range is not None and not spec.value_range[0] <= number <= spec.value_range[1]:
        low, high = spec.value_range
        what = f"column {spec.label!r} is {label[:40]!r}, outside the range {low:g} to {high:g}; mend it, or the range"
        return label, [Flaw("outside the range", line, what)]
    return label_text(number), []


@dataclass(slots=True)
class Tally:
    """Counts flaws by kind and keeps the first of each; `rows` counts flawed rows by the kind of their first flaw."""

    unlabelled: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, flaws: list[Flaw]) -> None:
        """Count the flaws of one row."""
        self.rows[flaws[0].kind] = self.rows.get(flaws[0].kind, 0) + 1
        for flaw in flaws:
            self.counts[flaw.kind] = self.counts.get(flaw.kind, 0) + 1
            kept = self.examples.setdefault(flaw.kind, [])
            if len(kept) < KEPT:
                kept.append((flaw.line, flaw.what))


def findings_of(
    counts: Mapping[str, int], examples: Mapping[str, list[tuple[int, str]]], source: Source
) -> tuple[Finding, ...]:
    """The tallied flaws with places in `source`."""
    return tuple(
        Finding(kind, count, tuple(Problem(source.place(line), what) for line, what in examples[kind]))
        for kind, count in counts.items()
    )
