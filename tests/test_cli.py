"""The program from outside: help pages, lists, exit codes, and what it says about broken data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smoothtune import __version__
from smoothtune.cli.main import app, main
from smoothtune.config.catalogue import catalogue
from smoothtune.config.loading import PACKAGED, load, packaged_names
from tests.golden import check_golden
from tests.tiny import write_bert

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
Answer = tuple[int, str, str]
Program = Callable[..., Answer]

WORDS = ["good", "bad", "great", "awful", "dull", "bright", "big", "small", "happy", "sad"]
ROWS = [(str(number), f"the {word} film", str(number % 5)) for number, word in enumerate(WORDS)]
DEV = [("0", "a good dog", "0"), ("1", "a bad dog", "1"), ("2", "a sad cat", "2")]
EXPERIMENT = """
[encoder]
name = "{encoder}"
max_length = 16
[tasks.sst]
kind = "classification"
text = "sentence"
label = "sentiment"
labels = [0, 1, 2, 3, 4]
train = "sst/train.tsv"
dev = "sst/dev.tsv"
"""


def tsv(rows: list[tuple[str, str, str]]) -> str:
    return "id\tsentence\tsentiment\n" + "".join("\t".join(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs the program in an empty folder: exit code, stdout, stderr. Nothing may end in a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SMOOTHTUNE_DATA", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # `main` sets it for good where it is not set
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["smoothtune", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def sst(tmp_path: Path, encoder: Path, program: Program) -> Path:
    """A folder with a small experiment `sst.toml` and its data."""
    (tmp_path / "sst").mkdir()
    (tmp_path / "sst.toml").write_text(EXPERIMENT.format(encoder=encoder))
    (tmp_path / "sst" / "train.tsv").write_text(tsv(ROWS))
    (tmp_path / "sst" / "dev.tsv").write_text(tsv(DEV))
    return tmp_path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_pages_are_those_of_the_golden_files(command: str) -> None:
    answer = CliRunner().invoke(app, [*([command] if command else []), "--help"], prog_name="smoothtune", env=PLAIN)
    assert answer.exit_code == 0
    check_golden(f"help-{command or 'smoothtune'}.txt", answer.stdout)


def test_every_command_shows_examples_that_begin_with_itself() -> None:
    assert COMMANDS == ["train", "evaluate", "predict", "check", "list", "show", "schema"]
    for command in COMMANDS:
        page = CliRunner().invoke(app, [command, "--help"], env=PLAIN).stdout
        lines = page.partition("\n  Example")[2].partition("\n\n")[0].splitlines()[1:]
        assert lines, f"{command} has no examples on lines of their own"
        assert [line for line in lines if f"smoothtune {command}" not in line] == []


def test_without_arguments_the_help_page_is_shown(program: Program) -> None:
    code, out, err = program()
    assert code == 2
    assert out == ""
    assert all(f"\n  {command}  " in err for command in COMMANDS)


def test_the_version_is_told_by_the_program_and_by_the_module() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"smoothtune {__version__}\n")
    module = subprocess.run(
        [sys.executable, "-m", "smoothtune", "--version"], capture_output=True, text=True, check=True
    )
    assert (module.stdout, module.stderr) == (f"smoothtune {__version__}\n", "")


def test_the_schema_is_that_of_the_golden_file(program: Program) -> None:
    code, out, err = program("schema")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema["required"] == ["tasks"]
    assert schema["additionalProperties"] is False
    labels = schema["$defs"]["ClassificationTask"]["properties"]["labels"]["anyOf"][0]["items"]["anyOf"]
    assert [part["type"] for part in labels] == ["string", "boolean", "integer", "number"]
    clip = schema["$defs"]["Stage"]["properties"]["gradient_clip"]["anyOf"]
    assert {"const": False, "type": "boolean"} in clip
    check_golden("schema.json", out)


def test_list_names_everything_that_an_experiment_can_name(program: Program) -> None:
    code, out, err = program("list")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    expected = [[f"{title}:"] if not name else [name] for title, names in catalogue().items() for name in ("", *names)]
    assert [line[:1] for line in lines] == expected
    assert len(lines) >= 30
    assert json.loads(program("list", "--json")[1]) == catalogue()


def test_list_shows_one_table(program: Program) -> None:
    assert program("list", "weightings") == (
        0,
        "weightings:\n"
        "  none          every loss counts as it is\n"
        "  fixed         the task's loss_weight\n"
        "  inverse_size  w_t = (1 / N_t) / mean_u (1 / N_u) (Wang, section 4.3)\n"
        "  learned       trainable, 1 / (2 s_t) with penalty ln(1 + s_t); cannot reach zero\n",
        "",
    )
    assert json.loads(program("list", "experiments", "--json")[1]) == {"experiments": catalogue()["experiments"]}


def test_show_prints_the_file_itself_or_every_value_it_stands_for(program: Program, tmp_path: Path) -> None:
    assert packaged_names()
    for name in packaged_names():
        assert program("show", name) == (0, (PACKAGED / f"{name}.toml").read_text(), "")
        code, out, err = program("show", name, "--resolved")
        assert (code, err) == (0, "")
        (tmp_path / "resolved.toml").write_text(out)
        assert load(tmp_path / "resolved.toml").experiment == load(name).experiment
    code, out, err = program("show", "quick", "--set", "stages.0.batch_size=7")
    assert (code, err) == (0, "")
    assert "batch_size = 7\n" in out


WRONG = {
    "an experiment that is not there": (
        ("check", "quik"),
        "quik: no file and no packaged experiment (packaged: NAMES). Did you mean 'quick'?",
    ),
    "a file that is not there": (
        ("train", "mine.toml"),
        "mine.toml: there is no such experiment file; check the path or run `smoothtune list experiments`",
    ),
    "an unknown list": (
        ("list", "trunk"),
        "list: got 'trunk', expected one of experiments, encoders, tasks, trunks, outputs, schedules, weightings. "
        "Did you mean 'trunks'?",
    ),
    "a data folder that is not there": (
        ("check", "quick", "--data-dir", "nowhere"),
        "--data-dir nowhere: there is no such folder",
    ),
    "an override without a value": (
        ("show", "quick", "--set", "seed"),
        "--set seed: expected PATH=VALUE, for example stages.0.stop.max_epochs=2",
    ),
    "an override of an unknown key": (
        ("show", "quick", "--set", "sed=2"),
        "quick: the experiment cannot be run:\n  sed: unknown key. Did you mean 'seed'?",
    ),
    "a folder that is no run": (
        ("evaluate", "nowhere"),
        "nowhere: is not a run folder (it has no experiment.toml)",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_told_on_stderr_with_exit_code_2(mistake: str, program: Program) -> None:
    arguments, said = WRONG[mistake]
    said = said.replace("NAMES", ", ".join(packaged_names()))
    assert program(*arguments) == (2, "", f"smoothtune: {said}\n")


def test_an_option_that_does_not_exist_is_a_usage_error(program: Program) -> None:
    code, out, err = program("check", "quick", "--strct")
    assert (code, out) == (2, "")
    assert "No such option: --strct" in err


def test_a_file_that_is_not_toml_is_named_with_line_and_column(program: Program, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("seed = 1\n[tasks\n")
    code, out, err = program("check", "broken.toml")
    assert (code, out) == (2, "")
    assert err.startswith("smoothtune: broken.toml: the experiment cannot be run:\n  broken.toml: is not valid TOML: ")
    assert "(at line 2, column 7)" in err


def test_a_file_that_is_not_utf_8_is_named(program: Program, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('name = "größe"\n'.encode("latin-1"))
    code, _, err = program("show", "latin.toml")
    assert code == 2
    assert "  latin.toml: is not valid TOML: 'utf-8' codec can't decode byte 0xf6 in position 10" in err


def test_a_broken_pipe_ends_the_program_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "smoothtune", "schema"]
    answer = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (1, "")


def test_data_that_are_not_there_are_named_with_their_path(sst: Path, program: Program) -> None:
    (sst / "sst" / "dev.tsv").unlink()
    code, out, err = program("check", "sst.toml", "--set", "tasks.sst.train=sst/trian.tsv")
    assert (code, out) == (2, "")
    where = "paths start at --data-dir, or at the folder of the experiment file without it"
    assert err.splitlines() == [
        "smoothtune: The data cannot be used as the experiment says:",
        f"  tasks.sst.train: sst/trian.tsv: no such file: {sst / 'sst' / 'trian.tsv'}; {where}",
        f"  tasks.sst.dev: sst/dev.tsv: no such file: {sst / 'sst' / 'dev.tsv'}; {where}",
    ]


def test_an_existing_run_folder_is_refused_and_left_alone(sst: Path, program: Program) -> None:
    (sst / "first").mkdir()
    (sst / "first" / "mine.txt").write_text("mine")
    code, out, err = program("train", "sst.toml", "--run-dir", "first")
    assert (code, out) == (2, "")
    assert err == (
        "smoothtune: first: exists already; a run never overwrites one: remove it or give another --run-dir\n"
    )
    assert [path.name for path in (sst / "first").iterdir()] == ["mine.txt"]


BROKEN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a field too many": (
        tsv([*ROWS[:2], ("2", "the great film\tmore", "2")]).encode(),
        ("sst/train.tsv:4: 4 fields where the header has 3: '2' stands after the last column, 'sentiment'; quote",),
    ),
    "label 7": (
        tsv([*ROWS[:2], ("2", "the great film", "7")]).encode(),
        ("sst/train.tsv:4: column 'sentiment' is '7'; the labels are '0', '1', '2', '3', '4'",),
    ),
    "label x": (
        tsv([*ROWS[:2], ("2", "the great film", "x")]).encode(),
        ("sst/train.tsv:4: column 'sentiment' is 'x'; the labels are '0', '1', '2', '3', '4'",),
    ),
    "an empty text": (
        tsv([*ROWS[:2], ("2", " ", "2")]).encode(),
        ("sst/train.tsv:4: column 'sentence' is empty; write a text or remove the row",),
    ),
    "Latin-1 bytes": (
        tsv([*ROWS[:2], ("2", "das größte Haus", "2")]).encode("latin-1"),
        ("sst/train.tsv:4: ", "0xF6", "not UTF-8", "save the file as UTF-8"),
    ),
    "a missing column": (
        tsv(ROWS).replace("sentiment", "sentimnt").encode(),
        ("sst/train.tsv", "'sentiment'", "'sentimnt'"),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_check_names_file_line_and_column_of_broken_data(kind: str, sst: Path, program: Program) -> None:
    content, said = BROKEN[kind]
    (sst / "sst" / "train.tsv").write_bytes(content)
    code, out, err = program("check", "sst.toml")
    assert (code, out) == (2, "")
    assert err.startswith("smoothtune: The data cannot be used as the experiment says:\n")
    assert [part for part in said if part not in err] == [], err


def test_check_tells_the_mistakes_of_all_files_at_once(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([*ROWS, ("10", "", "2"), ("11", "", "2")]))
    (sst / "sst" / "dev.tsv").write_text("sentence\nno label\n")
    _, _, err = program("check", "sst.toml")
    lines = err.splitlines()
    assert [line.partition(": ")[0] for line in lines[1:]] == [
        "  sst/train.tsv:12",
        "  sst/train.tsv:13",
        "  sst/dev.tsv",
    ]


def test_check_shows_what_is_in_the_data(sst: Path, program: Program) -> None:
    code, out, err = program("check", "sst.toml", "--strict")
    assert (code, err) == (0, "")
    head, _, train, dev = (line.split() for line in out.splitlines() if line.strip())
    assert head[:4] == ["task", "split", "rows", "labels"]
    assert train[:8] == ["sst", "train", "10", "0:20%", "1:20%", "2:20%", "3:20%", "4:20%"]
    assert dev[:8] == ["sst", "dev", "3", "0:33%", "1:33%", "2:33%", "3:0%", "4:0%"]


def test_check_gives_json(sst: Path, program: Program) -> None:
    code, out, err = program("check", "sst.toml", "--json")
    assert (code, err) == (0, "")
    splits = json.loads(out)["tasks"]["sst"]
    keys = ["source", "rows", "left_out", "balance", "lengths", "duplicates", "conflicts", "leaks"]
    assert {split: list(found) for split, found in splits.items()} == {"train": keys, "dev": keys}
    assert splits["train"]["balance"] == {"0": 2, "1": 2, "2": 2, "3": 2, "4": 2}
    assert splits["train"]["leaks"] is None
    assert splits["dev"]["leaks"] == {
        "rows": 3,
        **{name: {"count": 0, "examples": []} for name in ("whole", "shared_one", "shared_both", "across")},
    }
    assert list(splits["dev"]["lengths"]) == ["median", "p95", "longest", "cut"]
    assert splits["dev"]["lengths"]["longest"] == 5


def test_repeats_conflicts_and_leaks_are_warned_of_and_strict_makes_leaks_an_error(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([*ROWS, ROWS[0], (*ROWS[1][:2], "4")]))
    (sst / "sst" / "dev.tsv").write_text(tsv([*DEV, ROWS[2]]))
    warnings = [
        "warning: sst.train: 1 texts with more than one label, e.g. sst/train.tsv:13 and sst/train.tsv:3",
        "warning: sst.train: 2 repeated rows, e.g. sst/train.tsv:12 and sst/train.tsv:2",
        "warning: sst.dev: 1 rows stand in training data, e.g. sst/dev.tsv:5 at sst/train.tsv:4",
    ]
    code, shown, err = program("check", "sst.toml")
    assert (code, err.splitlines()) == (0, warnings)
    code, out, err = program("check", "sst.toml", "--strict")
    assert (code, out) == (2, shown)
    assert err.splitlines() == [
        *warnings,
        "smoothtune: 1 dev or test rows stand in training data (--strict):",
        "  sst.dev: 1 rows stand in training data, e.g. sst/dev.tsv:5 at sst/train.tsv:4",
    ]
    assert (
        json.loads(program("check", "sst.toml", "--json", "--strict")[1])["tasks"]["sst"]["dev"]["leaks"]["whole"][
            "count"
        ]
        == 1
    )


def test_rows_that_are_left_out_are_counted_in_a_note(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([*ROWS, ("10", "", "2"), ("11", "the red film", "7")]))
    code, out, err = program("check", "sst.toml", "--set", "tasks.sst.on_bad_row=leave_out")
    assert code == 0
    assert "1 empty text, 1 unknown label" in out
    assert err.splitlines() == [
        "note: sst.train: 1 rows left out: empty text",
        "note: sst.train: 1 rows left out: unknown label",
    ]


def test_data_are_also_found_from_the_environment(
    sst: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (sst / "sst.toml").rename(tmp_path / "elsewhere" / "sst.toml")
    assert program("check", "elsewhere/sst.toml")[0] == 2
    monkeypatch.setenv("SMOOTHTUNE_DATA", str(sst))
    assert program("check", "elsewhere/sst.toml")[0] == 0
