"""Experiments and data of strangers: what names nothing, leads out, never ends or is damaged is told as such."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smoothtune.config.loading import load
from smoothtune.data import arrow_files
from smoothtune.data.readers import read_records
from smoothtune.data.source import Flaw, Record, resolve_source
from smoothtune.errors import ConfigurationError, DataError, UsageError

WANTED = ("text", "label")
ROWS = {"text": ["good", "bad"], "label": [1, 0]}
SMALL = '[tasks.a]\nkind = "binary"\ntext = "text"\nlabel = "label"\ntrain = "a.tsv"\n'

EXPERIMENTS: dict[str, tuple[bytes, str]] = {
    "deep": (b"a = " + b"[" * 100_000, "is not valid TOML: is nested more than 64 levels deep"),
    "deep keys": (b".".join([b"a"] * 100) + b" = 1", "is not valid TOML: is nested more than 64 levels deep"),
    "endless key": (b".".join([b"a"] * 100_000) + b" = 1", "is not valid TOML: line 1 has more than 200 full stops"),
    "digits": (b"seed = " + b"9" * 5000, "is not valid TOML: Exceeds the limit (4300 digits)"),
    "hexadecimal": (b"seed = 0x" + b"f" * 5000, "is not valid TOML: holds a whole number of more than 64 bits"),
    "large": (b"#" * ((1 << 24) + 1), "is not valid TOML: is larger than 16 MiB"),
    "not UTF-8": (b"name = '\xff'", "is not valid TOML: 'utf-8' codec"),
    "half a character": (rb'name = "\ud800"', "is not valid TOML: "),
    "NUL": (b"name = '\0'", "is not valid TOML: "),
    "escapes in a key": (b'"\\u001b[2J\\n" = 1', r"'\x1b[2J\n': unknown key."),
    "long key": (b"a" * 100_000 + b" = 1", "'" + "a" * 76 + "...: unknown key."),
    "long kind": (b"[tasks.a]\nkind = '" + b"b" * 100_000 + b"'", "got '" + "b" * 76 + "..., expected one of"),
    "long choice": (
        SMALL.encode() + b"[encoder]\nimplementation = '" + b"n" * 100_000 + b"'",
        "encoder.implementation: got '" + "n" * 76 + "..., expected one of",
    ),
    "encoder": (
        SMALL.encode() + b'[encoder]\nname = "./a\\u0000b"',
        "encoder.name: './a\\x00b' is no path (embedded null",
    ),
}


@pytest.mark.parametrize("case", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_experiments_that_cannot_be_read(tmp_path: Path, case: tuple[bytes, str]) -> None:
    (tmp_path / "a.toml").write_bytes(case[0])
    began = time.perf_counter()
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "a.toml")
    assert case[1] in str(caught.value)
    assert len(str(caught.value)) < 3_000
    assert time.perf_counter() - began < 60  # without its bounds the longest of them takes hours


def test_of_very_many_problems_the_first_hundred_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        SMALL + "".join(f"[[stages]]\nname = 'x'\nbatch_size = {number}\n" for number in range(1, 302))
    )
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "a.toml")
    lines = str(caught.value).splitlines()
    assert (len(caught.value.problems), len(lines), lines[-1]) == (300, 102, "  and 200 more")


def test_what_is_no_file_of_an_experiment(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UsageError, match=r"pipe\.toml: there is no such experiment file"):
        load(tmp_path / "pipe.toml")
    for name in ("a\0b", "a" * 5000, "~nobody-at-all/x"):
        with pytest.raises(
            UsageError, match=r"cannot be the path of an experiment file|there is no such experiment file"
        ):
            load(f"{name}.toml")


def test_values_of_set_that_are_too_deep() -> None:
    with pytest.raises(UsageError, match=r"--set: the value '\[\[\[+' is nested more than 64 levels deep"):
        load("demo", overrides=["name=" + "[" * 5000])


def saved(folder: Path) -> Path:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def flaws(text: str, folder: Path) -> list[Flaw]:
    return [found for found in read_records(resolve_source(text, folder), WANTED) if isinstance(found, Flaw)]


def test_saved_folders_are_read_without_what_they_name(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "dataset_info.json").write_text('{"features": {"text": {"_type": "Path"}}}')
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_format_type": "torch", "_format_columns": ["x"]}))
    assert list(read_records(resolve_source("saved", tmp_path), WANTED)) == [
        Record(1, ("good", "1")),
        Record(2, ("bad", "0")),
    ]


def names(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file}]}))


def out(folder: Path) -> None:
    (folder / "x.arrow").symlink_to("/etc/hostname")
    names("x.arrow")(folder)


def invalid(folder: Path) -> None:
    """Offsets that lead beyond the text: read as they stand, they give out memory that is not the file's."""
    path = folder / "data-00000-of-00001.arrow"
    offsets, beyond = (b"".join(at.to_bytes(4, "little") for at in places) for places in ((0, 4, 7), (0, 1 << 30, 7)))
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, beyond))


