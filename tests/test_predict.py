"""Prediction for files and from Python."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import smoothtune
from smoothtune.cli.main import app
from smoothtune.errors import DataError, ModelFileError, UsageError
from smoothtune.files import WriteError
from smoothtune.inference import model as inference
from smoothtune.inference.answering import decide, probabilities
from smoothtune.inference.model import Model
from smoothtune.inference.precision import Groups, Precision
from smoothtune.workflow import predict as workflow
from smoothtune.workflow.predict import predict_file
from smoothtune.workflow.train import train
from tests.small_data import table

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = [
    "the cat",
    "a very very very small big slow fast house",
    "two moon",
    "dog",
    "this tree",
    "that star the",
    "rain",
]
PAIRS = [("the cat", "a dog"), ("one two", "one two"), ("very big house", "sun"), ("slow", "slow fast")]


@pytest.fixture(scope="module")
def run(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = table(tiny_encoder, stop={"max_epochs": 4})
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        train(wanted, data_dir=small_data, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return Model.load(run, device="cpu")


def written(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        writer.writerows([header, *rows])
    return path


def texts_file(folder: Path) -> Path:
    return written(folder / "texts.tsv", ["text"], [[text] for text in TEXTS])


def predicted(
    run: Path, task: str, source: Path, out: Path, *, form: str = "tsv", shares: bool = False
) -> list[dict[str, Any]]:
    count = predict_file(run, task.split(","), str(source), out, form=form, with_probabilities=shares).rows
    text = out.read_text(encoding="utf-8")
    if form == "jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert len(rows) == count
    return rows


def test_rows_come_back_in_order_with_the_answers_of_the_model(run: Path, model: Model, tmp_path: Path) -> None:
    rows = predicted(run, "mood", texts_file(tmp_path), tmp_path / "out.tsv")
    assert [row["text"] for row in rows] == TEXTS
    assert [row["prediction"] for row in rows] == model.predict("mood", TEXTS)
    assert list(rows[0]) == ["text", "prediction"]
    assert len(set(model.predict("mood", TEXTS))) > 1


def test_columns_are_found_by_name_and_others_left_out(run: Path, model: Model, tmp_path: Path) -> None:
    rows = [[b, "x", a, "1"] for a, b in PAIRS]
    source = written(tmp_path / "pairs.csv", ["second", "more", "first", "label"], rows)
    found = predicted(run, "same", source, tmp_path / "out.tsv")
    assert [(row["first"], row["second"]) for row in found] == PAIRS
    assert [row["prediction"] for row in found] == model.predict("same", PAIRS)
    assert list(found[0]) == ["first", "second", "prediction"]


def test_json_lines_in_and_out(run: Path, model: Model, tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps({"id": 1, "second": b, "first": a}) + "\n" for a, b in PAIRS))
    found = predicted(run, "near", source, tmp_path / "out.jsonl", form="jsonl")
    assert [row["prediction"] for row in found] == pytest.approx(model.predict("near", PAIRS))
    assert list(found[0]) == ["first", "second", "prediction"]


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
@pytest.mark.parametrize(("task", "labels"), [("mood", ["beast", "place", "sky"]), ("same", ["0", "1"])])
def test_probabilities_sum_to_one_and_their_largest_is_the_prediction(
    run: Path, tmp_path: Path, task: str, labels: list[str], form: str
) -> None:
    rows = [[a, b, f"{a} {b}"] for a, b in PAIRS]
    source = written(tmp_path / "rows.tsv", ["first", "second", "text"], rows)
    for row in predicted(run, task, source, tmp_path / f"out.{form}", form=form, shares=True):
        shares = [float(row[f"p_{label}"]) for label in labels]
        assert list(row)[-len(labels) :] == [f"p_{label}" for label in labels]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == labels[int(np.argmax(shares))]


def test_texts_with_tabs_quotes_and_line_ends_come_back_whole(run: Path, tmp_path: Path) -> None:
    odd = ['a "good"\tcat', "two\nlines", "ümläut 😀"]
    source = written(tmp_path / "odd.tsv", ["text"], [[text] for text in odd])
    assert [row["text"] for row in predicted(run, "mood", source, tmp_path / "out.tsv")] == odd
    found = predicted(run, "mood", source, tmp_path / "out.jsonl", form="jsonl")
    assert [row["text"] for row in found] == odd


def test_windows_keep_the_order(run: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.predict_probabilities("mood", TEXTS)
    monkeypatch.setattr(inference, "WINDOW", 3)
    rows = predicted(run, "mood", texts_file(tmp_path), tmp_path / "out.tsv", shares=True)
    assert [row["text"] for row in rows] == TEXTS
    np.testing.assert_allclose([float(row["p_sky"]) for row in rows], whole[:, 2], atol=2e-6)
    np.testing.assert_allclose(model.predict_probabilities("mood", iter(TEXTS)), whole, atol=1e-6)
    assert [len(part["mood"].values) for part in model.predict_windows(["mood"], TEXTS)] == [3, 3, 1]


def test_stdin_and_stdout(run: Path, model: Model) -> None:
    done = piped(run, "text\n" + "\n".join(TEXTS) + "\n")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    assert [row["prediction"] for row in rows] == model.predict("mood", TEXTS)
    assert done.stderr == "precision float32 (as in training)\n7 rows predicted\n"


def test_every_window_goes_out_when_it_is_answered(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[int] = []

    class Listener(io.StringIO):
        def flush(self) -> None:
            lines.append(self.getvalue().count("\n"))

    monkeypatch.setattr(inference, "WINDOW", 3)
    monkeypatch.setattr(sys, "stdout", Listener())
    predict_file(run, ["mood"], str(texts_file(tmp_path)), None, form="tsv", with_probabilities=False)
    assert lines == [4, 7, 8]


def test_a_bad_row_costs_no_window_before_it(
    run: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "WINDOW", 2)
    source = written(tmp_path / "texts.tsv", ["text"], [*([text] for text in TEXTS[:5]), ["two", "fields"]])
    with pytest.raises(DataError, match=r"texts\.tsv:7: 2 fields where the header has 1"):
        predict_file(run, ["mood"], str(source), None, form="jsonl", with_probabilities=False)
    found = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    assert found == model.predict("mood", TEXTS[:4])
    windows = model.predict_windows(["mood"], [*TEXTS[:3], ""])
    assert next(windows)["mood"].values == found[:2]
    with pytest.raises(UsageError, match="text 3: is empty"):
        next(windows)


def piped(run: Path, given: str, *arguments: str, task: str = "mood") -> subprocess.CompletedProcess[str]:
    code = "from smoothtune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "predict", str(run), "--task", task, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ("csv", '"first","second"\n' + "".join(f'"{a}","{b}"\n' for a, b in PAIRS)),
        ("jsonl", "".join(json.dumps({"second": b, "first": a}) + "\n" for a, b in PAIRS)),
    ],
)
def test_stdin_in_another_format(run: Path, model: Model, form: str, given: str) -> None:
    done = piped(run, given, "-", "--input-format", form, task="same")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    assert [row["prediction"] for row in rows] == model.predict("same", PAIRS)


def test_an_input_that_cannot_be_used_leaves_stdout_empty(run: Path) -> None:
    done = piped(run, "words\na cat\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no column 'text'" in done.stderr


def refused(kind: type[Exception], run: Path, source: Path | str, out: Path, task: str = "mood", **more: Any) -> str:
    """The error's text; no output file may be left, nor a part of one."""
    before = set(out.parent.iterdir())
    options = {"form": "tsv", "with_probabilities": False, **more}
    with pytest.raises(kind) as error:
        predict_file(run, task.split(","), str(source), out, **options)
    assert set(out.parent.iterdir()) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text\tid\na cat\t1\na dog\n", "bad.tsv:3: 1 field where the header has 2: nothing stands in column 'id'"),
        ("", "bad.tsv: is empty, or its first line is; the first line must name the columns"),
        ("words\na cat\n", "bad.tsv:1: has no column 'text'; its columns are: 'words'"),
    ],
)
def test_bad_input_is_named_by_line_and_leaves_no_output(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "WINDOW", 1)
    Path("bad.tsv").write_text(content)
    text = refused(DataError, run, "bad.tsv", tmp_path / "out.tsv")
    assert text == f"The input cannot be predicted:\n  {problem}"


