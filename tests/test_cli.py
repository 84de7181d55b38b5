"""The program from outside: help pages, lists, exit codes, and what it says about broken data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smoothtune import __version__
from smoothtune.cli.check import _print_report
from smoothtune.cli.main import app, main
from smoothtune.cli.tables import PlainConsole
from smoothtune.config.catalogue import catalogue
from smoothtune.config.loading import PACKAGED, load, packaged_names
from smoothtune.workflow.check import check_experiment
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
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            main()
        ended_by_ctrl_c = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert ended_by_ctrl_c == (ended.value.code == 130), "a second Ctrl-C finds nobody"
        signal.signal(signal.SIGINT, before)
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
    assert COMMANDS == ["train", "resume", "evaluate", "predict", "export", "check", "list", "show", "schema"]
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
        "list: got 'trunk', expected one of experiments, encoders, tasks, trunks, outputs, schedules, weightings, "
        "adaptations, regularisers, presets. Did you mean 'trunks'?",
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
        "nowhere: there is no such folder; give the folder of a run",
    ),
    "a model that is not there": (
        ("export", "nowhere", "--task", "mood", "--to", "there"),
        "nowhere: there is no such folder; give a run folder or a model folder",
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
    where = f"relative paths start at {sst}"
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
        "smoothtune: first: exists already; a run never overwrites one: give another --run-dir, or --resume to go on with it\n"
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
        ("sst/train.tsv:1: ", "'sentiment'", "'sentimnt'"),
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
        "  sst/dev.tsv:1",
    ]


def beyond_sizes(err: str) -> list[str]:
    """What is told, without what is told of any data as small as these."""
    small = (" fewer than 5 rows: ", " no row: ", " few: a score of so few is coarse")
    return [line for line in err.splitlines() if not (line.startswith("warning: ") and any(map(line.count, small)))]


def test_check_shows_what_is_in_the_data(sst: Path, program: Program) -> None:
    code, out, err = program("check", "sst.toml", "--strict")
    assert (code, beyond_sizes(err)) == (0, [])
    head, _, train, dev = (line.split() for line in out.splitlines() if line.strip())
    assert head[:4] == ["task", "split", "rows", "labels"]
    lines = out.splitlines()
    assert lines[0].index("labels") == lines[2].index("0:20%") == lines[3].index("0:33%")
    assert train[:8] == ["sst", "train", "10", "0:20%", "1:20%", "2:20%", "3:20%", "4:20%"]
    assert dev[:8] == ["sst", "dev", "3", "0:33%", "1:33%", "2:33%", "3:0%", "4:0%"]


def test_check_gives_json(sst: Path, program: Program) -> None:
    code, out, err = program("check", "sst.toml", "--json")
    assert (code, err) == (0, "")
    splits = json.loads(out)["tasks"]["sst"]
    keys = ["source", "kind", "rows", "left_out", "balance", "span", "lengths"]
    keys += ["duplicates", "conflicts", "doubts", "leaks", "remarks", "metric"]
    assert {split: list(found) for split, found in splits.items()} == {"train": keys, "dev": keys}
    assert splits["train"]["balance"] == {"0": 2, "1": 2, "2": 2, "3": 2, "4": 2}
    assert (splits["train"]["kind"], splits["train"]["span"], splits["train"]["leaks"]) == (
        "classification",
        None,
        None,
    )
    doubts = {"absent": [], "rare": {}, "few_rows": False, "constant": False}
    doubts |= {"lookalikes": {"count": 0, "examples": []}, "alike": [], "none": [], "several": [], "dominant": None}
    assert splits["train"]["doubts"] == {**doubts, "rare": dict.fromkeys("01234", 2)}
    assert splits["dev"]["doubts"] == {**doubts, "absent": ["3", "4"], "few_rows": True}
    assert splits["dev"]["leaks"] == {
        "rows": 3,
        **{name: {"count": 0, "examples": []} for name in ("whole", "shared_one", "shared_both", "across")},
    }
    assert list(splits["dev"]["lengths"]) == ["median", "p95", "longest", "cut", "unknown"]
    assert splits["dev"]["lengths"]["longest"] == 5


def test_repeats_conflicts_and_leaks_are_warned_of_and_strict_makes_leaks_an_error(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([*ROWS, ROWS[0], (*ROWS[1][:2], "4")]))
    (sst / "sst" / "dev.tsv").write_text(tsv([*DEV, ROWS[2]]))
    warnings = [
        "warning: sst.train: 1 text with more than one label, e.g. sst/train.tsv:13 and sst/train.tsv:3",
        "warning: sst.train: 2 repeated rows, e.g. sst/train.tsv:12 and sst/train.tsv:2",
        "warning: sst.dev: 1 row stands in training data, e.g. sst/dev.tsv:5 at sst/train.tsv:4",
    ]
    code, shown, err = program("check", "sst.toml")
    assert (code, beyond_sizes(err)) == (0, warnings)
    code, out, err = program("check", "sst.toml", "--strict")
    assert (code, out) == (2, shown)
    assert beyond_sizes(err) == [
        *warnings,
        "smoothtune: 1 dev or test row stands in training data (--strict):",
        "  sst.dev: 1 row stands in training data, e.g. sst/dev.tsv:5 at sst/train.tsv:4",
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
    assert [line.split()[-1] for line in out.splitlines()[2:]] == ["2", "0"]
    assert beyond_sizes(err) == [
        "note: sst.train: 1 row left out: empty text",
        "note: sst.train: 1 row left out: unknown label",
    ]


PAIRS = """
[encoder]
name = "{encoder}"
max_length = 16
[tasks.near]
kind = "regression"
range = [0, 5]
text = ["first", "second"]
label = "score"
train = "near.tsv"
dev = "near_dev.tsv"
"""


@pytest.fixture
def near(sst: Path, encoder: Path) -> Path:
    """A folder with a small regression `near.toml` whose mean label is whole, and its data."""
    (sst / "near.toml").write_text(PAIRS.format(encoder=encoder))
    (sst / "near.tsv").write_text("first\tsecond\tscore\na cat\ta dog\t1\nthe sun\tthe moon\t3\n")
    (sst / "near_dev.tsv").write_text("first\tsecond\tscore\na dog\ta cat\t1\na cat\tthe rain\t3.8\n")
    return sst


def test_a_regression_is_told_by_its_span_even_if_its_mean_is_whole(near: Path, program: Program) -> None:
    code, out, _ = program("check", "near.toml")
    assert code == 0
    assert out.splitlines()[2].split()[3:8] == ["1", "to", "3,", "mean", "2.00"]
    found = json.loads(program("check", "near.toml", "--json")[1])["tasks"]["near"]
    assert (found["train"]["kind"], found["train"]["balance"]) == ("regression", {})
    assert found["train"]["span"] == {"min": 1.0, "mean": 2.0, "max": 3.0}
    assert found["dev"]["span"] == {"min": 1.0, "mean": 2.4, "max": 3.8}


def test_strict_counts_and_names_only_rows_that_leak_whole(near: Path, program: Program) -> None:
    code, _, err = program("check", "near.toml", "--strict")
    whole = "near.dev: 1 row stands in training data, e.g. near_dev.tsv:2 at near.tsv:2"
    assert (code, beyond_sizes(err)) == (
        2,
        [
            f"warning: {whole}",
            "warning: near.dev: 1 pair shares a text with training pairs (1 one, 0 both)",
            "smoothtune: 1 dev or test row stands in training data (--strict):",
            f"  {whole}",
        ],
    )


def dev_leaks(program: Program, *overrides: str) -> dict[str, int]:
    """How many rows of each kind of leak `check` counts in dev."""
    options = [part for override in overrides for part in ("--set", override)]
    found = json.loads(program("check", "near.toml", "--json", *options)[1])["tasks"]["near"]["dev"]["leaks"]
    return {name: value["count"] for name, value in found.items() if name != "rows" and value["count"]}


def test_leaks_are_looked_for_wherever_dev_comes_from(near: Path, program: Program) -> None:
    texts = [f"{word} {noun}" for word in ("good", "bad") for noun in ("cat", "dog", "sun", "moon", "rain", "tree")]
    rows = [f"{text}\tthe house\t{number % 6}" for number, text in enumerate(texts)]
    (near / "near.tsv").write_text("\n".join(["first\tsecond\tscore", *rows]) + "\n")
    assert dev_leaks(program, "tasks.near.dev=near.tsv") == {"whole": 12}
    held = dev_leaks(program, "tasks.near.dev=0.4")
    assert list(held) == ["shared_one"]
    other = PAIRS.partition("[tasks.near]")[2].replace("near_dev.tsv", "one.tsv")
    (near / "one.tsv").write_text("first\tsecond\tscore\na small\tbig tree\t3\n")
    (near / "near.toml").write_text((near / "near.toml").read_text() + "\n[tasks.other]" + other)
    assert dev_leaks(program, "tasks.near.dev=0.4") == {"whole": held["shared_one"]}
    assert dev_leaks(program, "tasks.near.dev=0.4", "tasks.other.max_train_rows=1") == {"whole": held["shared_one"]}
    assert dev_leaks(program, "tasks.near.dev=0.4", "tasks.other.dev=0.4") == held


def test_what_is_wrong_is_also_told_as_json(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([*ROWS, ("10", "", "2")]))
    code, out, err = program("check", "sst.toml", "--json")
    what = "column 'sentence' is empty; write a text or remove the row"
    assert (code, json.loads(out)) == (2, {"problems": [{"where": "sst/train.tsv:12", "what": what}]})
    assert err.endswith(f"  sst/train.tsv:12: {what}\n")
    code, out, err = program("check", "nowhere.toml", "--json")
    assert (code, err) == (2, f"smoothtune: {json.loads(out)['problems'][0]['what']}\n")


def test_a_label_without_training_rows_is_noted(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([row for row in ROWS if row[2] not in "13"]))
    err = program("check", "sst.toml")[2]
    assert beyond_sizes(err) == ["note: sst.train: no row has the label '1', '3': it cannot be learned"]


def test_too_few_rows_are_warned_of(sst: Path, program: Program) -> None:
    (sst / "sst" / "train.tsv").write_text(tsv([*ROWS, *((str(number), f"film {number}", "2") for number in range(3))]))
    assert program("check", "sst.toml")[2].splitlines() == [
        "warning: sst.train: 4 classes have fewer than 5 rows: '0' (2), '1' (2), '3' (2), '4' (2): scores of these classes "
        "mean little",
        "warning: sst.dev: 2 classes have no row: '3', '4': scores say nothing about these classes",
        "warning: sst.dev: 3 rows are few: a score of so few is coarse; give 50 or more",
    ]
    enough = [(str(number), f"film {number}", str(number % 5)) for number in range(60)]
    (sst / "sst" / "train.tsv").write_text(tsv(enough[:24]))
    (sst / "sst" / "dev.tsv").write_text(tsv([row for row in enough if row[2] != "3"] * 2))
    assert [line for line in program("check", "sst.toml")[2].splitlines() if " few" in line or " no row" in line] == [
        "warning: sst.train: 1 class has fewer than 5 rows: '4' (4): scores of this class mean little",
        "warning: sst.dev: 1 class has no row: '3': scores say nothing about this class",
    ]


def test_dev_rows_of_one_label_are_warned_of(sst: Path, near: Path, program: Program) -> None:
    same = "have one label: a model that always gives it has the best score"
    (sst / "sst" / "dev.tsv").write_text(tsv([(*row[:2], "2") for row in DEV]))
    assert program("check", "sst.toml")[2].splitlines()[1:] == [
        f"warning: sst.dev: all 3 rows {same}",
        "warning: sst.dev: 3 rows are few: a score of so few is coarse; give 50 or more",
    ]
    assert f" all 2 rows {same}" not in program("check", "near.toml")[2]
    (near / "near_dev.tsv").write_text("first\tsecond\tscore\na dog\ta cat\t1.5\na cat\tthe rain\t1.50\n")
    none = "no correlation exists, so the task has no score; training follows the others"
    warning = f"warning: near.dev: all 2 rows have the label 1.5: {none}"
    assert warning in program("check", "near.toml")[2].splitlines()


def test_labels_that_look_mistyped_are_warned_of(sst: Path, program: Program) -> None:
    words = ["normal"] * 30 + ["nomral"] + ["low"] * 30 + ["Low", "hgih"] + ["high"] * 3 + ["norma1", "old"]
    (sst / "sst" / "train.tsv").write_text(tsv([(str(row), f"film {row}", word) for row, word in enumerate(words)]))
    half = ("--set", "tasks.sst.dev=0.5")
    (sst / "free.toml").write_text((sst / "sst.toml").read_text().replace("labels = [0, 1, 2, 3, 4]\n", ""))
    err = program("check", "free.toml", *half)[2]
    assert [line for line in err.splitlines() if "almost" in line] == [
        "warning: sst.train: 3 labels of a single row are spelt almost like another: 'Low' at sst/train.tsv:63 ('low'), "
        "'hgih' at sst/train.tsv:64 ('high'), 'nomral' at sst/train.tsv:32 ('normal'): mend the row if that is a mistake"
    ]
    listed = f"tasks.sst.labels={json.dumps(sorted(set(words)))}"
    assert "almost" not in program("check", "free.toml", *half, "--set", listed)[2]
    more = ["answer"] + [f"{first}nswer" for first in "abcdefgh"]
    (sst / "sst" / "train.tsv").write_text(tsv([(str(row), f"film {row}", word) for row, word in enumerate(more)]))
    (line,) = (line for line in program("check", "free.toml", *half)[2].splitlines() if "almost" in line)
    assert line.endswith("'gnswer' at sst/train.tsv:9 ('answer') and 1 more: mend the row if that is a mistake")


def test_check_refuses_what_the_encoder_cannot_do(sst: Path, program: Program, encoder: Path) -> None:
    looking = 'regularisers=[{kind="smoothness", layer=1}, {kind="r3f", layer=2}, {kind="vat", layer="middle"}]'
    layers = ("--set", f'stages=[{{train=["outputs", "encoder.layers.1-2"], {looking}}}]')
    code, out, err = program("check", "sst.toml", "--set", "encoder.max_length=65", *layers)
    assert (code, out) == (2, "")
    assert err == (
        "smoothtune: the experiment cannot be run:\n"
        f"  encoder.max_length: got 65, but '{encoder}' reads at most 64 tokens; set 64 or less\n"
        f"  stages.0.train: 'encoder.layers.1-2' names layers that '{encoder}' does not have; it has encoder.layers.0-1\n"
        f"  stages.0.regularisers.1.layer: got 2, but '{encoder}' has the layers 0 to 1; layer k is perturbed at its input\n"
    )


def test_check_says_which_stages_of_a_frozen_encoder_keep_its_states(sst: Path, program: Program) -> None:
    smooth = 'regularisers=[{kind="smoothness"}]'
    stages = f'stages=[{{name="a", {smooth}}}, {{name="b", train="outputs"}}, {{name="c", train="outputs", {smooth}}}]'
    silent = "nothing in the encoder trains, so there is no dropout in it"
    assert beyond_sizes(program("check", "sst.toml", "--set", stages)[2]) == [
        f"note: stage b: {silent} and its states can be kept",
        f"note: stage c: {silent}; regularisers look into it, so its states are not kept and every step encodes",
    ]
    found = json.loads(program("check", "sst.toml", "--set", stages, "--json")[1])
    assert (found["frozen"], found["looked_into"]) == (["b", "c"], ["c"])


def test_the_table_of_check_moves_the_labels_below_it_where_it_is_narrow(sst: Path, encoder: Path) -> None:
    experiment = EXPERIMENT.format(encoder=encoder).replace("[tasks.sst]", "[tasks.sentiment]")
    (sst / "sst.toml").write_text(experiment.replace("labels = [0, 1, 2, 3, 4]", ""))
    (sst / "sst" / "train.tsv").write_text(tsv([(*row[:2], f"[class {row[2]}]") for row in ROWS]))
    (sst / "sst" / "dev.tsv").write_text(tsv([(*row[:2], f"[class {row[2]}]") for row in DEV]))
    report = check_experiment(sst / "sst.toml")
    shown = {}
    for width in (80, 160):
        console = PlainConsole(width=width, file=StringIO())
        _print_report(report, console)
        shown[width] = console.file.getvalue().splitlines()
    assert [line for line in shown[80][:4] if len(line) > 80] == []
    assert shown[80][0].split() == "task split rows tokens 95 % max cut repeated conflicts left out".split()
    assert shown[80][5:] == [
        "labels of sentiment.train: [class 0]:20% [class 1]:20% [class 2]:20% [class 3]:20% [class 4]:20%",
        "labels of sentiment.dev: [class 0]:33% [class 1]:33% [class 2]:33% [class 3]:0% [class 4]:0%",
    ]
    assert len(shown[160]) == 4
    assert shown[160][2].index("[class 0]:20% [class 1]:20%") == shown[160][0].index("labels")


def test_the_environment_names_the_data_of_packaged_experiments_alone(
    sst: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("SMOOTHTUNE_DATA", str(elsewhere))
    assert program("check", "sst.toml")[0] == 0
    (sst / "sst.toml").rename(elsewhere / "sst.toml")
    assert program("check", "elsewhere/sst.toml")[0] == 2
    assert program("check", "elsewhere/sst.toml", "--data-dir", str(sst))[0] == 0
    for arguments, folder in ((), elsewhere), (("--data-dir", "sst"), sst / "sst"):
        err = program("check", "quick", *arguments)[2]
        assert f"no such file: {folder}/quora/train.tsv; relative paths start at {folder}\n" in err
    monkeypatch.setenv("SMOOTHTUNE_DATA", "nowhere")
    assert program("check", "quick") == (2, "", "smoothtune: SMOOTHTUNE_DATA nowhere: there is no such folder\n")


def test_an_encoder_folder_that_begins_with_a_dot_lies_beside_the_experiment(
    sst: Path, program: Program, tmp_path: Path, encoder: Path
) -> None:
    (tmp_path / "deep").mkdir()
    text = (sst / "sst.toml").read_text()
    for name, home in ("./tiny", "."), ("../tiny", "deep"):
        (tmp_path / home / "own.toml").write_text(text.replace(str(encoder), name))
        wanted = str(tmp_path / "tiny")
        assert load(f"{home}/own.toml").experiment.encoder.name == wanted
        assert load(f"{home}/own.toml", data_dir=encoder).experiment.encoder.name == wanted
    (tmp_path / "tiny").symlink_to(encoder)
    assert program("check", "deep/own.toml", "--data-dir", ".")[0] == 0
    assert load("quick", overrides=["encoder.name=./tiny"]).experiment.encoder.name == str(encoder.resolve())
    assert load("deep/own.toml", overrides=["encoder.name=tiny"]).experiment.encoder.name == "tiny"


def test_ctrl_c_is_told(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smoothtune.config.catalogue.catalogue", interrupted)
    assert program("list") == (130, "", "smoothtune: interrupted\n")


def test_no_summary_of_a_command_is_cut(program: Program) -> None:
    assert "..." not in program("--help")[1].partition("Commands:")[2]