def packed(folder: Path) -> None:
    """A megabyte of one letter in some bytes."""
    path = folder / "data-00000-of-00001.arrow"
    batch = pa.record_batch([pa.array(["a" * 1_000_000]), pa.array([1])], names=list(WANTED))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema, options=options) as writer:
        writer.write_batch(batch)


def endless(folder: Path) -> None:
    """A batch of very many rows that hold nothing, and need no room."""
    path = folder / "data-00000-of-00001.arrow"
    batch = pa.record_batch([pa.nulls(10**15), pa.nulls(10**15)], names=list(WANTED))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


SAVED: dict[str, tuple[Callable[[Path], object], str]] = {
    "file outside": (names("../other.arrow"), "state.json names '../other.arrow', which is no file of the folder"),
    "absolute": (names("/etc/hostname"), "state.json names '/etc/hostname', which is no file of the folder"),
    "a number": (names(3), "state.json names 3, which is no file of the folder"),  # type: ignore[arg-type]
    "link": (out, "is a link that leads out of its folder"),
    "no list": (lambda folder: (folder / "state.json").write_text("[]"), "state.json lists no data files"),
    "deep": (lambda folder: (folder / "state.json").write_text("[" * 9_999), "is nested more than 64 levels deep"),
    "offsets": (invalid, "In column 0: Invalid: "),
    "no Arrow": (
        lambda folder: (folder / "data-00000-of-00001.arrow").write_bytes(b"\xff" * 99),
        "is a damaged folder (",
    ),
}


@pytest.mark.parametrize("case", SAVED.values(), ids=SAVED)
def test_damaged_saved_folders(tmp_path: Path, case: tuple[Callable[[Path], object], str]) -> None:
    case[0](saved(tmp_path))
    with pytest.raises(DataError, match="is a damaged folder") as caught:
        list(read_records(resolve_source("saved", tmp_path), WANTED))
    assert case[1] in str(caught.value)


def test_a_pipe_in_a_saved_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(saved(tmp_path) / "more.arrow")
    with pytest.raises(DataError, match=r"saved: cannot be read \(more\.arrow is a pipe, a device or a folder"):
        resolve_source("saved", tmp_path).fingerprint()


@pytest.mark.parametrize("content", ["[]", '{"splits": 3}', '{"splits": []}', '{"splits": ["../x"]}', "{", "[" * 9_999])
def test_lists_of_splits_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "dataset_dict.json").write_text(content)
    with pytest.raises(
        DataError, match=r"'splits:\.\./x': cannot be read \(.*\); name a file, or a folder that save_to_disk"
    ):
        resolve_source("splits:../x", tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "~nobody-at-all/x", "hf:~nobody-at-all/x:train", "packaged:a\0b"])
def test_sources_that_are_no_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(.*\); name a file, or a folder that save_to_disk wrote"):
        resolve_source(name, tmp_path)


@pytest.mark.parametrize("name", ["packaged:../catalogue.py", "packaged:/etc/passwd", "packaged:demo/../../x.tsv"])
def test_packaged_sources_stay_in_the_package(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads out of the package; name a file that is part of smoothtune"):
        resolve_source(name, tmp_path)


@pytest.mark.parametrize("path", ["../secret.csv", "{folder}/secret.csv", "../*.csv"])
def test_a_folder_of_data_names_no_others(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    (tmp_path / "local").mkdir()
    (tmp_path / "secret.csv").write_text("text,label\nsecret,1\n")
    files = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '{path}'\n"
    (tmp_path / "local" / "README.md").write_text(f"---\n{files.replace('{folder}', str(tmp_path))}---\n")
    with pytest.raises(DataError, match=r"README\.md names '.*secret\.csv', which is not in the folder"):
        list(read_records(resolve_source("hf:./local:train", tmp_path), WANTED))


def test_a_folder_of_data_with_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "local" / "deep").mkdir(parents=True)
    (tmp_path / "local" / "train.csv").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match=r"cannot be loaded: train\.csv is a link that leads out of its folder"):
        list(read_records(resolve_source("hf:./local:train", tmp_path), WANTED))
    (tmp_path / "local" / "train.csv").unlink()
    os.mkfifo(tmp_path / "local" / "deep" / "train.csv")
    with pytest.raises(DataError, match=r"cannot be loaded: deep/train\.csv is a pipe, a device or a folder"):
        list(read_records(resolve_source("hf:./local:train", tmp_path), WANTED))


