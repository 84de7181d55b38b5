"""What labels mean whatever file they stand in: class names, truth values, numbers, and labels that may be none or several."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from smoothtune.config.experiment import Experiment
from smoothtune.config.loading import load, to_toml, validated_run
from smoothtune.data.label_doubts import alike, label_doubts, no_labels, several_labels
from smoothtune.data.task_data import TaskData, read_tasks
from smoothtune.errors import DataError
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.train import resume, train
from tests.killing import KillAt, same_run, until_killed
from tests.small_data import table

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = [f"text {number}" for number in range(8)]
Saving = Callable[[Dataset, Path], str]


def classes(numbers: list[int | None], names: tuple[str, ...] = ("neg", "pos")) -> Dataset:
    features = Features(text=Value("string"), label=ClassLabel(names=list(names)))
    return Dataset.from_dict({"text": TEXTS[: len(numbers)], "label": numbers}, features=features)


def saved(found: Dataset, folder: Path) -> str:
    found.save_to_disk(str(folder / "saved"))
    return "saved"


def parquet(found: Dataset, folder: Path) -> str:
    found.to_parquet(str(folder / "a.parquet"))
    return "a.parquet"


def local(found: Dataset, folder: Path) -> str:
    (folder / "local").mkdir()
    found.to_parquet(str(folder / "local" / "train.parquet"))
    return "hf:./local:train"


SAVINGS = pytest.mark.parametrize("saving", [saved, parquet, local])


def read(folder: Path, train: str, kind: str = "classification", dev: str | float = 0.25, **more: Any) -> TaskData:
    task = {"kind": kind, "text": "text", "label": "label", "train": train, "dev": dev}
    wanted = Experiment.model_validate({"tasks": {"t": task}, **more})
    return read_tasks(wanted, folder, folder / "cache")["t"]


@SAVINGS
def test_class_labels_are_names_and_minus_one_is_none(tmp_path: Path, saving: Saving) -> None:
    found = read(tmp_path, saving(classes([1, 0, -1, 1, 0, None, 1, 0]), tmp_path))
    assert found.labels == ("neg", "pos")
    assert sum(len(part) for part in found.splits.values()) == 6
    assert found.splits["train"].left_out == {"no label": 2}
    assert found.splits["train"].table.labels().to_pylist() == ["pos", "neg", "pos", "neg", "pos", "neg"]


@SAVINGS
def test_class_labels_are_numbers_in_runs_from_before(tmp_path: Path, saving: Saving) -> None:
    found = read(tmp_path, saving(classes([1, 0, 0, 1, 0, 1, 1, 0]), tmp_path), class_labels="numbers")
    assert found.labels == ("0", "1")


@SAVINGS
def test_a_regression_reads_the_numbers(tmp_path: Path, saving: Saving) -> None:
    found = read(tmp_path, saving(classes([1, 0, 0, 1, 0, 1, 1, 0]), tmp_path), "regression")
    assert found.splits["train"].table.labels().to_pylist() == list("10010110")


def test_a_class_without_a_name_is_a_bad_row(tmp_path: Path) -> None:
    parquet(classes([1, 0, 0, 1]), tmp_path)
    found = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(found.set_column(1, found.schema.field(1), [pa.array([0, 1, 2, -2])]), tmp_path / "a.parquet")
    with pytest.raises(DataError) as error:
        read(tmp_path, "a.parquet")
    for row, number in ((3, 2), (4, -2)):
        what = f"column 'label' has the class {number}; its classes have the numbers 0 to 1"
        assert f"a.parquet row {row}: {what}" in str(error.value)


@pytest.mark.parametrize("written", [b"{", b"[1]", b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}'])
def test_features_that_cannot_be_read_leave_numbers(tmp_path: Path, written: bytes) -> None:
    parquet(classes([1, 0] * 4), tmp_path)
    found = pq.read_table(tmp_path / "a.parquet").replace_schema_metadata({b"huggingface": written})
    pq.write_table(found, tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet").labels == ("0", "1")


def test_a_run_from_before_keeps_its_class_numbers(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    Dataset.from_dict(
        {"text": [f"the {('cat', 'sun')[number % 2]} {number}" for number in range(24)], "label": [0, 1] * 12},
        features=Features(text=Value("string"), label=ClassLabel(names=["beast", "sky"])),
    ).save_to_disk(str(tmp_path / "saved"))
    wanted = {**table(tiny_encoder, stop={"max_epochs": 2}), "runtime": {"checkpoint_every": 1}}
    wanted["tasks"] = {"mood": {**wanted["tasks"]["mood"], "train": str(tmp_path / "saved"), "dev": 0.25}}
    del wanted["trunks"]["pair"]
    wanted["class_labels"] = "numbers"
    whole = train(wanted, data_dir=small_data, run_dir=tmp_path / "whole")
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(5)))
    for run in (tmp_path / "whole", tmp_path / "cut"):
        path = run / "experiment.toml"
        path.write_text(path.read_text().replace('class_labels = "numbers"\n', ""))
        assert not [file for file in run.rglob("*.json") if "class_labels" in file.read_text()]
    assert resume(tmp_path / "cut").experiment.class_labels == "numbers"
    assert same_run(tmp_path / "cut", tmp_path / "whole")
    assert whole.model().labels["mood"] == ("0", "1")
    assert evaluate_run(tmp_path / "whole").to_json() == whole.evaluation
    assert evaluate_run(tmp_path / "whole", data=[f"mood={tmp_path / 'saved'}"]).to_json()["tasks"]["mood"]
    del wanted["class_labels"]
    named = train(wanted, data_dir=small_data, run_dir=tmp_path / "named")
    assert named.model().labels["mood"] == ("beast", "sky")


def test_a_run_without_the_keys_is_older_than_they_are() -> None:
    experiment = load("demo").experiment
    assert (experiment.class_labels, experiment.encoder.special_tokens) == ("names", "text")
    written = tomllib.loads(to_toml(experiment))
    assert validated_run(written, "").class_labels == "names"
    del written["class_labels"], written["encoder"]["special_tokens"]
    older = validated_run(written, "")
    assert (older.class_labels, older.encoder.special_tokens) == ("numbers", "tokens")
    again = load(tomllib.loads(to_toml(older))).experiment
    assert (again.class_labels, again.encoder.special_tokens) == ("numbers", "tokens")


# spellings


def lines(folder: Path, name: str, labels: list[Any]) -> str:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": f"{name} {n}", "label": x}) + "\n" for n, x in enumerate(labels)))
    elif path.suffix == ".parquet":
        Dataset.from_dict({"text": [f"{name} {n}" for n in range(len(labels))], "label": labels}).to_parquet(str(path))
    else:
        path.write_text("text,label\n" + "".join(f"{name} {number},{label}\n" for number, label in enumerate(labels)))
    return name


SPELLINGS = [
    (["True", "False"], [True, False]),
    (["TRUE", "FALSE"], [True, False]),
    ([True, False], ["true", "False"]),
    (["true", "false"], [1, 0]),
    (["4.50", "3"], [4.5, 3.0]),
    (["01", "02"], [1, 2]),
    ([1, 2], ["01", "2.0"]),
    (["yes", "no"], ["yes", "no"]),
]


@pytest.mark.parametrize("files", [("a.csv", "b.jsonl"), ("a.csv", "b.parquet"), ("a.jsonl", "b.csv")])
@pytest.mark.parametrize(("there", "here"), SPELLINGS)
def test_labels_are_the_same_in_every_format(
    tmp_path: Path, there: list[Any], here: list[Any], files: tuple[str, str]
) -> None:
    if len({type(label) for label in here}) > 1:
        pytest.skip("no such column")
    train, dev = lines(tmp_path, files[0], there * 4), lines(tmp_path, files[1], here)
    found = read(tmp_path, train, dev=dev)
    assert found.labels is not None
    assert len(found.labels) == 2
    assert found.targets("dev").tolist() == found.targets("train")[:2].tolist()


def test_what_is_spelt_alike_within_a_task_stays_apart(tmp_path: Path) -> None:
    found = read(
        tmp_path, lines(tmp_path, "a.csv", ["01", "1", "2"] * 4), dev=lines(tmp_path, "b.csv", ["1", "01", "2"])
    )
    assert found.labels is not None
    assert [found.labels[number] for number in found.targets("dev")] == ["1", "01", "2"]


def test_a_label_that_says_what_two_do_is_unknown(tmp_path: Path) -> None:
    train = lines(tmp_path, "a.csv", ["01", "1", "2"] * 4)
    with pytest.raises(DataError, match=r"column 'label' is '001'; the labels are"):
        read(tmp_path, train, dev=lines(tmp_path, "c.csv", ["001", "2"]))


def test_labels_named_in_the_experiment_may_be_spelt_otherwise(tmp_path: Path) -> None:
    task = {"kind": "binary", "text": "text", "label": "label", "labels": [False, True], "dev": 0.25}
    task["train"] = lines(tmp_path, "a.csv", ["True", "FALSE"] * 4)
    wanted = Experiment.model_validate({"tasks": {"t": task}})
    found = read_tasks(wanted, tmp_path, tmp_path / "cache")["t"]
    assert sorted(found.targets("train").tolist()) == [0.0] * 3 + [1.0] * 3


# labels that are absent


def test_a_line_of_json_may_lack_its_label(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(TEXTS)]
    rows.insert(0, {"text": "first"})
    rows.insert(5, {"text": "middle", "other": 1})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path, "a.jsonl")
    assert found.labels == ("a", "b")
    assert found.splits["train"].left_out == {"no label": 2}


def test_labels_that_no_line_of_json_has_and_texts_that_one_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "lable": "x"}\n' * 8)
    with pytest.raises(DataError, match=r"a\.jsonl: has no column 'label'; .*; did you mean 'lable'\?"):
        read(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "x"}\n{"label": "y"}\n' * 8)
    with pytest.raises(DataError, match=r"b\.jsonl:2: has no column 'text'"):
        read(tmp_path, "b.jsonl")


def test_keys_of_json_that_nobody_reads_may_stand_twice(tmp_path: Path) -> None:
    rows = [f'{{"id": 1, "text": "{text}", "label": "{"ab"[n % 2]}", "id": 2}}\n' for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    assert read(tmp_path, "a.jsonl").labels == ("a", "b")
    (tmp_path / "b.jsonl").write_text("".join(rows).replace('"id": 2', '"label": "c"'))
    with pytest.raises(DataError, match="the key 'label' stands twice"):
        read(tmp_path, "b.jsonl")


# doubts


def test_labels_that_are_alike() -> None:
    assert alike(["Neg", "neg", "pos", "POS", "Pos", "other"]) == (("Neg", "neg"), ("pos", "POS", "Pos"))
    assert alike(["1", "01", "1.0", "2", "True", "true"]) == (("1", "01", "1.0", "True", "true"),)
    assert alike(["a  b", "a b", "ab"]) == (("a  b", "a b"),)
    assert alike(["class1", "class2", "x"]) == ()
    composed, decomposed, joined = "caf\u00e9", "cafe\u0301", "ne\u200bg"
    assert alike([composed, decomposed, "neg", joined]) == ((composed, decomposed), ("neg", joined))


@pytest.mark.parametrize("label", ["nan", "NaN", "None", "NA", "null", "N/A", "-", "NULL", "?", "#N/A"])
def test_labels_that_may_mean_none(label: str) -> None:
    assert no_labels(["pos", "neg", label]) == (label,)


def test_minus_one_may_mean_none_beside_other_classes() -> None:
    assert no_labels(["-1", "0", "1"]) == no_labels(["-1", "1", "2"]) == no_labels(["-1", "neg", "pos"]) == ("-1",)
    assert no_labels(["-1", "1"]) == no_labels(["-2", "-1", "0", "1", "2"]) == no_labels(["0", "1"]) == ()


def test_labels_that_may_be_several() -> None:
    assert several_labels(["rude", "spam", "rude|spam", '["rude", "spam"]']) == ("rude|spam", '["rude", "spam"]')
    assert several_labels(["rude", "spam", "rude, spam", "rude/x", "n/a"]) == ("rude, spam",)
    assert several_labels(["a-b", "a", "b", "|"]) == ()


def test_a_dominant_label_is_one_of_nine_rows_in_ten() -> None:
    assert label_doubts("train", 100, {"no": 90, "yes": 10}).dominant == "no"
    assert label_doubts("train", 100, {"no": 89, "yes": 11}).dominant is None
    assert label_doubts("dev", 100, {"no": 90, "yes": 10}).dominant is None


def test_many_labels_of_text_are_labels(tmp_path: Path) -> None:
    intents = lines(tmp_path, "a.csv", [f"intent {number}" for number in range(60)])
    assert len(read(tmp_path, intents, dev=intents).labels or ()) == 60
    codes = lines(tmp_path, "b.csv", [f"code {number}" for number in range(1_100)] * 3)
    assert len(read(tmp_path, codes, dev=codes).labels or ()) == 1_100
    for labels, question in (
        ([f"{number}.5" for number in range(60)], "is this a regression?"),
        ([f"text {number}" for number in range(1_100)], "is this the column of the labels?"),
    ):
        name = lines(tmp_path, "c.csv", labels)
        with pytest.raises(DataError) as error:
            read(tmp_path, name, dev=name)
        assert question in str(error.value)
