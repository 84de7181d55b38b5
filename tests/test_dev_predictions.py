"""The files of dev predictions in a run folder, and the columns that name rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smoothtune.data.id_columns import id_columns, id_values
from smoothtune.data.source import resolve_source
from smoothtune.workflow.dev_predictions import remove_dev_predictions
from smoothtune.workflow.run import Run
from smoothtune.workflow.train import train
from tests.small_data import ROWS, only, table, write_data

pytestmark = pytest.mark.usefixtures("own_cache")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run_of(tiny_encoder: Path, folder: Path, data: Path, *tasks: str) -> Run:
    wanted = only(table(tiny_encoder, stop={"max_epochs": 1}), *tasks)
    return train(wanted, data_dir=data, run_dir=folder)


def test_one_task_has_one_file_whose_rows_are_those_of_dev(tiny_encoder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    run = run_of(tiny_encoder, tmp_path / "run", data, "mood")
    rows = read(run.folder / "dev_predictions.tsv")
    assert list(rows[0]) == ["task", "file", "line", "text", "label", "prediction", "p_beast", "p_place", "p_sky"]
    lines = (data / "mood.dev.tsv").read_text().splitlines()
    for row in rows:
        assert (row["task"], row["file"]) == ("mood", str(data / "mood.dev.tsv"))
        assert lines[int(row["line"]) - 1] == f"{row['text']}\t{row['label']}"
        shares = {label: float(row[f"p_{label}"]) for label in ("beast", "place", "sky")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(shares, key=lambda label: shares[label])
    assert run.evaluation is not None
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert right == pytest.approx(run.evaluation["tasks"]["mood"]["accuracy"]["value"])


def test_several_tasks_have_a_file_each(tiny_encoder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    run = run_of(tiny_encoder, tmp_path / "run", data, "same", "near")
    assert not (run.folder / "dev_predictions.tsv").exists()
    same, near = (read(run.folder / f"dev_predictions_{name}.tsv") for name in ("same", "near"))
    assert list(same[0])[3:] == ["first", "second", "label", "prediction", "p_0", "p_1"]
    assert list(near[0])[3:] == ["first", "second", "label", "prediction"]
    assert len(same) == len(near) == ROWS["dev"]
    for row in same:
        assert row["prediction"] == str(int(float(row["p_1"]) > 0.5))
    model = run.model()
    answers = model.predict("near", [(row["first"], row["second"]) for row in near])
    np.testing.assert_allclose([float(row["prediction"]) for row in near], answers, rtol=1e-4, atol=1e-4)
    remove_dev_predictions(run.folder)
    assert list(run.folder.glob("dev_predictions*")) == []


def test_texts_with_tabs_line_ends_and_quotes_and_ids_survive_a_csv_reader(tiny_encoder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    hard = ['a "cat"', "a\tdog", "the\nhouse", "the\r\nsun", "one\rtree", "'", "a cat "]
    with (data / "mood.dev.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["review_id", "text", "line", "IDX", "label"])
        writer.writerows([f"r{number}", text, "x", number, "sky"] for number, text in enumerate(hard))
    run = run_of(tiny_encoder, tmp_path / "run", data, "mood")
    rows = read(run.folder / "dev_predictions.tsv")
    assert [row["text"] for row in rows] == hard
    assert [row["review_id"] for row in rows] == [f"r{number}" for number in range(len(hard))]
    assert [row["IDX"] for row in rows] == list(map(str, range(len(hard))))
    assert list(rows[0])[:6] == ["task", "file", "line", "review_id", "IDX", "text"]


def test_rows_held_out_of_the_training_file_are_named_by_it(tiny_encoder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    wanted = only(table(tiny_encoder, stop={"max_epochs": 1}), "mood")
    wanted["tasks"]["mood"]["dev"] = 0.3
    run = train(wanted, data_dir=data, run_dir=tmp_path / "run")
    rows = read(run.folder / "dev_predictions.tsv")
    assert {row["file"] for row in rows} == {str(data / "mood.train.tsv")}
    lines = (data / "mood.train.tsv").read_text().splitlines()
    assert all(lines[int(row["line"]) - 1].startswith(row["text"]) for row in rows)


def test_the_columns_that_name_rows_are_known_by_their_names(tmp_path: Path) -> None:
    names = ["id", "text", "paid", "user_id", "idx", "Row_ID", "label"]
    row = ["1", "a", "b", "u", "5", "7", "c"]
    (tmp_path / "a.csv").write_text(f"{','.join(names)}\n{','.join(row)}\n")
    (tmp_path / "a.tsv").write_text("\t".join(names) + "\n" + "\t".join(row) + "\n")
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(dict(zip(names, row, strict=True))) + "\n")
    pq.write_table(pa.table({name: [cell] for name, cell in zip(names, row, strict=True)}), tmp_path / "a.parquet")
    for suffix, line in (("csv", 2), ("tsv", 2), ("jsonl", 2), ("parquet", 1)):
        source = resolve_source(f"a.{suffix}", tmp_path)
        assert id_columns(source) == ("id", "user_id", "idx", "Row_ID")
        assert id_values(source, ("id", "idx"), [line]) == {line: ("1", "5")}
    (tmp_path / "a.jsonl").write_text("not JSON\n")
    assert id_columns(source=resolve_source("a.jsonl", tmp_path)) == ()
    (tmp_path / "a.csv").unlink()
    assert id_columns(source=source.__class__("csv", "a.csv", tmp_path / "a.csv")) == ()
