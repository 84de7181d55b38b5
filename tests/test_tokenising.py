"""Token columns: lengths and cutting, the cache and what names an entry, and tokenizers that cannot be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from smoothtune.data import tokenising
from smoothtune.data.columns import ColumnWriter
from smoothtune.data.tokenising import TokenColumn, encode, in_memory, load_tokenizer, tokenise, windows
from smoothtune.errors import ModelFileError
from smoothtune.files import WriteError
from smoothtune.nn.bundled import BUNDLED_FILES
from smoothtune.types import Input
from tests.backing import backed_by_a_file
from tests.tiny import write_tokenizer

CLS, SEP = 101, 102
FULL = Path("/dev/full")
LONG = " ".join(["good film"] * 150)


@dataclass
class Texts:
    """Rows in memory; at `meeting`, threads wait for each other before they read."""

    rows: list[tuple[str, ...]]
    content_key: str = "rows-1"
    meeting: threading.Barrier | None = field(default=None)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, size: int) -> Iterator[list[tuple[str, ...]]]:
        if self.meeting is not None:
            self.meeting.wait(timeout=30)
        yield from windows(self.rows, size)


def bundled_folder() -> Path:
    files = BUNDLED_FILES["minilm"]
    spec = find_spec(files.package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / files.folder


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    return load_tokenizer(bundled_folder())


@pytest.fixture
def tiny(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return load_tokenizer(tmp_path)


def ids(column: TokenColumn, row: int) -> list[int]:
    return column.ids[column.offsets[row] : column.offsets[row + 1]].tolist()


def columns_of(
    table: Texts, tokenizer: Tokenizer, cache: Path, *, reads: Input = "single", max_length: int = 128
) -> list[TokenColumn]:
    return tokenise(table, tokenizer, reads=reads, max_length=max_length, cache=cache)


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_the_bundled_file_pads_and_cuts_but_its_tokenizer_does_not(minilm: Tokenizer) -> None:
    raw = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    assert len(raw.encode("good").ids) == len(raw.encode(LONG).ids) == 128
    assert len(minilm.encode("a good film").ids) == 5
    assert len(minilm.encode(LONG).ids) == 302


def test_texts_are_neither_padded_nor_longer_than_allowed(minilm: Tokenizer, tmp_path: Path) -> None:
    (column,) = columns_of(Texts([("a good film",), (LONG,), ("",)]), minilm, tmp_path)
    assert len(column) == 3
    assert column.lengths().tolist() == [5, 128, 2]
    assert column.full.tolist() == [5, 302, 2]
    for row in range(3):
        assert (ids(column, row)[0], ids(column, row)[-1]) == (CLS, SEP)
        assert 0 not in ids(column, row)
    assert ids(column, 1)[:127] == minilm.encode(LONG).ids[:127]


def test_both_texts_of_a_separate_pair_have_a_column(minilm: Tokenizer, tmp_path: Path) -> None:
    table = Texts([("a film", LONG), (LONG, "good"), ("good", "bad")])
    first, second = columns_of(table, minilm, tmp_path, reads="separate", max_length=9)
    assert (first.lengths().tolist(), second.lengths().tolist()) == ([4, 9, 3], [9, 3, 3])
    assert (first.full.tolist(), second.full.tolist()) == ([4, 302, 3], [302, 3, 3])
    assert ids(second, 2) == minilm.encode("bad").ids


def test_joint_pairs_are_cut_where_they_are_longest(minilm: Tokenizer, tmp_path: Path) -> None:
    short = "one two three"
    table = Texts([(short, LONG), (LONG, short), (LONG, LONG), (short, short)])
    (column,) = columns_of(table, minilm, tmp_path, reads="joint", max_length=16)
    assert column.lengths().tolist() == [16, 16, 16, 9]
    assert column.full.tolist() == [306, 306, 603, 9]
    assert column.second.tolist() == [5, 12, 8, 5]
    for row in range(4):
        tokens = ids(column, row)
        assert [tokens[int(column.second[row]) - 1], tokens[-1]] == [SEP, SEP]
    words = minilm.encode(short, add_special_tokens=False).ids
    assert ids(column, 0)[1:4] == words
    assert ids(column, 1)[-4:-1] == words


def test_a_second_call_reads_the_cache(tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Texts([("a good film",), ("dull",)])
    (first,) = columns_of(table, tiny, tmp_path / "cache")
    monkeypatch.setattr(tokenising, "encode", lambda *_: pytest.fail("tokenised again"))
    (again,) = columns_of(table, tiny, tmp_path / "cache")
    for name in ("ids", "offsets", "second", "full"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert len(entries(tmp_path / "cache")) == 1


def test_tokenizer_length_input_and_content_name_an_entry(tiny: Tokenizer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rows: list[tuple[str, ...]] = [("a good film", "dull")]
    columns_of(Texts(rows), tiny, cache)
    columns_of(Texts(rows), tiny, cache)
    assert len(entries(cache)) == 1
    columns_of(Texts(rows), tiny, cache, max_length=64)
    columns_of(Texts(rows), tiny, cache, reads="joint")
    columns_of(Texts(rows), tiny, cache, reads="separate")
    columns_of(Texts(rows, content_key="rows-2"), tiny, cache)
    changed = Tokenizer.from_str(tiny.to_str())
    changed.add_tokens(["film-noir"])
    columns_of(Texts(rows), changed, cache)
    assert len(entries(cache)) == 6


def test_an_entry_without_its_end_is_not_used(tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> list[list[object]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenising, "encode", fails)
        with pytest.raises(KeyboardInterrupt):
            columns_of(Texts([("dull",)]), tiny, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []
    (column,) = columns_of(Texts([("dull",)]), tiny, tmp_path / "cache")
    assert column.lengths().tolist() == [3]


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
def test_a_full_disk_names_the_cache_and_leaves_nothing(
    tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenising, "ColumnWriter", lambda _, dtype: ColumnWriter(FULL, dtype))
    with pytest.raises(WriteError) as caught:
        columns_of(Texts([("dull",)]), tiny, tmp_path / "cache")
    what = "cannot be written: No space left on device; free space or choose another cache with XDG_CACHE_HOME"
    assert str(caught.value) == f"{tmp_path / 'cache'}: {what}"
    assert entries(tmp_path / "cache") == []


def test_columns_are_memory_mapped(tiny: Tokenizer, tmp_path: Path) -> None:
    (column,) = columns_of(Texts([("a good film",)]), tiny, tmp_path)
    for part in (column.ids, column.offsets, column.second, column.full):
        assert backed_by_a_file(part)
        assert not part.flags.writeable


@pytest.mark.parametrize(("vocabulary", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_a_large_vocabulary_needs_wider_numbers(
    tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: int, dtype: type
) -> None:
    class Large:
        """The tiny tokenizer, saying that it has more words."""

        def __getattr__(self, name: str) -> object:
            return getattr(tiny, name)

        def get_vocab_size(self) -> int:
            return vocabulary

    (column,) = columns_of(Texts([("a good film",), ("dull",)]), Large(), tmp_path)  # type: ignore[arg-type]
    assert column.ids.dtype == dtype
    assert ids(column, 0) == tiny.encode("a good film").ids
    assert ids(column, 1) == tiny.encode("dull").ids


def test_more_rows_than_a_chunk(tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "_CHUNK", 4)
    table = Texts([(" ".join(["dull"] * count),) for count in range(1, 12)])
    (column,) = columns_of(table, tiny, tmp_path, max_length=8)
    assert column.lengths().tolist() == [min(count + 2, 8) for count in range(1, 12)]
    assert column.full.tolist() == [count + 2 for count in range(1, 12)]


def test_two_threads_may_write_the_same_entry(tiny: Tokenizer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    table = Texts([("a good film",), (LONG,)], meeting=threading.Barrier(2))
    found: list[list[int]] = []

    def work() -> None:
        (column,) = columns_of(table, tiny, cache, max_length=16)
        found.append(ids(column, 1))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(found[0]) == 16
    assert len(entries(cache)) == 1


def test_two_threads_may_share_a_tokenizer_at_different_lengths(tiny: Tokenizer) -> None:
    wrong: list[set[int]] = []

    def work(length: int) -> None:
        for _ in range(40):
            (column,) = encode(tiny, [(LONG,)] * 10, "single", length)
            found = {len(encoding.ids) for encoding in column}
            if found != {length}:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(length,)) for length in (8, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert tiny.truncation is None


PROCESS = """
import sys
from pathlib import Path
from smoothtune.data.tokenising import load_tokenizer, tokenise, windows

