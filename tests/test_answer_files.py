"""Outputs of `predict`: never in place of an input, in the format that the suffix names, with empty rows in their places."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.errors import UsageError
from smoothtune.inference import model as inference
from smoothtune.inference.model import Model
from smoothtune.workflow import predict as workflow
from smoothtune.workflow.predict import predict_file
from smoothtune.workflow.train import train
from tests.small_data import table

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = ["the cat", "two moon", "dog", "rain"]


@pytest.fixture(scope="module")
def run(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        train(table(tiny_encoder, stop={"max_epochs": 1}), data_dir=small_data, run_dir=folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.tsv"
    path.write_text("text\n" + "\n".join(TEXTS) + "\n")
    return path


def same(source: Path) -> Path:
    return source


def soft(source: Path) -> Path:
    link = source.with_name("soft.tsv")
    link.symlink_to(source)
    return link


def hard(source: Path) -> Path:
    link = source.with_name("hard.tsv")
    os.link(source, link)
    return link


def roundabout(source: Path) -> Path:
    return source.parent / ".." / source.parent.name / source.name


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Any:
        raise AssertionError("the model was loaded before the outputs were checked")

    monkeypatch.setattr(workflow.Model, "load", load)


@pytest.mark.usefixtures("never_loads")
@pytest.mark.parametrize("named", [same, soft, hard, roundabout])
@pytest.mark.parametrize("option", ["--out", "--report"])
def test_an_output_that_is_the_input_is_refused(
    run: Path, source: Path, option: str, named: Callable[[Path], Path]
) -> None:
    out, before = named(source), source.read_bytes()
    key = {"--out": "out", "--report": "report"}[option]
    with pytest.raises(UsageError) as error:
        predict_file(run, ["mood"], str(source), **{"out": None, key: out})
    assert str(error.value) == (
        f"{option} {out}: is the input, or lies inside it: the answers would destroy it; give another file"
    )
    assert source.read_bytes() == before


@pytest.mark.usefixtures("never_loads")
def test_an_input_that_is_a_link_to_the_output_is_refused(run: Path, source: Path) -> None:
    with pytest.raises(UsageError, match="is the input"):
        predict_file(run, ["mood"], str(soft(source)), source)


@pytest.mark.usefixtures("never_loads")
@pytest.mark.parametrize(
    "name", ["model/config.toml", "model/answers.tsv", "experiment.toml", "stages/x.tsv", "run.json"]
)
def test_an_output_in_place_of_a_file_of_the_run_is_refused(run: Path, source: Path, name: str) -> None:
    (run / "stages").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match="is a file of the run"):
        predict_file(run, ["mood"], str(source), run / name, form="tsv" if name.endswith(".toml") else None)


@pytest.mark.usefixtures("never_loads")
def test_two_outputs_in_one_file_and_a_folder_are_refused(run: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    with pytest.raises(UsageError, match=rf"^--report {out}: is the file of --out too; give another file$"):
        predict_file(run, ["mood"], str(source), out, report=out)
    with pytest.raises(UsageError, match="is a folder; give another file"):
        predict_file(run, ["mood"], str(source), tmp_path, form="tsv")


@pytest.mark.usefixtures("never_loads")
@pytest.mark.usefixtures("never_loads")
@pytest.mark.parametrize("option", ["out", "report"])
def test_an_output_that_is_no_plain_file_is_refused(run: Path, source: Path, tmp_path: Path, option: str) -> None:
    pipe = tmp_path / "pipe.tsv"
    os.mkfifo(pipe)
    outputs = {"out": tmp_path / "answers.tsv", option: pipe}
    with pytest.raises(UsageError, match=f"--{option} .*pipe.tsv: is a device, a pipe or stdout"):
        predict_file(run, ("mood",), source=str(source), **outputs)
    assert pipe.is_fifo()


@pytest.mark.usefixtures("never_loads")
@pytest.mark.parametrize("split", ["train", "dev"])
def test_an_output_in_place_of_a_data_file_of_the_run_is_refused(
    run: Path, source: Path, small_data: Path, split: str
) -> None:
    file = small_data / f"mood.{split}.tsv"
    before = file.read_bytes()
    with pytest.raises(UsageError, match="is a data file of the run"):
        predict_file(run, ("mood",), source=str(source), out=file)
    assert file.read_bytes() == before


def test_a_link_stays_a_link_to_the_answers(run: Path, source: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.tsv", tmp_path / "link.tsv"
    target.write_text("old")
    link.symlink_to(target)
    predict_file(run, ("mood",), source=str(source), out=link)
    assert link.is_symlink()
    assert target.read_text().startswith("text\tprediction")


def test_an_output_inside_a_saved_data_set_is_refused(run: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UsageError, match="is the input, or lies inside it"):
        predict_file(run, ["mood"], str(tmp_path / "saved"), tmp_path / "saved" / "answers.tsv")


@pytest.mark.parametrize("split", ["", ":train"])
def test_a_run_inside_a_folder_of_data_is_refused(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, split: str
) -> None:
    from datasets import Dataset, DatasetDict

    found = Dataset.from_dict({"text": ["a cat", "the sun"] * 8, "label": ["a", "b"] * 8})
    (DatasetDict({"train": found}) if split else found).save_to_disk(str(tmp_path / "saved"))
    wanted = table(tiny_encoder)
    wanted["tasks"]["mood"] |= {"train": f"{tmp_path}/saved{split}", "dev": 0.2}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UsageError, match=r"lies inside the data of tasks\.mood\.train, .*/saved, which a run would change"
    ):
        train(wanted, data_dir=small_data, run_dir=tmp_path / "saved" / "run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--out", "in.tsv"], ["--report", "in.tsv"]])
def test_stdin_and_stdout_count_as_files(run: Path, source: Path, arguments: list[str]) -> None:
    before = source.read_bytes()
    code = "from smoothtune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "predict", str(run), "--task", "mood"]
    with source.open("rb") as stdin:
        done = subprocess.run(
            [*command, *arguments], stdin=stdin, capture_output=True, text=True, check=False, cwd=source.parent
        )
    assert done.returncode == 2
    assert "is the input" in done.stderr
    assert source.read_bytes() == before
    with source.open("ab") as stdout:
        done = subprocess.run([*command, str(source)], stdout=stdout, stderr=-1, text=True, check=False)
    assert done.returncode == 2
    assert f"stdout: goes into the input {source}" in done.stderr
    assert source.read_bytes() == before


def test_answers_may_lie_beside_the_input_and_in_the_run_folder(run: Path, source: Path) -> None:
    for out in (source.with_name("answers.tsv"), run / "answers.tsv"):
        for _ in range(2):
            assert predict_file(run, ["mood"], str(source), out).rows == 4


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_the_suffix_decides_on_the_format(run: Path, tmp_path: Path, suffix: str) -> None:
    odd = ['a "good",\tcat', "two\nlines", "dog"]
    source, out = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in odd))
    predict_file(run, ["mood"], str(source), out, with_probabilities=True)
    found = rows_of(out)
    assert [row["text"] for row in found] == odd
    model = Model.load(run, device="cpu")
    assert [row["prediction"] for row in found] == model.predict("mood", odd)
    assert sum(float(found[0][name]) for name in found[0] if name.startswith("p_")) == pytest.approx(1, abs=1e-5)
    again = tmp_path / f"again{suffix}"
    assert predict_file(run, ["mood"], str(out), again).rows == 3
    assert [row["prediction"] for row in rows_of(again)] == [row["prediction"] for row in found]


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        (
            "out",
            None,
            "--out {out}: the suffix names no format; end it in one of .tsv, .csv, .jsonl, .parquet, or give",
        ),
        ("out.xlsx", None, "the suffix names no format"),
        ("out.csv", "tsv", "--format tsv: --out {out} ends in .csv, which is csv; let them agree"),
        (None, "parquet", "--format parquet: is not for stdout; name a file with --out FILE.parquet"),
    ],
)
@pytest.mark.usefixtures("never_loads")
def test_a_suffix_that_names_no_format_or_another_is_refused(
    run: Path, source: Path, name: str | None, form: str | None, said: str
) -> None:
    out = None if name is None else source.with_name(name)
    with pytest.raises(UsageError) as error:
        predict_file(run, ["mood"], str(source), out, form=form)
    assert said.format(out=out) in str(error.value)


@pytest.mark.parametrize("window", [1, 2, 3, 4096])
@pytest.mark.parametrize("empty", [(1,), (0, 1, 4), (3, 5), tuple(range(6)), (5,), ()])
def test_rows_without_a_text_keep_their_place_and_are_counted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, empty: tuple[int, ...]
) -> None:
    monkeypatch.setattr(inference, "WINDOW", window)
    texts = ["" if at in empty else text for at, text in enumerate([*TEXTS, "cat", "sun"])]
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("id,text\n" + "".join(f"{at},{text}\n" for at, text in enumerate(texts)))
    done = predict_file(run, ["mood"], str(source), out, with_probabilities=True)
    assert (done.rows, done.empty) == (6, len(empty))
    found = rows_of(out)
    assert [row["text"] for row in found] == texts
    model = Model.load(run, device="cpu")
    assert [row["prediction"] for row in found] == [
        None if not text else model.predict("mood", [text])[0] for text in texts
    ]
    assert all((row["p_sky"] is None) == (not row["text"]) for row in found)
    assert json.loads(Path(f"{out}.report.json").read_text())["empty"] == len(empty)


def test_the_program_says_how_many_rows_have_no_answer(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.tsv"
    source.write_text("first\tsecond\na cat\t\ndog\tdog\n")
    result = CliRunner().invoke(app, ["predict", str(run), "--task", "near", str(source)], catch_exceptions=False)
    first, second = list(csv.DictReader(result.stdout.splitlines(), delimiter="\t"))
    assert (first["prediction"], second["prediction"] != "") == ("", True)
    assert "2 rows predicted\nwarning: 1 row has an empty text and no answer\n" in result.stderr
