"""Columns of numbers that files back: kept, scratch, block by block; and entries of the cache."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from smoothtune.cache import aside, settle
from smoothtune.data import columns
from smoothtune.data.columns import ColumnWriter, blocks, counting, filled, gathered, open_column, scratch
from smoothtune.files import WriteError
from tests.backing import backed_by_a_file


def test_what_is_appended_is_read_back_memory_mapped(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path / "column", np.uint16)
    writer.add([1, 2, 3])
    writer.add(np.array([[4, 5], [6, 65535]]).T)
    writer.close()
    column = open_column(tmp_path / "column", np.uint16)
    assert column.tolist() == [1, 2, 3, 4, 6, 5, 65535]
    assert backed_by_a_file(column)
    assert not column.flags.writeable


def test_a_column_may_have_a_width_and_may_be_empty(tmp_path: Path) -> None:
    ColumnWriter(tmp_path / "empty", np.int64).close()
    assert open_column(tmp_path / "empty", np.int64).shape == (0,)
    assert open_column(tmp_path / "empty", np.int64, 2).shape == (0, 2)
    writer = ColumnWriter(tmp_path / "pairs", np.int64)
    writer.add([[1, 2], [3, 4], [5, 6]])
    writer.close()
    assert open_column(tmp_path / "pairs", np.int64, 2).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_large_scratch_is_a_file_without_a_name(own_cache: Path) -> None:
    assert not backed_by_a_file(scratch(100, np.int32))
    assert not own_cache.exists()
    large = scratch(1 << 18, np.int32)
    assert type(large) is np.ndarray  # what NumPy shuffles fast
    assert backed_by_a_file(large)
    assert list((own_cache / "smoothtune").iterdir()) == []
    assert not large.any()
    large[:] = np.arange(len(large))
    assert int(large.sum(dtype=np.int64)) == sum(range(1 << 18))


def test_a_full_disk_is_told(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteError) as caught:
        scratch(1 << 27, np.float64)
    assert str(caught.value) == (
        f"{own_cache / 'smoothtune'}: cannot hold 1.07 GB for a while: No space left on device; "
        "free space or choose another cache with XDG_CACHE_HOME"
    )


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 20])
def test_blocks_cover_everything_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK", 7)
    numbers = np.arange(count)
    assert [number for part in blocks(count) for number in numbers[part]] == list(range(count))
    assert all(len(numbers[part]) <= 7 for part in blocks(count))
    assert counting(count).tolist() == list(range(count))
    assert gathered(numbers * 2, numbers[::-1]).tolist() == list(range(0, 2 * count, 2))[::-1]


def test_filled_is_as_long_as_what_came() -> None:
    found = filled(10, np.int32, (np.full(count, count) for count in (2, 0, 3)))
    assert (found.tolist(), found.dtype) == ([2, 2, 3, 3, 3], np.int32)


def test_an_entry_is_whole_or_not_there(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    written: list[Path] = []
    with suppress(KeyboardInterrupt), aside(cache) as folder:
        (folder / "part").touch()
        written += cache.rglob("part")
        raise KeyboardInterrupt
    assert len(written) == 1
    assert list(cache.iterdir()) == []
    with aside(cache) as first, aside(cache) as second:
        (first / "one").touch()
        (second / "two").touch()
        settle(first, cache / "entry")
        settle(second, cache / "entry")
    assert [path.name for path in cache.iterdir()] == ["entry"]
    assert sorted(path.name for path in (cache / "entry").iterdir()) == ["one", "sums.json"]


ADVICE = "free space or choose another cache with XDG_CACHE_HOME"


def test_an_entry_that_cannot_be_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught, aside(tmp_path) as folder:
        settle(folder, tmp_path / "gone" / "entry")
    assert str(caught.value) == f"{tmp_path}: cannot be written: No such file or directory; {ADVICE}"


def fill_half(cache: Path, error: OSError) -> None:
    with aside(cache) as folder:
        (folder / "part").touch()
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "whatever a library says"), OSError("No space left on device")]
)
def test_a_disk_that_fills_up_names_the_cache_and_leaves_nothing(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(WriteError) as caught:
        fill_half(tmp_path, error)
    assert str(caught.value) == f"{tmp_path}: cannot be written: No space left on device; {ADVICE}"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WriteError) as caught, aside(tmp_path / "cache"):
        pytest.fail("there is no folder to fill")
    assert str(caught.value) == f"{tmp_path / 'cache'}: cannot be written: Permission denied; {ADVICE}"
