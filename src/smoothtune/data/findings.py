"""What is worth knowing about the rows of a split: repeats, contradicting labels, rows that stand in training data too.

Two texts are equal when they are so after white-space normalisation, case kept; two pairs when their texts are, in
either order. Only the chosen rows of a split count. Knows nothing of how such rows are found.
"""

from __future__ import annotations

from dataclasses import dataclass

from smoothtune.data.rows import RowTable
from smoothtune.data.task_data import Split

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Match:
    """Two rows that say the same: their places (`file:line`), the texts of the first, and both labels ("" without)."""

    here: str
    there: str
    texts: tuple[str, ...]
    labels: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Matches:
    """How many there are, and the first five."""

    count: int
    examples: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Repeats:
    """What is said more than once within a split.

    `duplicates`: rows behind the first of each group of equal rows, whatever their labels. `conflicts`: groups of equal
    rows with more than one label; an example is the first row that differs, and the group's first. Regression labels
    differ when the numbers do.
    """

    duplicates: Matches
    conflicts: Matches


@dataclass(frozen=True, slots=True)
class Leaks:
    """What the `rows` rows of a dev or test split share with all training rows; a row counts in one field at most.

    `whole`: the text, or the pair in either order, is a training row. `shared_both`, `shared_one`: the pair is not, but
    both its texts (or one) stand in training pairs. `across`: of the rest, single texts that stand in a training pair,
    and pairs with a text that is a single training text.
    """

    rows: int
    whole: Matches
    shared_one: Matches
    shared_both: Matches
    across: Matches


def match(split: Split, at: int, other: Split, other_at: int) -> Match:
    """The match of two rows, named by their positions among the chosen ones of their splits."""
    here, there = int(split.chosen[at]), int(other.chosen[other_at])
    labels = (_label(split.table, here), _label(other.table, there))
    return Match(split.table.place(here), other.table.place(there), split.table.texts([here])[0], labels)


def _label(table: RowTable, row: int) -> str:
    return "" if table.spec.label is None else str(table.labels()[row].as_py())
