"""What stands in data, names of files or arguments is shown on a terminal, and never obeyed by it."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.text import Text

import smoothtune.cli
from smoothtune.cli.main import main
from smoothtune.cli.progress_column import PlainColumn
from smoothtune.cli.tables import PlainConsole
from smoothtune.cli.tables import table as table_of
from smoothtune.errors import Problem
from smoothtune.terminal_text import printable, shown
from tests.small_data import table

ESCAPE, OVERRIDE, MARKUP = "\x1b[2J\x1b]0;x\x07", "\u202egnorw\u202c\x9b31m\x7f", "[red]:cat:[/red]"
LABELS = (f"one{ESCAPE}", f"two{OVERRIDE}", f"three{MARKUP}")
COLUMN = f"label{ESCAPE}{MARKUP}"
TEXTS = tuple(f"the {word} {ESCAPE}{OVERRIDE} {MARKUP}" for word in ("cat", "sun", "rain", "moon"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 你好 \u00a0\U0001f600", "plain é 你好 \u00a0\U0001f600"),
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u200c\u0631\u0648\u0645"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
        ("\x00\x07\x1b[31m\x7f\x85\x9b", r"\x00\x07\x1b[31m\x7f\x85\x9b"),
        ("a\tb\nc\rd", r"a\tb\nc\rd"),
        ("\u202a\u202e\u2066\u2069\u200f\u061c", r"\u202a\u202e\u2066\u2069\u200f\u061c"),
        ("\u2028\u2029\ufeff\u200b\ud800", r"\u2028\u2029\ufeff\u200b\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("[red]x[/red] :cat:", "[red]x[/red] :cat:"),
    ],
)  # fmt: skip
def test_what_a_terminal_obeys_is_written_out(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text, lines=True) == expected.replace(r"\t", "\t").replace(r"\n", "\n")
    assert printable(expected) == expected


def test_every_control_character_is_written_out() -> None:
    everything = [chr(code) for code in range(sys.maxunicode + 1)]
    kept = {character for character in everything if printable(character) == character}
    assert not [character for character in kept if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")]
    assert not [character for character in kept if unicodedata.bidirectional(character) in BIDIRECTIONAL]
    assert len(kept) > 1_000_000


BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_the_console_prints_no_markup_no_emoji_codes_and_nothing_to_obey(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(width=160)
    console.print(f"{MARKUP} {ESCAPE}\nnext", soft_wrap=True)
    console.print(table_of([MARKUP, COLUMN], [[MARKUP, f"a\nb{OVERRIDE}"]]))
    out = capsys.readouterr().out
    assert not _obeyed(out)
    assert out.count(MARKUP) == 4
    assert r"a\nb\u202e" in out


def test_the_columns_of_a_bar_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.progress import Progress

    console = PlainConsole(width=160)
    with Progress(PlainColumn("{task.description}"), console=console) as bar:
        bar.add_task(f"{MARKUP}{ESCAPE}")
    out = capsys.readouterr().out
    assert printable(f"{MARKUP}{ESCAPE}") in out
    assert not _obeyed(out)
    assert isinstance(PlainColumn("x").render(bar.tasks[0]), Text)


def test_problems_show_what_stands_in_files() -> None:
    assert str(Problem(f"a{ESCAPE}.csv:1", f"got {OVERRIDE}")) == (
        r"a\x1b[2J\x1b]0;x\x07.csv:1: got \u202egnorw\u202c\x9b31m\x7f"
    )


def test_streams_that_are_no_terminal_get_the_data() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((io.StringIO(), f"{ESCAPE}\t\n"), (Terminal(), printable(ESCAPE) + "\t\n")):
        given = shown(stream)
        given.write(f"{ESCAPE}\t\n")
        given.flush()
        assert stream.getvalue() == expected


def test_commands_print_by_way_of_the_tables_module_alone() -> None:
    """`print` and `typer.echo` would let escapes through."""
    calls, seen = [], 0
    for path in sorted(Path(smoothtune.cli.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "typer.echo",
                "Console",
                "click.echo",
            ):
                calls.append(f"{path.name}: {ast.unparse(node)}")
            seen += isinstance(node, ast.Call) and ast.unparse(node.func) in ("say", "give", "give_json")
    assert calls == [
        "main.py: typer.echo(f'smoothtune {__version__}')",
        "main.py: print(printable(f'smoothtune: {error}', lines=True), file=sys.stderr)",
    ]
    assert seen >= 15


def _obeyed(output: str, *, raw: tuple[str, ...] = ()) -> list[str]:
    """The characters of `output` that a terminal obeys, but for line ends, tabs and those of `raw`."""
    for part in raw:
        output = output.replace(part, "")
    return [character for character in output if printable(character) != character and character not in "\n\t"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with an experiment of one task whose names, labels and texts hold escapes and markup."""
    folder = tmp_path_factory.mktemp("hostile") / f"in{ESCAPE.replace('/', '')}{MARKUP.replace('/', '')}"
    folder.mkdir()
    for split, count in (("train", 42), ("dev", 24)):
        rows = [f"{TEXTS[row % 4]} {row}\t{LABELS[row % 3]}" for row in range(count)]
        # repeated, contradicted, rare
        rows += [rows[0], f"{TEXTS[0]} 0\t{LABELS[1]}", f"the moon\t{LABELS[0]}x"]
        lines = [f"text{OVERRIDE}\t{COLUMN}", *rows]
        (folder / f"mood{OVERRIDE}.{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    wanted = table(tiny_encoder, stop={"max_epochs": 1})
    wanted["tasks"] = {"mood": {**wanted["tasks"]["mood"], "text": f"text{OVERRIDE}", "label": COLUMN}}
    wanted["tasks"]["mood"] |= {split: f"mood{OVERRIDE}.{split}.tsv" for split in ("train", "dev")}
    wanted["trunks"] = {"single": wanted["trunks"]["single"]}
    wanted["runtime"] = {"threads": 1}
    (folder / f"small{MARKUP.replace('/', '')}{OVERRIDE}.toml").write_text(tomli_w.dumps(wanted), encoding="utf-8")
    return folder


class Program:
    """The program, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, folder: Path, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self._monkeypatch.chdir(folder)
        self._monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        self._monkeypatch.setattr(sys, "argv", ["smoothtune", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        streams = self._capsys.readouterr()
        return int(ended.value.code or 0), streams.out, streams.err


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program, in this process."""
    return Program(capsys, monkeypatch)


def on_terminal(folder: Path, *arguments: str) -> str:
    """What the program prints on a terminal, without the returns that the terminal adds."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "smoothtune", *arguments]
    ours, its = pty.openpty()
    parts = [b""]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=its, stderr=subprocess.DEVNULL) as child:
        os.close(its)
        with suppress(OSError):  # the program has closed the terminal
            while parts.append(os.read(ours, 1 << 16)) or parts[-1]:
                pass
    os.close(ours)
    assert child.returncode == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def test_commands_show_hostile_data_and_obey_none_of_it(hostile: Path, program: Program) -> None:
    (experiment,) = (path.name for path in hostile.glob("small*.toml"))
    (dev,) = (path.name for path in hostile.glob("*.dev.tsv"))
    folder = f"run{MARKUP.replace('/', '')}{OVERRIDE}"
    for arguments in (
        ["check", experiment],
        ["check", experiment, "--json"],
        ["train", experiment, "--run-dir", folder],
        ["evaluate", folder, "--words-alone", "--per-class"],
        ["evaluate", folder, "--json"],
        ["evaluate", folder, "--data", f"mood={dev}"],
        ["predict", folder, "--task", "mood", dev, "--probabilities", "--out", f"out{OVERRIDE}.tsv"],
    ):
        code, out, err = program(hostile, *arguments)
        assert (code, _obeyed(out), _obeyed(err)) == (0, [], []), (arguments, err)
        if "--json" in arguments:
            assert out.isascii()
            assert LABELS[0] in json.dumps(json.loads(out), ensure_ascii=False).encode().decode("unicode_escape")
        elif arguments[0] in ("check", "evaluate"):
            for label in LABELS:
                assert printable(label) in out + err, arguments
    answers = (hostile / f"out{OVERRIDE}.tsv").read_text(encoding="utf-8")
    assert all(text in answers for text in TEXTS)
    assert any(label in answers for label in LABELS)


def test_answers_on_a_terminal_are_shown_and_in_a_pipe_are_the_data(hostile: Path, program: Program) -> None:
    (experiment,) = (path.name for path in hostile.glob("small*.toml"))
    (dev,) = (path.name for path in hostile.glob("*.dev.tsv"))
    assert program(hostile, "train", experiment, "--run-dir", "plain")[0] == 0
    _, piped, _ = program(hostile, "predict", "plain", "--task", "mood", dev)
    assert all(text in piped for text in TEXTS)
    for form in ("tsv", "jsonl"):
        out = on_terminal(hostile, "predict", "plain", "--task", "mood", dev, "--format", form)
        assert not _obeyed(out)
        assert MARKUP in out
    out = on_terminal(hostile, "show", experiment)
    assert not _obeyed(out)
    assert MARKUP in out
    assert program(hostile, "show", experiment)[1] == (hostile / experiment).read_text(encoding="utf-8")


def wrong_uses(name: str) -> list[Any]:
    return [
        ["list", name],
        ["list", "trunks", name],
        [name],
        [f"--{name}"],
        ["train", name],
        ["train", "demo", "--seed", name],
        ["train", "demo", "--set", f"{name}=1"],
        ["train", "demo", "--set", f"tasks.reviews.train={name}", "--run-dir", name],
        ["check", f"{name}.toml"],
        ["evaluate", name],
        ["predict", name, "--task", "mood"],
        ["resume", name],
    ]


def test_errors_show_arguments_and_obey_none_of_them(tmp_path: Path, program: Program) -> None:
    for arguments in wrong_uses(f"a{ESCAPE}{OVERRIDE}"):
        code, out, err = program(tmp_path, *arguments)
        assert (code, _obeyed(out), _obeyed(err)) == (2, [], []), arguments
        assert r"\x1b[2J" in err.replace("\\\\", "\\") or "--seed" in arguments, arguments
