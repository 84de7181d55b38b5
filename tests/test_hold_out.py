"""What a `dev` fraction holds out: shares of each class, equal texts on one side, the same for tasks that share texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smoothtune.data.checks import RowSpec
from smoothtune.data.hold_out import HoldOut
from smoothtune.data.keys import label_keys, text_keys
from smoothtune.data.rows import RowTable

FRACTIONS = st.sampled_from([0.01, 0.1, 0.2, 1 / 3, 0.5, 0.9, 0.99])
Row = tuple[str, str]


@dataclass
class Table:
    """What a hold-out asks of a table, from rows in memory."""

    rows: list[Row]
    spec: RowSpec = field(default_factory=lambda: RowSpec(("a",), "y", "classification"))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> NDArray[np.uint64]:
        return text_keys(text for text, _ in self.rows)

    def label_keys(self) -> NDArray[np.uint64]:
        return label_keys(label for _, label in self.rows)

    def measurements(self, dtype: Any) -> NDArray[Any]:
        return np.array([float(label) for _, label in self.rows], dtype=dtype)


def dev_rows(hold_out: HoldOut, rows: list[Row], fraction: float, **more: Any) -> list[bool]:
    found: list[bool] = hold_out.dev_rows(cast(RowTable, Table(rows, **more)), fraction).tolist()
    return found


def held_out(rows: list[Row], fraction: float, seed: int = 1, **more: Any) -> list[bool]:
    return dev_rows(HoldOut("stratified", seed), rows, fraction, **more)


def texts_of(rows: list[Row], label: str) -> set[str]:
    return {text for text, other in rows if other == label}


@st.composite
def classes(draw: st.DrawFn, *, distinct: bool = False) -> list[Row]:
    """Rows of up to five classes of very different sizes; texts repeat, and some have several labels."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    labels = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    if distinct:
        return [(f"text {number}", label) for number, label in enumerate(labels)]
    some = draw(st.integers(1, 80))
    names = draw(st.lists(st.integers(0, some), min_size=len(labels), max_size=len(labels)))
    return [(f"text {name}", label) for name, label in zip(names, labels, strict=True)]


@given(classes(), FRACTIONS, st.integers(0, 5))
def test_every_class_has_a_training_row_and_equal_texts_are_on_one_side(
    rows: list[Row], fraction: float, seed: int
) -> None:
    dev = held_out(rows, fraction, seed)
    assert {label for _, label in rows} == {label for (_, label), out in zip(rows, dev, strict=True) if not out}
    sides = Counter((text, out) for (text, _), out in zip(rows, dev, strict=True))
    assert len(sides) == len({text for text, _ in rows})


@given(classes(), FRACTIONS)
def test_a_class_with_two_texts_has_a_dev_row(rows: list[Row], fraction: float) -> None:
    dev = held_out(rows, fraction)
    training = {row for row, out in zip(rows, dev, strict=True) if not out}
    for label in {label for _, label in rows}:
        texts = texts_of(rows, label)
        if len(texts) < 2 or any(out for row, out in zip(rows, dev, strict=True) if row[1] == label):
            continue
        # each text of it is the only training text of some class: it also has that label
        for text in texts:
            others = {other for name, other in rows if name == text}
            assert any(len({name for name, known in training if known == other}) == 1 for other in others)


@given(classes(distinct=True), FRACTIONS)
def test_of_distinct_texts_each_class_gives_its_share_to_a_row(rows: list[Row], fraction: float) -> None:
    dev = held_out(rows, fraction)
    sizes, out = (
        Counter(label for _, label in rows),
        Counter(row[1] for row, is_out in zip(rows, dev, strict=True) if is_out),
    )
    bound = False
    for label, size in sizes.items():
        least, most = (1, size - 1) if size > 1 else (0, 0)
        assert least <= out[label] <= most
        bound |= not least <= np.floor(fraction * size) <= most or not least <= np.ceil(fraction * size) <= most
        assert abs(out[label] - fraction * size) < 1 or out[label] in (least, most)
    if not bound:
        assert sum(dev) == int(fraction * len(rows) + 0.5)


@given(classes(), FRACTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[Row], fraction: float, chance: Any) -> None:
    order = list(range(len(rows)))
    chance.shuffle(order)
    dev = held_out(rows, fraction)
    assert held_out([rows[place] for place in order], fraction) == [dev[place] for place in order]


def test_another_seed_holds_out_others() -> None:
    rows = [(f"text {number}", str(number % 3)) for number in range(300)]
    first, second = held_out(rows, 0.1, 1), held_out(rows, 0.1, 2)
    assert first == held_out(rows, 0.1, 1) != second
    assert sum(first) == sum(second) == 30


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_shares_are_right_where_some_texts_stand_often(fraction: float) -> None:
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(400)]
    rows += [("n/a", "a")] * 150 + [("text 8", "a")] * 7 + [("none", "b")] * 9
    dev = held_out(rows, fraction)
    for label in "ab":
        size = sum(other == label for _, other in rows)
        assert abs(sum(out for (_, other), out in zip(rows, dev, strict=True) if other == label) - fraction * size) <= 1