def test_an_older_output_stays_when_prediction_fails(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    out.write_text("older")
    (tmp_path / "bad.tsv").write_text("text\na\tb\n")
    refused(DataError, run, tmp_path / "bad.tsv", out)
    assert out.read_text() == "older"


def test_a_header_alone_gives_a_header_alone(run: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "none.tsv", ["text"], [])
    assert predicted(run, "mood", source, tmp_path / "out.tsv") == []
    assert (tmp_path / "out.tsv").read_text() == "text\tprediction\n"


def test_a_new_file_has_the_rights_that_the_umask_leaves(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        predicted(run, "mood", texts_file(tmp_path), tmp_path / "out.tsv")
    finally:
        os.umask(before)
    assert (tmp_path / "out.tsv").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("column", "shares"), [("prediction", False), ("prediction", True), ("p_1", True)])
@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_a_text_column_that_an_answer_would_hide_is_refused(
    run: Path, tmp_path: Path, column: str, shares: bool, form: str
) -> None:
    folder = shutil.copytree(run / "model", tmp_path / "model")
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace('"second"', f'"{column}"'))
    source, out = written(tmp_path / "in.tsv", ["first", column], [list(pair) for pair in PAIRS]), tmp_path / "out"
    assert refused(UsageError, folder, source, out, "same", form=form, with_probabilities=shares) == (
        f"task 'same': its text column is called {column!r}, as a column of the answers is; "
        "predict from Python, or train with another name for it"
    )
    if column == "p_1":
        assert len(predicted(folder, "same", source, out, form=form)) == len(PAIRS)


