"""What is doubtful about the labels of a split, judged by their counts alone. Knows nothing of how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FEW_TRAINING_ROWS = 5
FEW_DEV_ROWS = 50
MOST_LOOKALIKES = 6
_LEAST_LETTERS = 4


@dataclass(frozen=True, slots=True)
class Lookalike:
    """A label of one row, spelt almost like another label; `place` is `file:line` of its row."""

    label: str
    other: str
    place: str


@dataclass(frozen=True, slots=True)
class Lookalikes:
    """How many there are, and the first six."""

    count: int = 0
    examples: tuple[Lookalike, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """Doubts about the labels of a split.

    `absent`: labels without a row. `rare`: training labels with fewer than five rows, and how many. `few_rows`: a dev split
    of fewer than 50. `constant`: all rows have one label. `lookalikes`: labels with one row among all splits that differ
    from another by one letter, two letters in turn, or case alone; empty where the experiment lists the labels.
    """

    absent: tuple[str, ...]
    rare: dict[str, int]
    few_rows: bool
    constant: bool
    lookalikes: Lookalikes = Lookalikes()


def label_doubts(split: str, rows: int, balance: Mapping[str, int]) -> LabelDoubts:
    """Those that follow from the `balance` of a split: its rows by label, empty for a regression."""
    few = {label: count for label, count in balance.items() if 0 < count < FEW_TRAINING_ROWS}
    return LabelDoubts(
        absent=tuple(label for label, count in balance.items() if not count),
        rare=few if split == "train" else {},
        few_rows=split == "dev" and rows < FEW_DEV_ROWS,
        constant=rows in balance.values(),
    )


def lookalikes(counts: Mapping[str, int]) -> dict[str, str]:
    """Labels that are counted once, and the most frequent label that each is spelt almost like.

    Of two such labels that are counted once only the later one is there. Cost: each label counted once against all others.
    """
    places = {label: place for place, label in enumerate(counts)}
    pairs = {}
    for label in (label for label, count in counts.items() if count == 1):
        similar = [other for other in counts if _similar(label, other)]
        similar = [other for other in similar if counts[other] > 1 or places[other] < places[label]]
        if similar:
            pairs[label] = max(similar, key=lambda other: counts[other])
    return pairs


def _similar(label: str, other: str) -> bool:
    """Whether two labels differ by case alone or by one letter; neighbours that changed places count as one."""
    if label == other or abs(len(label) - len(other)) > 1:
        return False
    if label.casefold() == other.casefold():
        return True
    size = min(len(label), len(other))
    start = next((place for place in range(size) if label[place] != other[place]), size)
    for here, there in ((1, 1), (1, 0), (0, 1), (2, 2)):
        changed, original = label[start : start + here], other[start : start + there]
        if label[start + here :] == other[start + there :] and (here < 2 or changed == original[::-1]):
            # a number tells labels apart: class1 is no class2 mistyped
            return (changed + original).isalpha() and min(_letters(label), _letters(other)) >= _LEAST_LETTERS
    return False


def _letters(label: str) -> int:
    return sum(map(str.isalpha, label))
