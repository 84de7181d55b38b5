"""Sources of every kind: how they are named, what they give, and what is said when they cannot be used."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smoothtune.data.hub import load_through_datasets
from smoothtune.data.readers import read_records
from smoothtune.data.source import Flaw, Record, Source, resolve_source
from smoothtune.data.values import cell_text, label_text, parse_number
from smoothtune.errors import DataError

WANTED = ("sentence", "sentiment")
ROWS = [
    {"id": 1, "sentence": "good", "sentiment": 1},
    {"id": 2, "sentence": "bad", "sentiment": 0},
    {"id": 3, "sentence": "none", "sentiment": None},
]
RECORDS = [("good", "1"), ("bad", "0"), ("none", "")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One folder with the same three rows in every kind of source."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    lines = [f"{row['id']}\t{row['sentence']}\t{'' if row['sentiment'] is None else row['sentiment']}" for row in ROWS]
    text = "\n".join(["id\tsentence\tsentiment", *lines, ""])
    (tmp_path / "a.tsv").write_text(text)
    (tmp_path / "a.csv").write_text(text.replace("\t", ","))
    for suffix in ("jsonl", "jsonlines", "json"):
        (tmp_path / f"a.{suffix}").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": dataset, "dev": dataset}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "local").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "local" / "train.parquet")
    return tmp_path


LINES, NUMBERED = (2, 3, 4), (1, 2, 3)
KINDS = [
    ("a.tsv", "tsv", LINES, "a.tsv:2"),
    ("a.csv", "csv", LINES, "a.csv:2"),
    ("a.jsonl", "jsonl", NUMBERED, "a.jsonl:1"),
    ("a.jsonlines", "jsonl", NUMBERED, "a.jsonlines:1"),
    ("a.json", "jsonl", NUMBERED, "a.json:1"),
    ("a.parquet", "parquet", NUMBERED, "a.parquet row 1"),
    ("saved", "saved", NUMBERED, "saved row 1"),
    ("splits:dev", "saved", NUMBERED, "splits:dev row 1"),
    ("hf:./local:train", "hub", NUMBERED, "hf:./local:train row 1"),
]


@pytest.mark.parametrize(("text", "kind", "lines", "place"), KINDS, ids=[case[0] for case in KINDS])
def test_every_kind_of_source_gives_the_same_records(
    folder: Path, text: str, kind: str, lines: tuple[int, ...], place: str
) -> None:
    source = resolve_source(text, folder)
    assert (source.kind, source.shown) == (kind, text)
    assert list(read_records(source, WANTED)) == [Record(*pair) for pair in zip(lines, RECORDS, strict=True)]
    assert source.place(lines[0]) == place
    assert source.place(0) == text
    assert source.fingerprint() == resolve_source(text, folder).fingerprint()
    missing = "has no column 'sentimen'; its columns are: 'id', 'sentence', 'sentiment'; did you mean 'sentiment'?"
    assert {flaw.what for flaw in read_records(source, ("sentimen",)) if isinstance(flaw, Flaw)} == {missing}


@pytest.mark.parametrize("name", ["a.tsv", "saved/state.json"])
def test_the_fingerprint_follows_the_content(folder: Path, name: str) -> None:
    source = resolve_source(name.partition("/")[0], folder)
    before = source.fingerprint()
    (folder / name).write_text((folder / name).read_text() + " ")
    assert source.fingerprint() != before


def test_hub_names_are_taken_apart(tmp_path: Path) -> None:
    source = resolve_source("hf:nyu-mll/glue/sst2:train[:100]", tmp_path)
    expected = Source("hub", source.shown, dataset_id="nyu-mll/glue", config="sst2", split="train[:100]")
    assert source == expected
    assert resolve_source("hf:SetFit/sst5:dev", tmp_path).config is None


def test_packaged_sources_start_in_the_package(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*smoothtune/config/packaged/none\.tsv;"):
        resolve_source("packaged:none.tsv", tmp_path)


HUB = "write hf:OWNER/NAME:SPLIT or hf:OWNER/NAME/CONFIG:SPLIT, for example hf:stanfordnlp/sst2:train"
REFUSED = [
    ("b.tsv", "no such file: {folder}/b.tsv; relative paths start at {folder}"),
    ("/nowhere/b.tsv", "no such file: /nowhere/b.tsv; check the path"),
    (
        "a.txt",
        "cannot read a .txt file; use one of .tsv, .csv, .jsonl, .jsonlines, .json, .parquet",
    ),
    ("splits", "has the splits train, dev; name one, as in splits:train"),
    ("splits:test", "has no split 'test'; its splits are: train, dev"),
    ("saved:train", "is one data set without splits; leave out ':train'"),
    (
        "local",
        "is a folder that save_to_disk did not write: {folder}/local; for other folders write hf:{folder}/local:SPLIT",
    ),
    ("hf:owner/name", f"names no split; {HUB}"),
    ("hf:name:train", f"is not the name of a data set; {HUB}"),
    ("hf:./none:train", "no such folder: {folder}/none; relative paths start at {folder}"),
    ("hf:/nowhere:train", "no such folder: /nowhere; check the path"),
]


@pytest.mark.parametrize(("text", "what"), REFUSED, ids=[case[0] for case in REFUSED])
def test_sources_that_are_refused(folder: Path, text: str, what: str) -> None:
    (folder / "a.txt").write_text("")
    with pytest.raises(DataError) as caught:
        resolve_source(text, folder)
    what = what.replace("{folder}", str(folder.resolve()))
    assert str(caught.value) == f"A data source cannot be used.\n  {text}: {what}"


def test_a_file_that_goes_away_and_a_damaged_folder(folder: Path) -> None:
    source = resolve_source("a.tsv", folder)
    (folder / "a.tsv").unlink()
    with pytest.raises(DataError, match=r"a\.tsv: cannot be read \(No such file or directory\): /"):
        source.fingerprint()
    next((folder / "saved").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"saved: is a damaged folder \(.+\); write it again with save_to_disk"):
        list(read_records(resolve_source("saved", folder), WANTED))


def test_a_split_that_is_not_there(folder: Path) -> None:
    what = r"hf:\./local:dev: cannot be loaded: Unknown split \"dev\".*; check the name, the split and the network"
    with pytest.raises(DataError, match=what):
        list(read_records(resolve_source("hf:./local:dev", folder), WANTED))


def test_a_hub_id_goes_to_load_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    dataset = load_through_datasets(str(folder / "local"), None, "train", "local")

    def load(*arguments: object, **options: object) -> datasets.Dataset:
        asked.append((arguments, options))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = resolve_source("hf:owner/name/config:dev", folder)
    assert source.fingerprint() == dataset._fingerprint
    assert [record.line for record in read_records(source, WANTED)] == [1, 2, 3]
    assert asked == [(("owner/name", "config"), {"split": "dev"})] * 2


JSON_LINES = [
    (b"[1, 2]", "bad JSON", "holds a list, not an object; write one JSON object a line"),
    (b"7", "bad JSON", "holds the value 7, not an object; write one JSON object a line"),
    (
        b'{"sentence": }',
        "bad JSON",
        "is not JSON (Expecting value: line 1 column 14 (char 13)); write one JSON object a line",
    ),
    (
        b'{"sentence": "caf\xe9", "sentiment": 1}',
        "not UTF-8",
        "byte 0xE9 at byte 18 of the line is not UTF-8; save the file as UTF-8",
    ),
    (
        b'{"sentence": "good", "label": 1}',
        "missing key",
        "has no column 'sentiment'; its columns are: 'sentence', 'label'",
    ),
    (
        b'{"sentence": ["good"], "sentiment": 1}',
        "not text",
        "column 'sentence' holds a list, not text or a number",
    ),
    (
        rb'{"sentence": "\ud800", "sentiment": 1}',
        "not UTF-8",
        "column 'sentence' has half of a surrogate pair; write whole characters",
    ),
]


@pytest.mark.parametrize(("line", "kind", "what"), JSON_LINES, ids=[case[2][:20] for case in JSON_LINES])
def test_bad_json_lines_are_told_and_reading_goes_on(tmp_path: Path, line: bytes, kind: str, what: str) -> None:
    good = b'{"sentiment": 1.0, "sentence": "good"}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([good, line, b"", good]))
    records = list(read_records(resolve_source("a.jsonl", tmp_path), WANTED))
    assert records == [Record(1, ("good", "1")), Flaw(kind, 2, what), Record(4, ("good", "1"))]


def test_an_endless_json_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smoothtune.data.delimited.LINE_LIMIT", 1 << 6)
    (tmp_path / "a.json").write_text('{"sentence": "good", "sentiment": 1}\n' + "[" * 100)
    flaw = list(read_records(resolve_source("a.json", tmp_path), WANTED))[-1]
    assert flaw == Flaw("file", 2, "the line is longer than 16 MiB; write one JSON object a line")


def test_what_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("text")
    (flaw,) = read_records(resolve_source("a.parquet", tmp_path), WANTED)
    assert isinstance(flaw, Flaw)
    assert flaw.kind == "file"
    assert flaw.what.startswith("is not a Parquet file that can be read (")


SPELLINGS = [
    (1, "1"),
    (1.0, "1"),
    (True, "1"),
    (False, "0"),
    ("1.0", "1"),
    (" 1 ", "1"),
    ("01", "01"),
    ("01.0", "01.0"),
    ("-0.0", "0"),
    (-0.0, "0"),
    (2.5, "2.5"),
    ("2.50", "2.50"),
    (Decimal("3.00"), "3"),
    (date(2020, 1, 2), "2020-01-02"),
    (None, ""),
    ("", ""),
    ("  ", ""),
    (float("nan"), ""),
    ("nan", "nan"),
]


@pytest.mark.parametrize(("value", "text"), SPELLINGS, ids=[repr(case[0]) for case in SPELLINGS])
def test_labels_have_one_spelling(value: object, text: str) -> None:
    assert label_text(value) == text
    assert label_text(text) == text


def test_cells_and_numbers() -> None:
    assert [cell_text(value) for value in (" 1.0 ", 1.0, None, [1], {}, b"x")] == [" 1.0 ", "1", "", None, None, None]
    assert [parse_number(text) for text in ("3.8", "-1", "1e3")] == [3.8, -1.0, 1000.0]
    assert [parse_number(text) for text in ("3,5", "1_0", "nan", "inf", "", "x")] == [None] * 6
