"""Whatever is done to an input, the program's words or answers change: nothing is taken in silence.

`DAMAGES` is the table, by kind of source. A kind of source without damages fails, and so does one that is not in `WRITERS`:
a new reader comes with rows here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.data.source import SourceKind
from smoothtune.workflow.answer_file import FORMATS
from smoothtune.workflow.train import train

pytestmark = pytest.mark.usefixtures("own_cache")

WORDS = ("cat", "dog", "rain", "sun", "moon", "star")
Rows = list[dict[str, Any]]


def clean(begin: int, count: int) -> Rows:
    rows = range(begin, begin + count)
    return [{"text": f"the {WORDS[row % 6]} {row} is big", "label": ("neg", "pos")[row % 2]} for row in rows]


def write_delimited(folder: Path, rows: Rows, separator: str, name: str) -> str:
    lines = [separator.join(("text", "label")), *(separator.join(map(str, row.values())) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return name


def write_jsonl(folder: Path, rows: Rows) -> str:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "a.jsonl"


def write_parquet(folder: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return "a.parquet"


def write_saved(folder: Path, rows: Rows) -> str:
    with_classes(rows).save_to_disk(str(folder / "saved"))
    return "saved"


def write_hub(folder: Path, rows: Rows) -> str:
    (folder / "local").mkdir()
    with_classes(rows).to_parquet(str(folder / "local" / "train.parquet"))
    return "hf:./local:train"


def with_classes(rows: Rows) -> Dataset:
    """Class labels where the labels are the classes of the clean rows, or -1; text otherwise."""
    names = {"neg": 0, "pos": 1, -1: -1}
    if not all(row["label"] in names for row in rows):
        return Dataset.from_list(rows)
    features = Features(text=Value("string"), label=ClassLabel(names=["neg", "pos"]))
    return Dataset.from_list([{**row, "label": names[row["label"]]} for row in rows], features=features)


WRITERS: dict[str, Callable[[Path, Rows], str]] = {
    "tsv": lambda folder, rows: write_delimited(folder, rows, "\t", "a.tsv"),
    "csv": lambda folder, rows: write_delimited(folder, rows, ",", "a.csv"),
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "saved": write_saved,
    "hub": write_hub,
}


@dataclass(frozen=True)
class Damage:
    """What is done to rows in place, and what `check` then says; `rows`: and how many training rows there then are."""

    name: str
    do: Callable[[Rows], Any]
    says: str
    rows: int | None = None


def relabel(label: Any, *places: int) -> Callable[[Rows], None]:
    def do(rows: Rows) -> None:
        for place in places:
            rows[place]["label"] = label

    return do


def quote(rows: Rows) -> None:
    """A text begins with a quote, and a later one ends with one."""
    rows[2]["text"] = f'"{rows[2]["text"]}'
    rows[6]["text"] = f'{rows[6]["text"]}"'


def headed(rows: Rows) -> None:
    rows.insert(7, {"text": "text", "label": "label"})


def texts(text: str) -> Callable[[Rows], None]:
    def do(rows: Rows) -> None:
        for number, row in enumerate(rows):
            row["text"] = f"{text} {number}" if text.isascii() else text * (number + 1)

    return do


ROWS = 24
LABELS = [
    Damage("a header in the middle", headed, "repeats the header"),
    Damage("nan", relabel("nan", 1, 3, 4, 6, 9), "'nan' (5) may mean no label"),
    Damage("N/A", relabel("N/A", 1, 3, 4, 6, 9), "'N/A' (5) may mean no label"),
    Damage("-1", relabel("-1", 1, 3, 4, 6, 9), "'-1' (5) may mean no label"),
    Damage("case", relabel("Neg", 0, 2, 4), "labels alike but for case or spelling: 'Neg' (3) and 'neg' (9)"),
    Damage("case of one row", relabel("Neg", 0), "spelt almost like another: 'Neg' at"),
    Damage("several labels", relabel("neg|pos", 0, 2, 4), "'neg|pos' (3) may mean several labels in one"),
    Damage("a list as text", relabel('["neg" "pos"]', 0, 2, 4), "may mean several labels in one"),
    Damage("no label", relabel("", 0, 5), "2 rows left out: no label", ROWS - 2),
    Damage("an empty text", lambda rows: rows[3].update(text=""), "column 'text' is empty"),
    Damage("long texts", texts("the sun is big " * 20), "24 of 24 texts (100%) are longer than 24 tokens"),
    Damage("strange script", texts("\u12a0"), "24 of 24 texts have no word that the encoder's tokenizer knows"),
    Damage(
        "the same text with another label", lambda rows: rows[1].update(text=rows[0]["text"]), "more than one label"
    ),
]
TYPED = [
    Damage("a list", relabel(["neg", "pos"], 0), "holds a list, not text or a number"),
    Damage("null", relabel(None, 0, 5), "2 rows left out: no label", ROWS - 2),
]
MINUS_ONE = Damage("-1 in class labels", relabel(-1, 0, 5), "2 rows left out: no label", ROWS - 2)
DAMAGES: dict[str, list[Damage]] = {
    "tsv": [
        *LABELS,
        Damage("quotes", quote, "1 line has quotation marks that enclose no whole field", ROWS),
    ],
    "csv": [
        *LABELS,
        Damage("quotes", quote, "1 row was read from several lines, from a quotation mark to the next one", ROWS - 4),
    ],
    "jsonl": [
        *LABELS,
        *TYPED,
        Damage("no key", lambda rows: rows[2].pop("label"), "1 row left out: no label", ROWS - 1),
    ],
    "parquet": [*LABELS, TYPED[1]],
    "saved": [*LABELS, TYPED[1], MINUS_ONE],
    "hub": [*LABELS, MINUS_ONE],
}
QUOTES_OF_CSV = ("csv", "a list as text")  # this one's own quotes make a row of another shape there
CASES = [
    (kind, damage) for kind, damages in DAMAGES.items() for damage in damages if (kind, damage.name) != QUOTES_OF_CSV
]


def test_every_kind_of_source_is_in_the_table() -> None:
    kinds = set(get_args(SourceKind))
    assert set(WRITERS) == set(DAMAGES) == kinds
    assert all(len(DAMAGES[kind]) >= len(LABELS) for kind in kinds)
    assert len(CASES) >= 80
    assert set(FORMATS) <= kinds  # answers can be read again


def written(folder: Path, encoder: Path, kind: str, damage: Damage | None) -> Path:
    """An experiment on the rows of a kind of source, in a folder of its own."""
    folder.mkdir()
    rows = clean(0, ROWS)
    if damage is not None:
        damage.do(rows)
    path = folder / "my.toml"
    dev = write_delimited(folder, clean(100, 8), "\t", "dev.tsv")
    path.write_text(
        f'[encoder]\nname = "{encoder}"\nmax_length = 24\n[tasks.t]\nkind = "classification"\ntext = "text"\n'
        f'label = "label"\ntrain = "{WRITERS[kind](folder, rows)}"\ndev = "{dev}"\n[[stages]]\nstop = {{ max_steps = 1 }}\n'
    )
    return path


def check(path: Path) -> tuple[str, dict[str, Any]]:
    """What `check` says, and the training split of its JSON; empty where it refuses the data."""
    told = CliRunner().invoke(app, ["check", str(path)])
    if told.exception is not None and not isinstance(told.exception, SystemExit):
        return str(told.exception), {}
    as_json = CliRunner().invoke(app, ["check", str(path), "--json"], catch_exceptions=False)
    return told.output, json.loads(as_json.stdout)["tasks"]["t"]["train"]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_clean_rows_are_read_without_a_word(tiny_encoder: Path, tmp_path: Path, kind: str) -> None:
    said, found = check(written(tmp_path / "clean", tiny_encoder, kind, None))
    assert found["rows"] == ROWS
    assert found["balance"] == {"neg": 12, "pos": 12}
    assert [line for line in said.splitlines() if "t.train" in line and ("warning" in line or "note" in line)] == []


@pytest.mark.parametrize(("kind", "damage"), CASES, ids=[f"{kind}: {damage.name}" for kind, damage in CASES])
def test_a_damage_is_told(tiny_encoder: Path, tmp_path: Path, kind: str, damage: Damage) -> None:
    said, found = check(written(tmp_path / "damaged", tiny_encoder, kind, damage))
    assert damage.says in said
    if damage.rows is not None:
        assert found["rows"] == damage.rows


TOLD_BY_ALL = ("quotes", "long texts", "strange script")
AGAIN = [(kind, damage) for kind, damage in CASES if damage.name in TOLD_BY_ALL]


@pytest.fixture(scope="module")
def run(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train(written(folder / "data", tiny_encoder, "tsv", None), run_dir=folder / "run")
    return folder / "run"


@pytest.mark.parametrize(("kind", "damage"), AGAIN, ids=[f"{kind}: {damage.name}" for kind, damage in AGAIN])
def test_train_evaluate_and_predict_tell_it_too(
    tiny_encoder: Path, run: Path, tmp_path: Path, kind: str, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "damaged", tiny_encoder, kind, damage)
    monkeypatch.chdir(path.parent)
    source = next(line for line in path.read_text().splitlines() if line.startswith("train")).partition('"')[2][:-1]
    says = damage.says
    commands = [
        ["train", str(path), "--run-dir", str(tmp_path / "run")],
        ["evaluate", str(run), "--data", f"t={source}"],
        ["predict", str(run), "--task", "t", source],
    ]
    for command in commands:
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert says in result.stderr, command


@pytest.mark.parametrize("form", FORMATS)
def test_answers_are_in_the_format_that_their_name_says(run: Path, tmp_path: Path, form: str) -> None:
    source = WRITERS["tsv"](tmp_path, clean(0, 3))
    for out in (tmp_path / f"out.{form}", tmp_path / f"again.{form}"):
        result = CliRunner().invoke(
            app, ["predict", str(run), "--task", "t", str(tmp_path / source), "--out", str(out)]
        )
        assert result.exit_code == 0, result.output
        source = str(out)
    before, after = ((tmp_path / name).with_suffix(f".{form}").read_bytes() for name in ("out", "again"))
    assert before == after