def test_what_cannot_be_asked_of_a_run(run: Path, tmp_path: Path) -> None:
    source, out = texts_file(tmp_path), tmp_path / "out.tsv"
    text = refused(UsageError, run, source, out, task="sst")
    assert text == "this model has no task 'sst'; its tasks: mood, same, near"
    text = refused(UsageError, run, source, out, task="near", with_probabilities=True)
    assert text == "--probabilities: task 'near' is a regression and has none"
    assert (
        refused(UsageError, run, source, out, form="xml")
        == "--format: got 'xml', expected one of tsv, csv, jsonl, parquet"
    )
    text = refused(UsageError, run, source, out, task="mood,near")
    assert text == "tasks: those asked together must read as many texts, got mood 1, near 2; ask them apart"
    text = refused(UsageError, run, source, out, precision="int4")
    assert text == "precision: got 'int4', expected one of auto, float32, bfloat16"
    text = refused(ModelFileError, tmp_path, source, out)
    assert text == f"{tmp_path}: is not a model folder (it has no config.toml); give RUN/model or a run folder"
    text = refused(DataError, run, "missing.tsv", out)
    assert text.endswith(
        f"missing.tsv: no such file: {Path.cwd() / 'missing.tsv'}; relative paths start at {Path.cwd()}"
    )
    text = refused(UsageError, run, source, out, input_form="csv")
    assert text == f"--input-format csv: is for stdin, but {source} is named; leave it out"
    text = refused(UsageError, run, "-", out, input_form="parquet")
    assert text == "--input-format: got 'parquet', expected one of tsv, csv, jsonl"