def test_cells_of_parquet_that_cannot_be_values(tmp_path: Path) -> None:
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"text": latin, "label": [1]}), tmp_path / "a.parquet")
    (flaw,) = flaws("a.parquet", tmp_path)
    assert (flaw.kind, flaw.what) == (
        "file",
        "is not a Parquet file that can be read (In column 0: Invalid: Invalid UTF8 sequence at string index 0); write it again",
    )
    pq.write_table(pa.table({"text": pa.array([1 << 61], pa.timestamp("ms")), "label": [1]}), tmp_path / "b.parquet")
    (flaw,) = flaws("b.parquet", tmp_path)
    assert flaw.what.startswith("is not a Parquet file that can be read (Python int too large")


def test_cells_of_a_loaded_data_set_that_cannot_be_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    (tmp_path / "local").mkdir()
    times = pa.array([0, 1 << 61], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": times, "label": [1, 0]}), tmp_path / "local" / "train.parquet")
    (flaw,) = flaws("hf:./local:train", tmp_path)
    assert flaw.kind == "file"
    assert flaw.what.startswith("cannot be read any further (Python int too large")


def test_rows_of_parquet_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "_PARQUET_ROWS", 10)
    pq.write_table(pa.table({"text": pa.nulls(100_000), "label": pa.nulls(100_000)}), tmp_path / "a.parquet")
    (flaw,) = flaws("a.parquet", tmp_path)
    assert "says that it has 100,000 rows, more than a file of its size can hold" in flaw.what


def test_dictionaries_of_saved_folders_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path) / "data-00000-of-00001.arrow"
    batch = pa.record_batch([pa.array(["good", "bad"]).dictionary_encode(), pa.array([1, 0])], names=list(WANTED))
    for compression in (None, "lz4"):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        if compression is None:
            assert list(read_records(resolve_source("saved", tmp_path), WANTED))[1] == Record(2, ("bad", "0"))
        else:
            with pytest.raises(DataError, match="is compressed"):
                list(read_records(resolve_source("saved", tmp_path), WANTED))


JSON_LINES = {
    "key twice": (b'{"text": "a", "text": "b", "label": 1}', "is not JSON (the key 'text' stands twice); write one"),
    "deep": (b'{"text": ' + b"[" * 100_000, "is nested too deeply; write one JSON object of texts and numbers a line"),
    "digits": (b'{"text": ' + b"9" * 5000 + b"}", "is not JSON (Exceeds the limit (4300 digits)"),
    "table": (b'{"text": {"a": [1]}, "label": 1}', "column 'text' holds a dict, not text or a number"),
    "many keys": (
        json.dumps({f"k{number}": 1 for number in range(10_000)}).encode(),
        "'k28', 'k29' and 9,970 more",
    ),
    "long key": (b'{"' + b"k" * 10_000 + b'": 1}', f"its columns are: '{'k' * 200}'..."),
}


@pytest.mark.parametrize("case", JSON_LINES.values(), ids=JSON_LINES)
def test_lines_that_are_no_rows(tmp_path: Path, case: tuple[bytes, str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(case[0] + b'\n{"text": "good", "label": 1}\n')
    flaw, record = read_records(resolve_source("a.jsonl", tmp_path), WANTED)
    assert record == Record(2, ("good", "1"))
    assert isinstance(flaw, Flaw)
    assert case[1] in flaw.what
    assert len(flaw.what) < 2_000


@pytest.mark.parametrize("end", ["", "\tx\tx"])
def test_a_header_of_a_million_columns_is_told_in_time(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.tsv").write_text("\t".join(f"c{number}" for number in range(1_000_000)) + f"{end}\n")
    began = time.perf_counter()
    found = flaws("a.tsv", tmp_path)
    assert time.perf_counter() - began < 60  # counted one by one they take days
    assert len(found) == 2
    assert "'c28', 'c29' and 999,9" in found[-1].what
    assert all(len(flaw.what) < 1_000 for flaw in found)


def test_one_line_without_an_end_is_left_where_it_is_too_long(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(1 << 32)  # four GiB that take no room
    (flaw,) = flaws("a.csv", tmp_path)
    assert flaw.what.startswith("the header cannot be read (a line is longer than 16 MiB)")