def test_votes_of_many_people_are_held_out_together() -> None:
    rows = [(f"text {number}", "abc"[(number * vote) % 3]) for number in range(100) for vote in range(5)]
    dev = held_out(rows, 0.2)
    assert abs(sum(dev) - 100) <= 5
    assert {label for (_, label), out in zip(rows, dev, strict=True) if out} == {"a", "b", "c"}


def test_a_class_whose_texts_all_have_another_label_more_often_has_rows_on_both_sides() -> None:
    rows = [(f"text {number}", "common") for number in range(50) for _ in range(2)]
    rows += [("text 3", "rare"), ("text 4", "rare")]
    for seed in range(20):
        sides = [out for (_, label), out in zip(rows, held_out(rows, 0.1, seed), strict=True) if label == "rare"]
        assert sorted(sides) == [False, True]


REGRESSION = RowSpec(("a",), "y", "regression", (0.0, 5.0))


@given(st.integers(1, 200), FRACTIONS)
def test_numbers_are_held_out_evenly_over_their_ranks(count: int, fraction: float) -> None:
    rows = [(f"text {number}", str(5 * (number / count) ** 3)) for number in range(count)]
    dev = held_out(rows, fraction, spec=REGRESSION)
    wanted = int(fraction * count + 0.5)
    assert sum(dev) == (min(max(wanted, 1), count - 1) if count > 1 else 0)
    gaps = [len(list(run)) for out, run in groupby(dev) if not out]
    assert max(gaps) <= 2 / min(fraction, 1 - fraction) + 4


def test_repeated_pairs_of_a_regression_are_on_one_side() -> None:
    rows = [(f"text {number % 40}", str(number % 6)) for number in range(120)]
    dev = held_out(rows, 0.2, spec=REGRESSION)
    assert sum(dev) == 24
    assert len({(text, out) for (text, _), out in zip(rows, dev, strict=True)}) == 40


@given(classes(), st.lists(st.sampled_from("xyz"), min_size=300, max_size=300), FRACTIONS)
@settings(max_examples=50)
def test_tasks_with_the_same_fraction_hold_out_the_same_texts(
    rows: list[Row], labels: list[str], fraction: float
) -> None:
    hold_out = HoldOut("stratified", 1)
    first = dict(zip([text for text, _ in rows], dev_rows(hold_out, rows, fraction), strict=True))
    texts = [*first, *(f"more {number}" for number in range(20))]
    later = list(zip(texts, labels[: len(texts)], strict=True))
    dev = dev_rows(hold_out, later, fraction)
    assert {label for _, label in later} == {label for (_, label), out in zip(later, dev, strict=True) if not out}
    moved = [text for text, out in zip(texts, dev, strict=True) if out != first.get(text, out)]
    for text in moved:  # only for the sake of a class that had no training row
        assert first[text]
        (label,) = (label for name, label in later if name == text)
        assert all(first.get(name, False) for name in texts_of(later, label))
    assert len(moved) <= len({label for _, label in later})


def test_a_later_task_counts_what_is_settled_towards_its_shares() -> None:
    rows = [(f"text {number}", str(number % 2)) for number in range(100)]
    hold_out = HoldOut("stratified", 1)
    first = dev_rows(hold_out, rows, 0.2)
    more = [*rows, *((f"more {number}", str(number % 2)) for number in range(100))]
    dev = dev_rows(hold_out, more, 0.2)
    assert dev[:100] == first
    assert [sum(out for (_, label), out in zip(more, dev, strict=True) if label == one) for one in "01"] == [20, 20]
    assert dev_rows(hold_out, rows, 0.2) == first
    assert dev_rows(hold_out, rows, 0.3) != first


def test_by_hash_a_text_has_its_side_whatever_its_label() -> None:
    rows = [(f"text {number}", str(number % 3)) for number in range(2000)]
    dev = dev_rows(HoldOut("hashed", 1), rows, 0.1)
    assert 150 < sum(dev) < 250
    assert dev_rows(HoldOut("hashed", 1), [(text, "0") for text, _ in rows[::7]], 0.1) == dev[::7]
    # the side that runs of earlier releases gave these texts
    assert [number for number, out in enumerate(dev) if out][:8] == [2, 4, 22, 24, 27, 39, 67, 70]


def test_of_no_rows_none_is_held_out() -> None:
    hold_out = HoldOut("stratified", 1)
    assert dev_rows(hold_out, [], 0.1) == dev_rows(hold_out, [], 0.1) == []
    assert dev_rows(hold_out, [("a", "x"), ("b", "x")], 0.1).count(True) == 1
    assert held_out([("a", "x")], 0.9) == [False]
