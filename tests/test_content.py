"""The content of files: right however it is read, remembered while nothing changes, and never a second reading."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import pytest

from smoothtune.data import content as content_module
from smoothtune.data.checks import RowSpec
from smoothtune.data.content import HashedFile, KnownContents, Reading, content_of, read_sha256
from smoothtune.data.delimited import LINE_LIMIT
from smoothtune.data.rows import RowTable, prepare_rows
from smoothtune.data.source import resolve_source

SPEC = RowSpec(("text",), "label", "binary")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as unchanging at once."""
    monkeypatch.setattr(content_module, "_SETTLED", -1)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of every read from a hashed file."""
    counts: list[int] = []
    plain = HashedFile.readinto

    def counted(self: HashedFile, into: bytearray) -> int | None:
        count = plain(self, into)
        counts.append(count or 0)
        return count

    monkeypatch.setattr(HashedFile, "readinto", counted)
    return counts


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("lines", [0, 1, 3, 200_000])
def test_the_hash_is_that_of_the_whole_file_however_much_of_it_is_read(tmp_path: Path, lines: int) -> None:
    data = b"".join(b"line %d of some\n" % number for number in range(200_000))
    path = tmp_path / "file"
    path.write_bytes(data)
    known = KnownContents(tmp_path)
    with Reading(path, known) as reading:
        assert isinstance(reading.file, io.BufferedReader)
        assert [reading.file.readline() for _ in range(lines)] == data.splitlines(keepends=True)[:lines]
        assert reading.content() == sha256(data) == read_sha256(path)


@pytest.mark.usefixtures("settled")
def test_a_file_is_remembered_until_it_changes(tmp_path: Path) -> None:
    path, known = tmp_path / "file", KnownContents(tmp_path / "cache")
    path.write_bytes(b"one")
    assert known.remembered(path) is None
    assert known.of(path) == known.remembered(path) == sha256(b"one")
    kept = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # the time of change of the inode tells
    assert known.remembered(path) is None
    assert known.of(path) == sha256(b"two")
    path.write_bytes(b"three")
    assert known.of(path) == sha256(b"three")
    other = tmp_path / "other"
    other.write_bytes(b"four.")
    os.replace(other, path)
    assert known.of(path) == sha256(b"four.")


def test_a_file_that_was_just_written_is_looked_at_again(tmp_path: Path) -> None:
    path, known = tmp_path / "file", KnownContents(tmp_path / "cache")
    path.write_bytes(b"one")
    assert known.of(path) == sha256(b"one")
    assert known.remembered(path) is None
    assert known.has_size(path)


WHOLE = {"format": 1, "sha256": "0" * 64}
STAMP = ("path", "size", "inode", "modified", "changed", "looked")
DAMAGED = {
    "empty": b"",
    "cut": b'{"format": 1, "sha2',
    "bytes": b"\xff\x00",
    "list": b"[]",
    "null": b"null",
    "no stamp": json.dumps(WHOLE).encode(),
    "other stamp": json.dumps({**WHOLE, "stamp": {"path": "file"}}).encode(),
    "new stamp": json.dumps({**WHOLE, "stamp": dict.fromkeys((*STAMP, "device"), 0)}).encode(),
}


def only_entry(cache: Path) -> Path:
    (found,) = (cache / "contents").iterdir()
    return found


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_entry_counts_as_nothing_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    path, known = tmp_path / "file", KnownContents(tmp_path / "cache")
    path.write_bytes(b"one")
    known.of(path)
    only_entry(tmp_path / "cache").write_bytes(DAMAGED[damage])
    assert known.remembered(path) is None
    assert known.of(path) == known.remembered(path) == sha256(b"one")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {}])
def test_an_entry_of_another_format_counts_as_nothing(tmp_path: Path, change: dict[str, int | None]) -> None:
    path, known = tmp_path / "file", KnownContents(tmp_path / "cache")
    path.write_bytes(b"one")
    known.of(path)
    entry = only_entry(tmp_path / "cache")
    kept = json.loads(entry.read_text())
    del kept["format"]
    entry.write_text(json.dumps({**kept, **change}))
    assert known.remembered(path) is None
    entry.write_text(json.dumps({**kept, "format": 1}))
    assert known.remembered(path) == sha256(b"one")


@pytest.mark.usefixtures("settled")
def test_a_folder_has_the_content_of_its_files_and_their_names(tmp_path: Path, readings: list[int]) -> None:
    folder, known = tmp_path / "folder", KnownContents(tmp_path / "cache")
    (folder / "in").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "in" / "b").write_bytes(b"2")
    first = known.of(folder)
    assert first == content_of(folder)
    del readings[:]
    assert known.of(folder) == first
    assert readings == []
    (folder / "a").rename(folder / "c")
    assert known.of(folder) != first


def prepare(folder: Path, name: str) -> RowTable:
    return prepare_rows(SPEC, resolve_source(name, folder), cache=folder / "cache", name="made")


def write(path: Path, word: str) -> int:
    """A file of some MiB; its size."""
    path.write_text("text\tlabel\n" + "".join(f"{word} text {number}\t{number % 2}\n" for number in range(100_000)))
    return path.stat().st_size


@pytest.mark.usefixtures("settled")
def test_a_source_is_read_once_ever(tmp_path: Path, readings: list[int]) -> None:
    size = write(tmp_path / "a.tsv", "good")
    first = prepare(tmp_path, "a.tsv")
    assert sum(readings) == size > 1 << 20
    del readings[:]
    again = prepare(tmp_path, "a.tsv")
    assert again.content_key == first.content_key
    assert again.source.fingerprint() == first.source.fingerprint() == sha256((tmp_path / "a.tsv").read_bytes())
    assert readings == []


@pytest.mark.usefixtures("settled")
def test_a_copy_is_hashed_and_not_read_as_rows(
    tmp_path: Path, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = write(tmp_path / "a.tsv", "good")
    write(tmp_path / "b.tsv", "good")
    first = prepare(tmp_path, "a.tsv")
    del readings[:]
    with monkeypatch.context() as patch:
        patch.setattr("smoothtune.data.row_writer.read_records", None)
        assert prepare(tmp_path, "b.tsv").content_key == first.content_key
    assert sum(readings) == size
    write(tmp_path / "b.tsv", "best")  # of the same size, and other rows
    other = prepare(tmp_path, "b.tsv")
    assert other.content_key != first.content_key
    assert other.texts([0]) == [("best text 0",)]


def test_reading_that_ends_early_still_names_the_whole_file(tmp_path: Path) -> None:
    for name, more in (("a.tsv", "more"), ("b.tsv", "mory")):
        endless = "x" * (LINE_LIMIT + 1)
        (tmp_path / name).write_text(f"text\tlabel\ngood\t1\n{endless}\n" + f"{more}\t1\n" * 300_000)
    tables = [prepare(tmp_path, name) for name in ("a.tsv", "b.tsv")]
    assert [table.findings[0].kind for table in tables] == ["file", "file"]
    for table, name in zip(tables, ("a.tsv", "b.tsv"), strict=True):
        assert table.source.fingerprint() == sha256((tmp_path / name).read_bytes())
    assert tables[0].content_key != tables[1].content_key