class Texts:
    content_key = "rows-1"
    def __len__(self): return 400
    def chunks(self, size): return windows([("good film " * (row % 20),) for row in range(400)], size)

folder = Path(sys.argv[1])
(column,) = tokenise(Texts(), load_tokenizer(folder), reads="single", max_length=16, cache=folder / "cache")
print(len(column), int(column.ids.astype("int64").sum()), int(column.full.sum()))
"""


def test_two_processes_may_write_the_same_entry(tiny: Tokenizer, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert answers[0][0].startswith("400 ")
    assert len(entries(tmp_path / "cache")) == 1


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ModelFileError) as caught:
        load_tokenizer(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/tokenizer.json: is not a tokenizer file (")
    assert text.endswith("; save it again with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`")
    assert "line 1 column" in text


@pytest.mark.parametrize("folder", [".", "gone"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_tokenizer(tmp_path / folder)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / folder}: has no tokenizer.json and no tokenizer that converts to one (")
    assert text.endswith("; save it with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`")


def test_an_older_tokenizer_is_converted(tmp_path: Path, minilm: Tokenizer) -> None:
    for name in ("vocab.txt", "config.json", "tokenizer_config.json"):
        shutil.copy(bundled_folder() / name, tmp_path / name)
    assert load_tokenizer(tmp_path).encode("a good film").ids == minilm.encode("a good film").ids


def test_columns_in_memory_are_those_on_disk(tiny: Tokenizer, tmp_path: Path) -> None:
    rows: list[tuple[str, ...]] = [("a good film", "dull"), ("bad", LONG)]
    for reads in ("single", "joint", "separate"):
        on_disk = columns_of(Texts(rows), tiny, tmp_path, reads=reads, max_length=16)
        made = in_memory(encode(tiny, rows, reads, 16))
        assert len(made) == len(on_disk)
        for one, two in zip(made, on_disk, strict=True):
            for name in ("ids", "offsets", "second"):
                assert np.array_equal(getattr(one, name), getattr(two, name))
            cut = two.full > two.lengths()
            assert one.full.tolist() == (one.lengths() + cut).tolist()


def test_windows_are_consecutive() -> None:
    assert list(windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(windows(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(windows([], 3)) == []
