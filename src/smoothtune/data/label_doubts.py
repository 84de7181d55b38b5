"""What is doubtful about the labels of a split, judged by their counts alone. Knows nothing of how it is told."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from unicodedata import category, normalize

from smoothtune.data.values import parse_number, same_label

FEW_TRAINING_ROWS = 5
FEW_DEV_ROWS = 50
MOST_LOOKALIKES = 6
_LEAST_LETTERS = 4
_DOMINANT = 0.9
_NO_LABELS = frozenset({"nan", "none", "na", "n/a", "#n/a", "<na>", "null", "nil", "nat", "-", "--", "?", "missing"})
_LIST = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
_MARKS = re.compile(r"[|;,/+&]")


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
    from another by one letter, two letters in turn, or case alone. `alike`: groups of labels that differ in case, white space
    or the spelling of a number or truth value alone. `none`: labels that may say that there is no label. `several`: labels
    that may be several in one. These four are empty where the experiment lists the labels. `dominant`: the training label of
    at least nine rows in ten.
    """

    absent: tuple[str, ...]
    rare: dict[str, int]
    few_rows: bool
    constant: bool
    lookalikes: Lookalikes = Lookalikes()
    alike: tuple[tuple[str, ...], ...] = ()
    none: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    dominant: str | None = None


def label_doubts(split: str, rows: int, balance: Mapping[str, int]) -> LabelDoubts:
    """Those that follow from the `balance` of a split: its rows by label, empty for a regression."""
    few = {label: count for label, count in balance.items() if 0 < count < FEW_TRAINING_ROWS}
    return LabelDoubts(
        absent=tuple(label for label, count in balance.items() if not count),
        rare=few if split == "train" else {},
        few_rows=split == "dev" and rows < FEW_DEV_ROWS,
        constant=rows in balance.values(),
        dominant=next((label for label, count in balance.items() if count >= _DOMINANT * rows), None)
        if split == "train"
        else None,
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


def alike(labels: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of labels that differ in case, white space, how Unicode writes a sign, or how a number or truth value is spelt."""
    groups: dict[str | float, list[str]] = {}
    for label in labels:
        plain = "".join(sign for sign in normalize("NFKC", label) if category(sign) != "Cf")  # joiners have no width
        groups.setdefault(same_label(" ".join(plain.casefold().split())), []).append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def no_labels(labels: Collection[str]) -> tuple[str, ...]:
    """Labels that are how programs write that there is none; -1 is, but beside 1 alone and other negative numbers."""
    numbers = {number for label in labels if (number := parse_number(label)) is not None}
    missing = {label for label in labels if label.casefold() in _NO_LABELS}
    others = len(numbers) > 2 or len(numbers) < len(labels)
    if others and min(numbers, default=0) == -1:
        missing |= {label for label in labels if parse_number(label) == -1}
    return tuple(label for label in labels if label in missing)


def several_labels(labels: Collection[str]) -> tuple[str, ...]:
    """Labels that may be several in one: a list, parts between bars, or labels of the task between other marks."""
    return tuple(label for label in labels if _LIST.fullmatch(label) or _is_joined(label, labels))


def _is_joined(label: str, labels: Collection[str]) -> bool:
    parts = [part.strip() for part in _MARKS.split(label)]
    bars = "|" in label and all(parts)
    return len(parts) > 1 and (bars or all(part in labels for part in parts))


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
