"""Repeats, conflicts and leaks: on small tables by hand, and the known figures of the real data."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoothtune.data import columns
from smoothtune.data import leaks as leaks_module
from smoothtune.data.checks import RowSpec
from smoothtune.data.findings import Leaks, Match, Matches
from smoothtune.data.leaks import TrainingKeys
from smoothtune.data.repeats import repeats
from smoothtune.data.rows import RowTable, prepare_rows
from smoothtune.data.source import resolve_source
from smoothtune.data.task_data import Split

SINGLE = RowSpec(("a",), "y", "classification")
PAIR = RowSpec(("a", "b"), "y", "regression", (0.0, 5.0))


def table(folder: Path, name: str, *rows: str, label: bool = True) -> Split:
    """Rows are written as "text|label" or "text|text|label"."""
    spec = PAIR if rows[0].count("|") == 2 else SINGLE
    if not label:
        spec = RowSpec(spec.texts, None, spec.kind)
    (folder / f"{name}.csv").write_text("\n".join([",".join((*spec.texts, "y")), *rows]).replace("|", ",") + "\n")
    return whole(prepare_rows(spec, resolve_source(f"{name}.csv", folder), cache=folder / "cache", name=name))


def whole(rows: RowTable) -> Split:
    return Split(rows, np.arange(len(rows), dtype=np.int32), {})


def duplicates(split: Split) -> Matches:
    return repeats(split).duplicates


def conflicts(split: Split) -> Matches:
    return repeats(split).conflicts


def leaks(split: Split, training: list[Split]) -> Leaks:
    return leaks_module.leaks(split, [TrainingKeys(part) for part in training])


def test_repeated_single_texts(tmp_path: Path) -> None:
    train = table(tmp_path, "train", "x|1", "y|0", "x |1", "X|1", " x|0", "y|0")
    found = duplicates(train)
    assert found.count == 3
    assert [(match.here, match.there) for match in found.examples] == [
        ("train.csv:4", "train.csv:2"),
        ("train.csv:6", "train.csv:2"),
        ("train.csv:7", "train.csv:3"),
    ]
    assert conflicts(train) == Matches(1, (Match("train.csv:6", "train.csv:2", (" x",), ("0", "1")),))


def test_pairs_repeat_in_either_order_and_conflict_by_number(tmp_path: Path) -> None:
    train = table(tmp_path, "train", "x|y|1", "y|x|1.0", "x|y|2", "x|x|3", "z|x|2.50", "z|x|2.5", "y|x|4")
    assert duplicates(train).count == 4
    assert conflicts(train) == Matches(1, (Match("train.csv:4", "train.csv:2", ("x", "y"), ("2", "1")),))


def test_nothing_repeats_in_an_empty_or_distinct_table(tmp_path: Path) -> None:
    assert duplicates(table(tmp_path, "distinct", "x|1", "y|0")) == Matches(0)
    empty = table(tmp_path, "empty", "x|")
    assert duplicates(empty) == conflicts(empty) == Matches(0)


def test_at_most_five_examples_are_kept(tmp_path: Path) -> None:
    found = duplicates(table(tmp_path, "train", *["x|1"] * 9))
    assert (found.count, len(found.examples)) == (8, 5)


def test_single_texts_leak_from_any_task(tmp_path: Path) -> None:
    trains = [
        table(tmp_path, "one", "x|1", "w|0"),
        table(tmp_path, "two", "y|1", "x|1"),
        table(tmp_path, "pairs", "p|q|1", "x|r|2"),
    ]
    found = leaks(table(tmp_path, "dev", "y|0", "x|1", "q|1", "new|0"), trains)
    assert found.rows == 4
    assert found.whole == Matches(
        2,
        (Match("dev.csv:2", "two.csv:2", ("y",), ("0", "1")), Match("dev.csv:3", "one.csv:2", ("x",), ("1", "1"))),
    )
    assert found.across == Matches(1, (Match("dev.csv:4", "pairs.csv:2", ("q",), ("1", "1")),))
    assert found.shared_one == found.shared_both == Matches(0)


def test_pairs_leak_whole_or_in_part(tmp_path: Path) -> None:
    trains = [
        table(tmp_path, "pairs", "p|q|1", "r|s|2"),
        table(tmp_path, "more", "t|u|2"),
        table(tmp_path, "single", "k|1"),
    ]
    dev = table(tmp_path, "dev", "q|p|1", "p|r|1", "p|u|1", "s|k|1", "k|new|1", "n|m|1", label=False)
    found = leaks(dev, trains)
    assert (found.rows, found.whole.count, found.shared_both.count, found.shared_one.count) == (6, 1, 2, 1)
    assert found.whole.examples == (Match("dev.csv:2", "pairs.csv:2", ("q", "p"), ("", "1")),)
    assert [match.here for match in found.shared_both.examples] == ["dev.csv:3", "dev.csv:4"]
    assert found.shared_one.examples == (Match("dev.csv:5", "pairs.csv:3", ("s", "k"), ("", "2")),)
    assert found.across == Matches(1, (Match("dev.csv:6", "single.csv:2", ("k", "new"), ("", "1")),))


def test_only_chosen_rows_are_looked_at(tmp_path: Path) -> None:
    rows = table(tmp_path, "rows", "x|1", "y|0", "x|0", "z|1", "x|1", "z|1")
    some, others = (replace(rows, chosen=np.array(chosen, dtype=np.int32)) for chosen in ([1, 2, 3, 5], [0, 4]))
    assert duplicates(some) == Matches(1, (Match("rows.csv:7", "rows.csv:5", ("z",), ("1", "1")),))
    assert conflicts(some) == conflicts(others) == Matches(0)
    assert duplicates(others).count == 1
    assert leaks(some, [others]).whole == Matches(1, (Match("rows.csv:4", "rows.csv:2", ("x",), ("0", "1")),))
    assert leaks(others, [replace(some, chosen=some.chosen[2:])]).whole == Matches(0)


def test_without_training_rows_nothing_leaks(tmp_path: Path) -> None:
    found = leaks(table(tmp_path, "dev", "x|y|1"), [])
    assert {found.whole, found.shared_one, found.shared_both, found.across} == {Matches(0)}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("01")), min_size=1, max_size=40),
    block=st.integers(1, 9),
    data=st.data(),
)
def test_findings_are_those_of_comparing_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], block: int, data: st.DataObject
) -> None:
    monkeypatch.setattr(columns, "BLOCK", block)
    made = table(tmp_path, "made", *("|".join(row) for row in rows))
    inside = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    dev, train = (replace(made, chosen=np.flatnonzero(mask).astype(np.int32)) for mask in (inside, ~inside))
    here, texts = dev.chosen.tolist(), [text for text, _ in rows]
    first = {row: next(other for other in here if texts[other] == texts[row]) for row in here}
    again = [(row, first[row]) for row in here if first[row] != row]
    differ = [(row, at) for row, at in again if rows[row][1] != rows[at][1]]
    by_group = {at: (row, at) for row, at in reversed(differ)}
    found = repeats(dev)
    assert found.duplicates.count == len(again)
    assert places(found.duplicates) == [(row + 2, at + 2) for row, at in again[:5]]
    assert found.conflicts.count == len(by_group)
    assert places(found.conflicts) == [(row + 2, at + 2) for row, at in sorted(by_group.values())[:5]]
    there = train.chosen.tolist()
    leaked = [(row, at) for row in here for at in [other for other in there if texts[other] == texts[row]][:1]]
    whole = leaks(dev, [train]).whole
    assert whole.count == len(leaked)
    assert places(whole) == [(row + 2, at + 2) for row, at in leaked[:5]]


def places(matches: Matches) -> list[tuple[int, int]]:
    """The lines of the examples."""
    return [(int(match.here.split(":")[1]), int(match.there.split(":")[1])) for match in matches.examples]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Split]:
    folder = os.environ.get("SMOOTHTUNE_DATA")
    if not folder:
        pytest.skip("SMOOTHTUNE_DATA does not name the folder of the public data sets")
    specs = {
        "sst": RowSpec(("sentence",), "sentiment", "classification"),
        "quora": RowSpec(("sentence1", "sentence2"), "is_duplicate", "binary"),
        "sts": RowSpec(("sentence1", "sentence2"), "similarity", "regression", (0.0, 5.0)),
    }
    cache = tmp_path_factory.mktemp("cache")
    return {
        (task, part): whole(
            prepare_rows(spec, resolve_source(f"{task}/{part}.tsv", Path(folder)), cache=cache, name=f"{task} {part}")
        )
        for task, spec in specs.items()
        for part in ("train", "dev")
    }


@pytest.mark.data
def test_the_real_data_is_read_without_a_problem(real: dict[tuple[str, str], Split]) -> None:
    assert [len(rows) for rows in real.values()] == [8544, 1101, 56290, 10000, 6040, 863]
    assert not any(rows.table.findings or rows.table.left_out for rows in real.values())


@pytest.mark.data
def test_the_known_repeats_of_the_real_data(real: dict[tuple[str, str], Split]) -> None:
    assert duplicates(real["sst", "train"]).count == 10
    assert duplicates(real["sts", "train"]).count == 43
    assert conflicts(real["sts", "train"]).count == 13


@pytest.mark.data
def test_the_known_leaks_of_the_real_data(real: dict[tuple[str, str], Split]) -> None:
    trains = [rows for (_, part), rows in real.items() if part == "train"]
    assert leaks(real["sst", "dev"], trains).whole.count == 2
    assert leaks(real["sts", "dev"], trains).whole.count == 16
    quora = leaks(real["quora", "dev"], [real["quora", "train"]])
    assert (quora.whole.count, quora.shared_one.count, quora.shared_both.count) == (0, 1994, 982)