def test_several_tasks_have_a_column_each(run: Path, model: Model, tmp_path: Path) -> None:
    source = written(tmp_path / "pairs.tsv", ["first", "second"], [list(pair) for pair in PAIRS])
    found = predicted(run, "near,same", source, tmp_path / "out.jsonl", form="jsonl", shares=True)
    assert list(found[0]) == ["first", "second", "prediction_near", "prediction_same", "p_same_0", "p_same_1"]
    assert [row["prediction_same"] for row in found] == model.predict("same", PAIRS)
    assert [row["prediction_near"] for row in found] == pytest.approx(model.predict("near", PAIRS))
    shares = model.predict_probabilities("same", PAIRS)
    np.testing.assert_allclose([[row["p_same_0"], row["p_same_1"]] for row in found], shares, atol=2e-6)


def test_tasks_are_named_with_commas_or_repeated(run: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "pairs.tsv", ["first", "second"], [list(pair) for pair in PAIRS])
    arguments = ["predict", str(run), str(source), "--task"]
    once, repeated = (
        CliRunner().invoke(app, [*arguments, *tasks], catch_exceptions=False)
        for tasks in (["same,near,same"], ["same", "--task", "near"])
    )
    assert once.stdout == repeated.stdout
    assert once.stdout.startswith("first\tsecond\tprediction_same\tprediction_near\n")


def test_answers_of_several_tasks_that_cannot_be_told_apart(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run / "model", tmp_path / "model")
    labels = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps({**labels, "same": ["a", "a_x"]}))
    source = written(tmp_path / "in.tsv", ["first", "second"], [list(pair) for pair in PAIRS])
    found = predicted(folder, "same,near", source, tmp_path / "out.tsv", shares=True)
    assert list(found[0])[-3:] == ["p_same_a", "p_same_a_x", "prediction_near"]
    with pytest.raises(UsageError) as error:
        workflow.answer_names({"a": ("b_c",), "a_b": ("c",)}, ("text",))
    assert str(error.value) == "--task: two columns of the answers would be called 'p_a_b_c'; ask the tasks apart"


