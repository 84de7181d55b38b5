"""All splits of tasks: held-out and sampled rows, labels as numbers, what is left out, and every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smoothtune.config.experiment import Experiment
from smoothtune.data.task_data import SAMPLED, UNKNOWN_LABEL, TaskData, make_examples, read_split, read_tasks
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.errors import DataError
from tests.tiny import write_tokenizer

SST = {"kind": "classification", "text": "sentence", "label": "sentiment", "train": "sst.tsv", "dev": "sst_dev.tsv"}
STS = {"kind": "regression", "text": ["a", "b"], "label": "score", "range": [0, 5], "train": "sts.tsv", "dev": 0.25}
Table = list[tuple[str, ...]]


def write(folder: Path, name: str, header: str, rows: Table) -> None:
    lines = ["\t".join(header.split()), *("\t".join(row) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")


def experiment(seed: int = 1, hold_out: str = "stratified", **tasks: dict[str, Any]) -> Experiment:
    return Experiment.model_validate({"seed": seed, "hold_out": hold_out, "tasks": tasks})


def read(folder: Path, seed: int = 1, hold_out: str = "stratified", **tasks: dict[str, Any]) -> dict[str, TaskData]:
    return read_tasks(experiment(seed, hold_out, **tasks), folder, folder / "cache")


def problems(folder: Path, hold_out: str = "stratified", **tasks: dict[str, Any]) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, hold_out=hold_out, **tasks)
    assert str(caught.value).startswith("The data cannot be used as the experiment says:\n  ")
    return [str(problem) for problem in caught.value.problems]


def texts(data: TaskData, split: str) -> list[tuple[str, ...]]:
    return data.splits[split].texts()


@pytest.fixture
def sst(tmp_path: Path) -> Path:
    write(tmp_path, "sst.tsv", "sentence sentiment", [("good", "4"), ("bad", "0"), ("dull", "1"), ("great", "4")])
    write(tmp_path, "sst_dev.tsv", "sentence sentiment", [("awful", "0"), ("very good", "4")])
    return tmp_path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """400 different texts, and 50 of them again."""
    rows = [(f"text {number}", str(number % 3)) for number in range(400)]
    write(tmp_path, "many.tsv", "sentence sentiment", rows + rows[:50])
    return tmp_path


def many_task(**more: Any) -> dict[str, Any]:
    return {"kind": "classification", "text": "sentence", "label": "sentiment", "train": "many.tsv", **more}


def test_splits_are_files_and_labels_are_fitted_on_training_rows(sst: Path) -> None:
    data = read(sst, sst={**SST, "test": "sst_dev.tsv"})["sst"]
    assert list(data.splits) == ["train", "dev", "test"]
    assert data.labels == ("0", "1", "4")
    assert [len(split) for split in data.splits.values()] == [4, 2, 2]
    assert texts(data, "dev") == [("awful",), ("very good",)]
    assert data.targets("train").tolist() == [2, 0, 1, 2]
    assert data.targets("dev").tolist() == [0, 2]
    assert data.targets("train").dtype == np.int64
    assert data.splits["train"].left_out == {}


def test_labels_may_be_given_in_an_order_of_their_own(sst: Path) -> None:
    data = read(sst, sst={**SST, "labels": ["4", "3", "1", "0"]})["sst"]
    assert data.labels == ("4", "3", "1", "0")
    assert data.targets("train").tolist() == [0, 3, 2, 0]


def test_a_dev_label_that_training_does_not_have_is_an_error(sst: Path) -> None:
    write(sst, "sst_dev.tsv", "sentence sentiment", [("awful", "0"), ("fine", "3"), ("fair", "2")])
    assert problems(sst, sst=SST) == [
        "sst_dev.tsv:3: column 'sentiment' is '3'; the labels are '0', '1', '4'",
        "sst_dev.tsv:4: column 'sentiment' is '2'; the labels are '0', '1', '4'",
    ]


def test_unknown_labels_of_all_splits_are_told_together(sst: Path) -> None:
    write(sst, "test.tsv", "sentence sentiment", [("so so", "2")])
    assert problems(sst, sst={**SST, "labels": ["0", "4"], "test": "test.tsv"}) == [
        "sst.tsv:4: column 'sentiment' is '1'; the labels are '0', '4'",
        "test.tsv:2: column 'sentiment' is '2'; the labels are '0', '4'",
    ]


def test_unknown_labels_can_be_left_out_and_are_counted(sst: Path) -> None:
    write(sst, "sst_dev.tsv", "sentence sentiment", [("awful", "0"), ("fine", "3"), ("fair", "2"), ("", "1")])
    data = read(sst, sst={**SST, "on_bad_row": "leave_out"})["sst"]
    assert data.splits["dev"].left_out == {"empty text": 1, UNKNOWN_LABEL: 2}
    assert texts(data, "dev") == [("awful",)]
    assert data.targets("dev").tolist() == [0]


def test_held_out_texts_are_the_fraction_of_each_class_and_always_the_same(many: Path) -> None:
    data = read(many, many=many_task(dev=0.25))["many"]
    train, dev = texts(data, "train"), texts(data, "dev")
    assert len(train) + len(dev) == 450
    assert len(dev) == 113
    assert np.bincount(data.targets("dev")).tolist() == [38, 38, 37]
    again = read(many, many=many_task(dev=0.25))["many"]
    assert (texts(again, "train"), texts(again, "dev")) == (train, dev)
    assert texts(read(many, seed=2, many=many_task(dev=0.25))["many"], "dev") != dev


def test_equal_texts_stay_on_one_side(many: Path) -> None:
    data = read(many, many=many_task(dev=0.25))["many"]
    train, dev = texts(data, "train"), texts(data, "dev")
    assert set(train).isdisjoint(dev)
    assert len(dev) > len(set(dev))
    assert len(train) > len(set(train))


def test_swapped_pairs_stay_on_one_side(tmp_path: Path) -> None:
    rows = [(f"one {number}", f"two  {number}", f"{1 + number % 3}.5") for number in range(100)]
    swapped = [(second.replace("  ", " "), first, score) for first, second, score in rows]
    write(tmp_path, "sts.tsv", "a b score", rows + swapped)
    data = read(tmp_path, sts=STS)["sts"]
    sides = [{" ".join(sorted(" ".join(pair).split())) for pair in texts(data, split)} for split in ("train", "dev")]
    assert sides[0].isdisjoint(sides[1])
    assert sum(map(len, sides)) == 100
    assert len(data.splits["dev"]) == 2 * len(sides[1]) > 0


def test_tasks_that_hold_out_the_same_fraction_of_a_file_hold_out_the_same_rows(many: Path) -> None:
    data = read(many, one=many_task(dev=0.2), two=many_task(dev=0.2), three=many_task(dev=0.4))
    assert texts(data["one"], "dev") == texts(data["two"], "dev")
    assert len(data["three"].splits["dev"]) == 180


def test_tasks_whose_rows_have_other_labels_hold_out_the_same_texts(tmp_path: Path) -> None:
    rows = [(f"text {number}", str(number % 3), "" if number % 4 else str(number % 8)) for number in range(200)]
    write(tmp_path, "all.tsv", "sentence sentiment funny", rows)
    one = {"kind": "classification", "text": "sentence", "label": "sentiment", "train": "all.tsv", "dev": 0.2}
    data = read(tmp_path, one=one, two={**one, "kind": "binary", "label": "funny"})
    assert set(texts(data["two"], "dev")) < set(texts(data["one"], "dev"))
    assert set(texts(data["two"], "train")) < set(texts(data["one"], "train"))
    assert set(data["two"].targets("dev").tolist()) == set(data["two"].targets("train").tolist()) == {0.0, 1.0}


def test_a_file_of_another_kind_and_order_gives_the_same_dev_texts(many: Path) -> None:
    lines = (many / "many.tsv").read_text().splitlines()
    rows = [dict(zip(["sentence", "sentiment"], line.split("\t"), strict=True)) for line in reversed(lines[1:])]
    (many / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = read(many, many=many_task(dev=0.1))["many"]
    second = read(many, many=many_task(dev=0.1, train="many.jsonl"))["many"]
    assert sorted(texts(first, "dev")) == sorted(texts(second, "dev"))


def test_runs_of_earlier_releases_hold_out_by_hash(many: Path) -> None:
    data = read(many, hold_out="hashed", one=many_task(dev=0.2), three=many_task(dev=0.4))
    assert set(texts(data["one"], "dev")) < set(texts(data["three"], "dev"))
    assert texts(data["one"], "dev")[:5] == [("text 1",), ("text 2",), ("text 3",), ("text 4",), ("text 6",)]
    assert texts(data["one"], "dev") != texts(read(many, one=many_task(dev=0.2))["one"], "dev")


def test_a_sample_is_seeded_and_what_it_leaves_is_counted(many: Path) -> None:
    data = read(many, many=many_task(dev=0.25, max_train_rows=60))["many"]
    rest = 450 - len(data.splits["dev"]) - 60
    assert len(data.splits["train"]) == 60
    assert data.splits["train"].left_out == {SAMPLED: rest}
    assert SAMPLED == "not in the sample (max_train_rows)"
    assert np.all(np.diff(data.splits["train"].chosen) > 0)
    assert set(texts(data, "train")).isdisjoint(texts(data, "dev"))
    again, other = (read(many, seed, many=many_task(dev=0.25, max_train_rows=60))["many"] for seed in (1, 2))
    assert texts(again, "train") == texts(data, "train") != texts(other, "train")
    assert read(many, many=many_task(max_train_rows=1000))["many"].splits["train"].left_out == {}


def test_tasks_may_share_a_file_with_a_label_column_each(tmp_path: Path) -> None:
    rows = [("good", "4", "yes"), ("bad", "0", ""), ("dull", "", "no"), ("great", "4", "no"), ("sad", "", "")]
    write(tmp_path, "all.tsv", "sentence sentiment funny", rows)
    one = {"kind": "classification", "text": "sentence", "label": "sentiment", "train": "all.tsv", "dev": "all.tsv"}
    data = read(tmp_path, one=one, two={**one, "kind": "binary", "label": "funny"})
    assert texts(data["one"], "train") == [("good",), ("bad",), ("great",)]
    assert texts(data["two"], "train") == [("good",), ("dull",), ("great",)]
    assert data["one"].splits["train"].left_out == data["two"].splits["train"].left_out == {"no label": 2}
    assert (data["one"].labels, data["two"].labels) == (("0", "4"), ("no", "yes"))


@pytest.mark.parametrize(("labels", "targets"), [(None, [1, 0, 1]), (["yes", "no"], [0, 1, 0])])
def test_the_second_label_of_a_binary_task_is_the_positive_one(
    tmp_path: Path, labels: list[str] | None, targets: list[int]
) -> None:
    write(tmp_path, "all.tsv", "sentence funny", [("good", "yes"), ("bad", "no"), ("dull", "yes")])
    task = {"kind": "binary", "text": "sentence", "label": "funny", "train": "all.tsv", "dev": "all.tsv"}
    data = read(tmp_path, funny={**task, "labels": labels})["funny"]
    assert data.targets("train").tolist() == targets
    assert data.targets("train").dtype == np.float32


def test_regression_targets_are_in_label_units(tmp_path: Path) -> None:
    write(tmp_path, "sts.tsv", "a b score", [("x", "y", "3.8"), ("u", "v", "0"), ("s", "t", "5.0")])
    data = read(tmp_path, sts={**STS, "dev": "sts.tsv"})["sts"]
    assert data.labels is None
    assert data.targets("train").dtype == np.float32
    assert data.targets("train").tolist() == pytest.approx([3.8, 0.0, 5.0], abs=1e-6)


def test_problems_of_all_tasks_and_files_are_raised_together(sst: Path) -> None:
    write(sst, "sts.tsv", "a b score", [("x", "y", "7"), ("u", "", "1"), ("s", "t", "2")])
    write(sst, "funny.tsv", "sentence funny", [("good", "yes")])
    funny = {"kind": "binary", "text": "sentence", "label": "funny", "train": "funny.tsv", "dev": "gone.tsv"}
    found = problems(sst, sst={**SST, "dev": "gone.tsv", "test": "sst.txt"}, sts=STS, funny=funny)
    hint = f"relative paths start at {sst}"
    assert found == [
        f"tasks.sst.dev: gone.tsv: no such file: {sst / 'gone.tsv'}; {hint}",
        f"tasks.sst.test: sst.txt: no such file: {sst / 'sst.txt'}; {hint}",
        "sts.tsv:2: column 'score' is '7', outside the range 0 to 5; mend it, or the range",
        "sts.tsv:3: column 'b' is empty; write a text or remove the row",
        f"tasks.funny.dev: gone.tsv: no such file: {sst / 'gone.tsv'}; {hint}",
        "funny.tsv: column 'funny' has only the label 'yes'; a binary task needs two or more",
    ]


def test_labels_are_checked_where_other_rows_are_wrong_too(sst: Path) -> None:
    write(sst, "sst.tsv", "sentence sentiment", [("good", "4"), ("", "0"), ("bad", "0"), ("dull", "1"), ("odd", "7")])
    write(sst, "sst_dev.tsv", "sentence sentiment", [("awful", "9"), (" ", "4")])
    given = {**SST, "labels": ["0", "1", "4"]}
    assert problems(sst, sst=given) == [
        "sst.tsv:3: column 'sentence' is empty; write a text or remove the row",
        "sst_dev.tsv:3: column 'sentence' is empty; write a text or remove the row",
        "sst.tsv:6: column 'sentiment' is '7'; the labels are '0', '1', '4'",
        "sst_dev.tsv:2: column 'sentiment' is '9'; the labels are '0', '1', '4'",
    ]
    assert problems(sst, sst=SST)[2:] == ["sst_dev.tsv:2: column 'sentiment' is '9'; the labels are '0', '1', '4', '7'"]


def test_with_given_labels_nothing_is_fitted(sst: Path) -> None:
    (sst / "sst.tsv").unlink()
    for known in (("4", "0"), ("0", "2", "4")):
        found = read_tasks(experiment(sst=SST), sst, sst / "cache", labels={"sst": known}, wanted=["dev"])["sst"]
        assert (list(found.splits), found.labels, found.trainable) == (["dev"], known, None)
        assert found.targets("dev").tolist() == [known.index("0"), known.index("4")]
    with pytest.raises(DataError, match=r"sst_dev\.tsv:3: column 'sentiment' is '4'; the labels are '0', '1'"):
        read_tasks(experiment(sst=SST), sst, sst / "cache", labels={"sst": ("0", "1")}, wanted=["dev"])


def test_only_wanted_splits_are_read(many: Path) -> None:
    tasks = {"held": many_task(dev=0.25), "own": many_task(dev="gone.tsv", test="gone.tsv")}
    loaded = experiment(**tasks)
    found = read_tasks(loaded, many, many / "cache", wanted=["train"])
    assert {name: list(data.splits) for name, data in found.items()} == {"held": ["train"], "own": ["train"]}
    held = read_tasks(
        experiment(held=tasks["held"]), many, many / "cache", labels={"held": ("0", "1", "2")}, wanted=["dev"]
    )
    assert list(held["held"].splits) == ["dev"]
    assert texts(held["held"], "dev") == texts(read(many, held=tasks["held"])["held"], "dev")
    fitted = read_tasks(experiment(own=many_task(dev="many.tsv")), many, many / "cache", wanted=["dev"])["own"]
    assert (list(fitted.splits), fitted.labels) == (["dev"], ("0", "1", "2"))


def test_a_label_of_one_row_stays_in_training(many: Path) -> None:
    with (many / "many.tsv").open("a") as file:
        file.write("text 1000\trare\n")
    for seed in range(5):
        data = read(many, seed, many=many_task(dev=0.5))["many"]
        assert data.labels == ("0", "1", "2", "rare")
        assert ("text 1000",) in texts(data, "train")


def test_labels_are_fitted_on_what_is_not_held_out(many: Path) -> None:
    dev = read(many, hold_out="hashed", many=many_task(dev=0.25))["many"].splits["dev"]
    first = int(dev.table.lines()[dev.chosen[0]])
    lines = (many / "many.tsv").read_text().splitlines()
    lines[first - 1] = lines[first - 1].rpartition("\t")[0] + "\trare"
    (many / "many.tsv").write_text("\n".join(lines) + "\n")
    assert problems(many, hold_out="hashed", many=many_task(dev=0.25)) == [
        f"many.tsv:{first}: column 'sentiment' is 'rare'; the labels are '0', '1', '2'; "
        "`dev` holds out all rows of this label: list all labels in `labels`, or name a dev file"
    ]
    left = read(many, hold_out="hashed", many=many_task(dev=0.25, on_bad_row="leave_out"))["many"]
    assert [split.left_out for split in left.splits.values()] == [{}, {UNKNOWN_LABEL: 1}]
    named = read(many, hold_out="hashed", many=many_task(dev=0.25, labels=["0", "1", "2", "rare"]))["many"]
    assert int(named.targets("dev")[0]) == 3


def test_a_sample_does_not_change_the_labels_or_what_it_is_drawn_from(many: Path) -> None:
    data = read(many, many=many_task(dev=0.25, max_train_rows=2))["many"]
    assert data.labels == ("0", "1", "2")
    assert data.trainable is not None
    assert len(data.trainable) + len(data.splits["dev"]) == 450
    assert set(data.splits["train"].chosen) < set(data.trainable.chosen)


def test_labels_that_cannot_be_fitted_are_told(sst: Path) -> None:
    assert problems(sst, sst={**SST, "kind": "binary"}) == [
        "sst.tsv: column 'sentiment' has 3 different labels in 4 rows ('0', '1', '4'); "
        "a binary task needs exactly two: is this a classification?"
    ]


def test_a_fraction_that_leaves_no_rows_is_an_error(sst: Path) -> None:
    write(sst, "few.tsv", "sentence sentiment", [("good", "4"), ("bad", "0"), ("good", "4")])
    assert problems(sst, sst={**SST, "train": "few.tsv", "dev": 0.5}) == [
        "tasks.sst.dev: has no rows left to use: `dev` holds out 0.5 of 3 rows; name a file, or another fraction"
    ]
    assert problems(sst, hold_out="hashed", sst={**SST, "dev": 1e-9}) == [
        "tasks.sst.dev: has no rows left to use: `dev` holds out 1e-09 of 4 rows; name a file, or another fraction"
    ]
    assert problems(sst, hold_out="hashed", sst={**SST, "dev": 1 - 1e-9}) == [
        "tasks.sst.train: has no rows left to use: `dev` holds out 0.999999999 of 4 rows; "
        "name a file, or another fraction"
    ]


def test_a_split_in_which_all_labels_are_unknown_is_an_error(sst: Path) -> None:
    write(sst, "sst_dev.tsv", "sentence sentiment", [("so so", "2"), ("fine", "3")])
    assert problems(sst, sst={**SST, "on_bad_row": "leave_out"}) == [
        "tasks.sst.dev: has no rows left to use: all 2 have labels that the task does not know; mend the file or `labels`"
    ]


def test_a_further_source_is_read_with_known_labels(sst: Path) -> None:
    task = experiment(sst=SST).tasks["sst"]
    split = read_split("sst more", task, "sst_dev.tsv", sst, sst / "cache", ("0", "4"))
    assert (len(split), split.left_out) == (2, {})
    with pytest.raises(DataError) as caught:
        read_split("sst more", task, "sst.tsv", sst, sst / "cache", ("0", "4"))
    assert str(caught.value) == (
        "The data cannot be used:\n  sst.tsv:4: column 'sentiment' is '1'; the labels are '0', '4'"
    )
    write(sst, "bad.tsv", "sentence sentiment", [("", "0")])
    with pytest.raises(DataError, match=r"bad\.tsv:2: column 'sentence' is empty"):
        read_split("sst more", task, "bad.tsv", sst, sst / "cache", ("0", "4"))


def test_examples_hold_tokens_labels_and_lines_of_the_chosen_rows(many: Path) -> None:
    write_tokenizer(many)
    tokenizer = load_tokenizer(many)
    data = read(many, many=many_task(dev=0.25, max_train_rows=20))["many"]
    split = data.splits["train"]
    examples = make_examples(data, split, tokenizer, reads="single", max_length=8, pad_id=0, cache=many / "cache")
    assert (len(examples), examples.limit, examples.task) == (20, 8, "many")
    batch = examples.batch(np.arange(20))
    assert batch.labels is not None
    assert batch.labels.tolist() == data.targets("train").tolist()
    for row, (text,) in enumerate(split.texts()):
        number = (int(batch.rows[row]) - 2) % 400
        assert text == f"text {number}"
        assert int(batch.labels[row]) == number % 3
        tokens = batch.tokens.input_ids[row][batch.tokens.mask[row]].tolist()
        assert tokens == tokenizer.encode(text).ids[:7] + tokens[-1:]


def test_a_regression_of_one_number_has_nothing_to_learn(tmp_path: Path) -> None:
    rows = [(f"text {number}", f"other {number}", "3.0") for number in range(8)]
    write(tmp_path, "sts.tsv", "a b score", rows)
    write(tmp_path, "dev.tsv", "a b score", [("x", "y", "1"), ("z", "w", "2")])
    said = "column 'score' has only the number 3 in all 8 training rows; a regression task needs two or more"
    assert problems(tmp_path, sts={**STS, "dev": "dev.tsv"}) == [f"sts.tsv: {said}"]
    write(tmp_path, "sts.tsv", "a b score", [*rows, ("new", "pair", "4")])
    assert len(read(tmp_path, sts={**STS, "dev": "dev.tsv"})["sts"].splits["train"]) == 9
