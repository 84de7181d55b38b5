"""What counts of labels alone make doubtful: rare and absent classes, and labels that look mistyped."""

from __future__ import annotations

import pytest

from smoothtune.data.label_doubts import label_doubts, lookalikes


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("nomral", "normal"),  # neighbours that changed places
        ("norml", "normal"),
        ("normaal", "normal"),
        ("narmal", "normal"),
        ("xnormal", "normal"),
        ("normalx", "normal"),
        ("Low", "low"),
        ("A", "a"),
        ("MIXED case", "mixed case"),
        ("straße", "strasse"),
    ],
)
def test_labels_of_one_row_that_look_mistyped(label: str, other: str) -> None:
    expected = {label: other} if abs(len(label) - len(other)) <= 1 else {}
    assert lookalikes({other: 9, label: 1}) == lookalikes({label: 1, other: 9}) == expected
    assert lookalikes({other: 9, label: 2}) == {}


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("normal", "formed"),
        ("lo", "low"),
        ("cat", "car"),  # too short to tell
        ("class1", "class2"),
        ("class10", "class1"),
        ("2020", "2021"),
        ("step a1", "step a 1"),
        ("nomrla", "normal"),
        ("lamron", "normal"),
        ("nrmala", "normal"),
    ],
)
def test_other_labels_do_not(label: str, other: str) -> None:
    assert lookalikes({label: 1, other: 9}) == {}


def test_of_two_labels_of_one_row_only_the_later_is_doubted() -> None:
    assert lookalikes({"Low": 1, "low": 1}) == {"low": "Low"}
    assert lookalikes({"letter": 1, "better": 3, "setter": 8}) == {"letter": "setter"}


def test_doubts_depend_on_the_split() -> None:
    balance = {"a": 4, "b": 0, "c": 5, "d": 1}
    training, dev, test = (label_doubts(split, 10, balance) for split in ("train", "dev", "test"))
    assert (training.absent, training.rare, training.few_rows) == (("b",), {"a": 4, "d": 1}, False)
    assert (dev.absent, dev.rare, dev.few_rows, dev.constant) == (("b",), {}, True, False)
    assert (test.rare, test.few_rows) == ({}, False)
    assert not label_doubts("dev", 50, {"a": 25, "b": 25}).few_rows
    assert label_doubts("dev", 50, {"a": 50, "b": 0}).constant
    assert not label_doubts("dev", 50, {}).constant