def test_the_report_names_rows_tasks_and_precision(run: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.tsv", tmp_path / "report.json"
    arguments = ["predict", str(run), str(texts_file(tmp_path)), "--task", "mood", "--precision", "bfloat16"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--report", str(report)], catch_exceptions=False)
    assert result.stderr == f"precision bfloat16 (asked for)\n7 rows predicted in {out}; report in {report}\n"
    precision = {"name": "bfloat16", "why": "asked for", "speeds": {}, "difference": None}
    assert json.loads(report.read_text()) == {"rows": 7, "empty": 0, "tasks": ["mood"], "precision": precision}
    assert {path.name for path in tmp_path.glob("*.json")} == {"report.json"}


def test_predicting_loads_no_library_it_has_no_use_for() -> None:
    code = (
        "import sys, smoothtune.workflow.predict\n"
        "print([m for m in ('transformers', 'datasets', 'pyarrow', 'huggingface_hub', 'accelerate', 'sklearn', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_output_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "out.tsv"
    with pytest.raises(WriteError) as error:
        predict_file(run, ["mood"], str(texts_file(tmp_path)), out, form="tsv", with_probabilities=False)
    wanted = f"{out}: cannot be written: No such file or directory; give a file in a folder that exists"
    assert str(error.value) == wanted


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(workflow, "read_records", broken)
    source = texts_file(tmp_path)
    text = refused(DataError, run, source, tmp_path / "out.tsv")
    assert text == f"The input cannot be predicted:\n  {source}: cannot be read: Permission denied"


def test_the_program_predicts_into_a_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    arguments = ["predict", str(run), "--task", "mood", str(texts_file(tmp_path)), "--out", str(out)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"7 rows predicted in {out}; report in {out}.report.json\n" in result.stderr
    assert len(out.read_text().splitlines()) == 8
    report = json.loads((tmp_path / "out.tsv.report.json").read_text())
    assert (report["rows"], report["precision"]["name"]) == (7, "float32")


# from Python


def test_one_text_at_a_time_is_the_same_as_all(model: Model) -> None:
    together = np.array(model.predict("near", PAIRS), dtype=float)
    alone = [model.predict("near", [pair], batch_size=1)[0] for pair in PAIRS]
    np.testing.assert_allclose(together, np.array(alone, dtype=float), atol=1e-5)
    assert model.predict("mood", TEXTS) == [model.predict("mood", [text])[0] for text in TEXTS]


def test_nothing_in_nothing_out(model: Model) -> None:
    assert model.predict("mood", []) == []
    assert model.predict_probabilities("mood", []).shape == (0, 3)


def test_several_tasks_share_one_pass_of_the_encoder(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {task: model.predict(task, PAIRS) for task in ("near", "same")}
    passes = []
    hook = model.network.encoder.register_forward_hook(lambda *_: passes.append(1))
    together = model.predict_many(["near", "same"], PAIRS)
    hook.remove()
    assert len(passes) == 1
    assert together["same"] == alone["same"]
    assert together["near"] == pytest.approx(alone["near"])
    assert list(together) == ["near", "same"]


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, ...]]]:
    """The tasks of every measurement of a precision, by way of reading; models loaded now need one."""
    made: list[list[tuple[str, ...]]] = []

    def measured(network: object, groups: Groups, identity: str) -> Precision:
        made.append([tuple(names) for names, _ in groups])
        return Precision("float32", f"measured {len(made)}")

    monkeypatch.setattr(inference, "measured", measured)
    monkeypatch.setattr(inference, "without_measuring", lambda *_: None)
    return made


def test_tasks_that_read_pairs_in_different_ways_are_asked_together(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, measurements: list[list[tuple[str, ...]]]
) -> None:
    wanted = table(tiny_encoder, stop={"max_steps": 2})
    wanted["trunks"]["joint"] = {"kind": "joint"}
    wanted["tasks"]["near"]["trunk"] = "joint"
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    mixed = Model.load(tmp_path / "run", device="cpu")
    found = mixed.predict_many(["near", "same"], PAIRS)
    assert measurements == [[("near",), ("same",)]]  # both ways of reading, together
    assert list(found) == ["near", "same"]
    assert found["near"] == pytest.approx(mixed.predict("near", PAIRS))
    assert found["same"] == mixed.predict("same", PAIRS)


def test_the_precision_is_measured_once_for_tasks_that_are_asked_together(
    run: Path, measurements: list[list[tuple[str, ...]]]
) -> None:
    model = Model.load(run, device="cpu")
    assert model.precision_of(["mood"]) is None
    for tasks in (["mood"], ["near"], ["near", "same"], ["same", "near"], ["near"]):
        model.predict_many(tasks, TEXTS if tasks == ["mood"] else PAIRS)
    assert measurements == [[("mood",)], [("near",)], [("near", "same")]]
    assert [str(model.precision_of(tasks)) for tasks in (["near"], ["same", "near"])] == [
        "precision float32 (measured 2)",
        "precision float32 (measured 3)",
    ]


@pytest.mark.parametrize("tasks", ["mood", [], ()])
def test_tasks_are_a_list_of_names(model: Model, tasks: Any) -> None:
    with pytest.raises(UsageError) as error:
        model.predict_many(tasks, TEXTS)
    assert str(error.value) == f"tasks: got {tasks!r}, expected a list of names among mood, same, near"


def test_kinds_columns_and_labels(model: Model) -> None:
    assert [model.kind(task) for task in model.tasks] == ["classification", "binary", "regression"]
    assert model.columns("same") == ("first", "second")
    assert model.labels["mood"] == ("beast", "place", "sky")


def test_probabilities_from_python(model: Model) -> None:
    shares = model.predict_probabilities("same", PAIRS)
    assert shares.shape == (4, 2)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    labels = model.labels["same"]
    assert labels is not None
    assert [labels[number] for number in shares.argmax(axis=1)] == model.predict("same", PAIRS)


@pytest.mark.parametrize(
    ("task", "texts", "text"),
    [
        ("mood", "the cat", "task 'mood': expected a list of texts, got one string"),
        ("mood", [("a", "b")], "task 'mood', text 0: expected a string, got ('a', 'b')"),
        ("mood", ["a", None], "task 'mood', text 1: expected a string, got None"),
        ("mood", [3], "task 'mood', text 0: expected a string, got 3"),
        ("same", ["ab"], "task 'same', text 0: expected two strings, got 'ab'"),
        ("same", [("a", "b"), ("a",)], "task 'same', text 1: expected two strings, got ('a',)"),
        ("same", [["a", 5]], "task 'same', text 0: expected two strings, got ['a', 5]"),
        ("sst", ["a"], "this model has no task 'sst'; its tasks: mood, same, near"),
        (
            "same",
            [{"first": "a", "second": "b"}],
            "task 'same', text 0: expected two strings, got {'first': 'a', 'second': 'b'}",
        ),
        ("mood", ["a", " \n"], "task 'mood', text 1: is empty, got ' \\n'; give a text or leave it out"),
        ("same", [("a", "")], "task 'same', text 0: is empty, got ('a', ''); give a text or leave it out"),
    ],
)
def test_texts_of_the_wrong_form(model: Model, task: str, texts: Any, text: str) -> None:
    with pytest.raises(UsageError) as error:
        model.predict(task, texts)
    assert str(error.value) == text


def test_arrays_of_texts_and_of_pairs(model: Model) -> None:
    assert model.predict("mood", np.array(TEXTS)) == model.predict("mood", TEXTS)
    for pairs in (np.array(PAIRS), np.array(PAIRS, dtype=object)):
        assert model.predict("same", pairs) == model.predict("same", PAIRS)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_text(model: Model, size: int) -> None:
    for predict in (model.predict, model.predict_probabilities):
        with pytest.raises(UsageError) as error:
            predict("mood", TEXTS, batch_size=size)
        assert str(error.value) == f"batch_size: got {size}, expected at least 1"


def test_a_model_is_loaded_from_a_path_onto_a_device_that_there_is(run: Path) -> None:
    assert smoothtune.load(run, device="cpu").tasks == smoothtune.load(str(run / "model")).tasks
    with pytest.raises(UsageError) as error:
        smoothtune.load(run, device="cud")
    assert str(error.value) == "device: got 'cud', expected auto, cpu, cuda or cuda:NUMBER"


def test_a_regression_has_no_probabilities(model: Model) -> None:
    with pytest.raises(UsageError) as error:
        model.predict_probabilities("near", PAIRS)
    assert str(error.value) == "task 'near' is a regression and has no probabilities; use `predict`"


def test_predicting_leaves_every_mode_as_it_was(model: Model) -> None:
    model.network.train()
    model.network.encoder.eval()
    before = {name: part.training for name, part in model.network.named_modules()}
    model.predict("mood", TEXTS)
    assert {name: part.training for name, part in model.network.named_modules()} == before
    model.network.eval()


def test_logits_become_decisions_and_shares() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [900.0, -900.0, 0.0]], dtype=np.float32)
    assert decide("classification", logits).tolist() == [1, 0]
    assert probabilities("classification", logits).sum(axis=1).tolist() == pytest.approx([1, 1])
    single = np.array([-900.0, 0.0, 1.0, 900.0], dtype=np.float32)
    assert decide("binary", single).tolist() == [0, 0, 1, 1]
    found = probabilities("binary", single)
    assert found[:, 1].tolist() == pytest.approx([0, 0.5, 1 / (1 + np.exp(-1)), 1])
    assert decide("regression", single) is single
    with pytest.raises(ValueError, match="a regression has no probabilities"):
        probabilities("regression", single)
