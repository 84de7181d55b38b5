"""The set of labels of a task, fitted on its training rows or given and checked. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from smoothtune.data.checks import KEPT, Finding
from smoothtune.data.columns import blocks, counting
from smoothtune.data.keys import label_key, label_keys
from smoothtune.data.rows import RowTable
from smoothtune.data.values import label_text, parse_number, same_label
from smoothtune.errors import DataError, Problem
from smoothtune.types import Kind

MOST_LABELS = 10_000
MANY_LABELS = 1_000
FEW_LABELS = 50
_SHOWN = 10


def fit_labels(table: RowTable, chosen: NDArray[np.int32] | None = None) -> tuple[str, ...]:
    """The distinct labels of training rows, all or the `chosen` (M,) positions.

    In number order when all are numbers, else in text order.

    For a binary task the second is the positive class: 0 1, no yes, false true, negative positive all sort so.
    Raises `DataError` for a single label, for other than two in a binary task, for numbers that look like measurements
    (more than 1,000, or more than 50 that are more than half as many as the rows), and for texts that look like no labels:
    more than 1,000 that are more than half as many as the rows, or more than 10,000.
    """
    rows = _first_rows(table, counting(len(table)) if chosen is None else chosen)
    texts = table.labels()
    # Of too many labels only the number is told.
    labels = _sorted([texts[row].as_py() for row in rows]) if len(rows) <= MOST_LABELS else ()
    what = _what_is_wrong(labels, len(rows), len(table) if chosen is None else len(chosen), table.spec.kind)
    if what:
        problem = Problem(table.source.shown, f"column {table.spec.label!r} {what}")
        raise DataError(f"The labels of {table.name} cannot be used.", [problem])
    return labels


def _first_rows(table: RowTable, chosen: NDArray[np.int32]) -> list[int]:
    """The first of the chosen rows of each label."""
    keys, found = table.label_keys(), dict[int, int]()
    for part in blocks(len(chosen)):
        some, first = np.unique(keys[chosen[part]], return_index=True)
        for key, at in zip(some.tolist(), first.tolist(), strict=True):
            found.setdefault(key, int(chosen[part][at]))
    return list(found.values())


def _what_is_wrong(labels: tuple[str, ...], count: int, rows: int, kind: Kind) -> str:
    many = f"has {count:,} different labels in {rows:,} rows"
    if count > MOST_LABELS or (count > MANY_LABELS and 2 * count > rows and not _are_numbers(labels)):
        return f"{many}; is this the column of the labels?"
    if (count > MANY_LABELS or (count > FEW_LABELS and 2 * count > rows)) and _are_numbers(labels):
        return f"{many}, all of them numbers; is this a regression? If not, list them in `labels`"
    if len(labels) < 2:
        return f"has only the label {labels[0]!r}; a {kind} task needs two or more" if labels else "has no labels"
    if kind == "binary" and len(labels) != 2:
        return f"{many} ({_listed(labels)}); a binary task needs exactly two: is this a classification?"
    return ""


def _are_numbers(labels: Sequence[str]) -> bool:
    return all(parse_number(label) is not None for label in labels)


def _sorted(labels: list[str]) -> tuple[str, ...]:
    numbers = {label: parse_number(label) for label in labels}
    if any(number is None for number in numbers.values()):
        return tuple(sorted(labels))
    return tuple(sorted(labels, key=lambda label: (numbers[label], label)))


def rows_outside(table: RowTable, labels: Sequence[str], chosen: NDArray[np.int32] | None = None) -> NDArray[np.int64]:
    """The row numbers, in order, whose label is not among `labels`, of all rows or of the `chosen` (M,) positions."""
    inside = inside_labels(table, labels)
    rows = counting(len(table)) if chosen is None else chosen
    outside = [rows[part][~inside(rows[part])] for part in blocks(len(rows))]
    return np.concatenate([np.empty(0, dtype=np.int64), *outside])


def inside_labels(table: RowTable, labels: Sequence[str]) -> Callable[[NDArray[np.int32]], NDArray[np.bool_]]:
    """Tells of rows (n,) whether their label is among `labels`, (n,), in whatever spelling (`known_keys`)."""
    (known, _), keys = known_keys(table, labels), table.label_keys()
    return lambda rows: np.isin(keys[rows], known)


def known_keys(table: RowTable, labels: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys of the rows' labels that are among `labels`, ascending (K,), and the number of the label of each (K,).

    A label that is not among them as it stands is the one that says the same truth value or number (`values.same_label`), if
    one alone does: the same column is spelt otherwise in another format.
    """
    exact = label_keys(map(label_text, labels))
    found = dict(zip(exact.tolist(), range(len(labels)), strict=True))
    meanings: dict[str | float, list[int]] = {}
    for number, label in enumerate(labels):
        meanings.setdefault(same_label(label_text(label)), []).append(number)
    for label in _others(table, exact) if any(isinstance(meaning, float) for meaning in meanings) else ():
        numbers = meanings.get(same_label(label), [])
        if len(numbers) == 1:
            found[label_key(label)] = numbers[0]
    keys = np.fromiter(found, np.uint64, len(found))
    order = np.argsort(keys)
    return keys[order], np.fromiter(found.values(), np.int64, len(found))[order]


def _others(table: RowTable, known: NDArray[np.uint64]) -> list[str]:
    """The labels of the rows whose keys are not `known`, at most 1,000."""
    keys, rows = table.label_keys(), dict[int, int]()
    for part in blocks(len(keys)):
        outside = np.flatnonzero(~np.isin(keys[part], known)) + part.start
        for key, at in zip(*(found.tolist() for found in np.unique(keys[outside], return_index=True)), strict=True):
            rows.setdefault(key, int(outside[at]))
        if len(rows) > MANY_LABELS:
            break
    texts = table.labels()
    return [texts[row].as_py() for row in list(rows.values())[:MANY_LABELS]]


def check_labels(
    table: RowTable, labels: Sequence[str], chosen: NDArray[np.int32] | None = None
) -> tuple[Problem, ...]:
    """A problem (file:line) for each row of `rows_outside`: the first 20 and a count of the rest."""
    rows = rows_outside(table, labels, chosen)
    if len(rows) == 0:
        return ()
    texts = table.labels()
    problems = tuple(
        Problem(
            table.place(int(row)),
            f"column {table.spec.label!r} is {texts[int(row)].as_py()[:40]!r}; the labels are {_listed(labels)}",
        )
        for row in rows[:KEPT]
    )
    return tuple(Finding("unknown label", len(rows), problems).problems(table.source.shown))


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else ""
    return ", ".join(repr(label) for label in labels[:_SHOWN]) + more
