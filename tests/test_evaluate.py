"""Evaluation of a run whose files have changed, gone, or are others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.errors import DataError, UsageError
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.run import Run
from smoothtune.workflow.train import train
from tests.small_data import ROWS, TASKS, table, write_data

UNREAD = "note: {}: its training data cannot be read any more, so rows that stand in them are not counted"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def run(tiny_encoder: Path, data: Path, tmp_path: Path) -> Run:
    return train(table(tiny_encoder, stop={"max_epochs": 1}), data_dir=data, run_dir=tmp_path / "run")


def test_labels_are_those_of_the_model_whatever_the_files_say_now(run: Run, data: Path) -> None:
    with (data / "mood.train.tsv").open("a") as file:
        file.write("the ant\tants\n")  # before `beast`: fitted again, every label would move
    found = evaluate_run(run.folder)
    assert found.to_json() == run.evaluation
    assert found.notes == (UNREAD.format("mood"),)
    with pytest.raises(DataError, match="'ants'; the labels are 'beast', 'place', 'sky'"):
        evaluate_run(run.folder, split="train")


def test_the_training_file_is_not_needed_for_another(run: Run, data: Path) -> None:
    for name in TASKS:
        (data / f"{name}.train.tsv").unlink()
    found = evaluate_run(run.folder)
    assert found.to_json() == run.evaluation
    assert found.notes == tuple(map(UNREAD.format, TASKS))
    (data / "mood.dev.tsv").rename(data / "other.tsv")
    found = evaluate_run(run.folder, data=[f"mood={data / 'other.tsv'}"])
    assert run.evaluation is not None
    assert found.to_json()["tasks"]["mood"] == run.evaluation["tasks"]["mood"]
    with pytest.raises(DataError, match=r"mood\.train\.tsv: no such file"):
        evaluate_run(run.folder, with_words_alone=True)


def test_rows_held_out_of_the_training_file_are_those_of_training(
    tiny_encoder: Path, data: Path, tmp_path: Path
) -> None:
    wanted = table(tiny_encoder, stop={"max_epochs": 1})
    for task in wanted["tasks"].values():
        task["dev"] = 0.3
    run = train(wanted, data_dir=data, run_dir=tmp_path / "run")
    assert run.evaluation is not None
    assert run.evaluation["tasks"]["mood"]["accuracy"]["n"] < ROWS["train"] / 2
    found = evaluate_run(run.folder)
    assert (found.to_json(), found.notes) == (run.evaluation, ())


def test_files_that_have_changed_since_training_are_named(run: Run, data: Path) -> None:
    for split in ("train", "dev"):
        with (data / f"near.{split}.tsv").open("a") as file:
            file.write("one two\tthe sun\t2\n")
    dev, training = (
        f"warning: near.{split}: {data / f'near.{split}.tsv'} has changed since this model was trained"
        for split in ("dev", "train")
    )
    row = f"{data / 'near.dev.tsv'}:{ROWS['dev'] + 2} at {data / 'near.train.tsv'}:{ROWS['train'] + 2}"
    trained = (
        f"warning: near: 1 of {ROWS['dev'] + 1} rows was used to train this run: the score is too high, e.g. {row}"
    )
    assert evaluate_run(run.folder).notes == (dev, trained)
    assert set(evaluate_run(run.folder, with_words_alone=True).notes) == {dev, training, trained}
    result = CliRunner().invoke(app, ["evaluate", str(run.folder), "--json"], catch_exceptions=False)
    assert result.stderr == f"{dev}\n{trained}\n"
    assert json.loads(result.stdout)["tasks"]["near"]["pearson"]["n"] == ROWS["dev"] + 1


def test_only_the_tasks_of_data_are_evaluated_and_a_split_does_not_go_with_them(run: Run, data: Path) -> None:
    given = f"same={data / 'same.dev.tsv'}"
    result = CliRunner().invoke(app, ["evaluate", str(run.folder), "--data", given], catch_exceptions=False)
    heading = next(line for line in result.stdout.splitlines() if line.strip())
    assert heading.split()[:3] == ["task", "metric", "data"]
    assert "mood" not in result.stdout
    with pytest.raises(UsageError) as error:
        evaluate_run(run.folder, data=[given], split="dev")
    assert str(error.value) == "--split dev: does not go with --data, which names the files itself; leave one out"


def test_a_metric_without_a_value_says_why(run: Run, data: Path) -> None:
    one = data / "one.tsv"
    one.write_text("first\tsecond\tlabel\n" + "the cat\ta dog\t3\n" * 2)
    found = evaluate_run(run.folder, data=[f"near={one}"], with_words_alone=True)
    assert len(found.notes) == 2
    assert found.notes[0].startswith("note: near.pearson is nan: all 2 ")
    assert found.notes[1].startswith("note: near.spearman is nan: all 2 ")
    assert found.to_json()["difference"]["mean"] == {"value": None, "low": None, "high": None}


def test_rows_that_were_trained_on_are_counted_in_files_and_splits(run: Run, data: Path) -> None:
    train_file, new = data / "mood.train.tsv", data / "new.tsv"
    header, first, second, *_ = train_file.read_text().splitlines()
    new.write_text("\n".join([header, "the cat and one more dog\tbeast", second, f"  {first}"]) + "\n")
    (note,) = evaluate_run(run.folder, data=[f"mood={new}"]).notes
    assert note == (
        f"warning: mood: 2 of 3 rows were used to train this run: the score is too high, e.g. {new}:3 at {train_file}:3"
    )
    assert evaluate_run(run.folder, split="train").notes == ()
    result = CliRunner().invoke(app, ["evaluate", str(run.folder), "--data", f"mood={new}"], catch_exceptions=False)
    assert note in result.stderr


def test_the_largest_class_is_that_of_training_whatever_is_evaluated(run: Run, data: Path) -> None:
    new = data / "new.tsv"
    new.write_text("text\tlabel\nthe very small moon\tsky\none more star\tsky\nthat slow dog\tbeast\n")
    found = evaluate_run(run.folder, data=[f"mood={new}"]).to_json()
    baseline = found["baselines"]["largest class"]
    assert baseline["labels"] == {"mood": "beast"}  # 14 of the 40 training rows
    assert baseline["tasks"]["mood"]["accuracy"]["value"] == pytest.approx(1 / 3)
    provenance = run.folder / "model" / "provenance.json"
    known = json.loads(provenance.read_text())
    for largest in ({"mood": "ants"}, ["mood"], None):
        provenance.write_text(json.dumps({**known, "largest_class": largest}))
        assert evaluate_run(run.folder, data=[f"mood={new}"]).to_json()["baselines"] == {}


def test_train_and_evaluate_end_with_the_same_tables(tiny_encoder: Path, data: Path, tmp_path: Path) -> None:
    experiment = data / "small.toml"
    experiment.write_text(tomli_w.dumps(table(tiny_encoder, stop={"max_epochs": 1})))
    folder = str(tmp_path / "cli")
    trained, evaluated = (
        CliRunner().invoke(app, arguments, catch_exceptions=False)
        for arguments in (["train", str(experiment), "--run-dir", folder, "--per-class"], ["evaluate", folder])
    )
    assert trained.exit_code == evaluated.exit_code == 0
    assert trained.stdout.startswith(evaluated.stdout)
    for text in ("largest class", "mood: each class", "same: rows by label"):
        assert text in evaluated.stdout
