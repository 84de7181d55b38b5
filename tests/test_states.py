"""The store of states: what is put in comes out, names follow the content, and nothing is ever half there."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothtune.data.states import SHARE, StateColumn, StateStore, make_room
from smoothtune.data.tokenising import TokenColumn
from smoothtune.files import WriteError
from tests.made_examples import made_column, made_examples

WIDTH = 6
LENGTHS = (5, 9, 2, 7, 4, 4)


def made_store(cache: Path, needs: str = "states", rows: Sequence[int] = range(6)) -> StateStore:
    """A store over six made sequences."""
    chosen = np.asarray(rows, dtype=np.int32)
    column = made_column(LENGTHS)
    return StateStore(
        cache,
        "encoder",
        column,
        chosen,
        joint=False,
        needs=needs,
        dtype=torch.float32,
        width=WIDTH,  # type: ignore[arg-type]
    )


def states_of(store: StateStore, row: int) -> Tensor:
    """What stands for row `row` of the column: numbers that no other row has."""
    count = LENGTHS[row] if store.needs == "states" else 1
    values = 100.0 * row + torch.arange(count * WIDTH).view(count, WIDTH)
    return values.to(store.kept_in)


def write(store: StateStore) -> StateColumn:
    def fill(values: Tensor, starts: np.ndarray) -> None:
        for place, row in enumerate(store.rows):
            values[starts[place] : starts[place + 1]] = states_of(store, int(row))

    folder = store.folder()
    store.write(folder, fill)
    found = store.open(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [1, 3, 4]])
def test_token_states_come_back_by_row(tmp_path: Path, rows: list[int], dtype: torch.dtype) -> None:
    store = replace(made_store(tmp_path, rows=rows), dtype=dtype)
    column = write(store)
    assert column.values.dtype == dtype
    assert (tmp_path / column_file(tmp_path)).stat().st_size == store.bytes()
    asked = np.array([4, 1, 4])
    assert column.lengths(asked).tolist() == [4, 9, 4]
    into = torch.full((3, 12, WIDTH), -1.0, dtype=dtype)
    column.gather(asked, into)
    for got, row in zip(into, asked, strict=True):
        expected = states_of(store, int(row))
        assert torch.equal(got[: len(expected)], expected)
        assert torch.equal(got[len(expected) :], expected[-1:].expand(12 - len(expected), WIDTH))


def column_file(cache: Path) -> Path:
    (found,) = cache.glob("states-*/values")
    return found.relative_to(cache)


@pytest.mark.parametrize("needs", ["cls", "mean"])
def test_pooled_states_are_float32_whatever_the_encoder_computed_in(tmp_path: Path, needs: str) -> None:
    store = replace(made_store(tmp_path, needs, rows=[0, 2, 5]), dtype=torch.bfloat16)
    column = write(store)
    into = torch.empty(2, 1, WIDTH)
    column.gather(np.array([5, 0]), into)
    assert torch.equal(into[:, 0], torch.cat([states_of(store, 5), states_of(store, 0)]))
    assert column.values.dtype == torch.float32
    assert column.starts is None


def test_a_batch_carries_the_states_of_its_rows_in_the_shape_of_its_tokens(tmp_path: Path) -> None:
    plain = made_examples([made_column(LENGTHS), made_column(LENGTHS)], reads="separate", chosen=[1, 2, 3])
    store = made_store(tmp_path, rows=[1, 2, 3])
    column = write(store)
    kept = replace(plain, states=(column, column))
    positions = np.array([2, 0])
    batch, expected = kept.batch(positions), plain.batch(positions)
    assert batch.states is not None
    assert batch.states.shape == (*expected.tokens.mask.shape, WIDTH)
    assert torch.equal(batch.tokens.mask, expected.tokens.mask)
    assert batch.tokens.input_ids.shape == (4, 0)
    assert torch.equal(batch.rows, expected.rows)
    for got, row in zip(batch.states, [3, 1, 3, 1], strict=True):
        assert torch.equal(got[: LENGTHS[row]], states_of(store, row))
    assert kept.lengths().tolist() == plain.lengths().tolist()


def test_a_pooled_state_stands_for_a_text_of_one_token(tmp_path: Path) -> None:
    store = made_store(tmp_path, "mean")
    column = write(store)
    batch = replace(made_examples([made_column(LENGTHS)]), states=(column,)).batch(np.array([4, 0]))
    assert batch.states is not None
    assert batch.tokens.mask.tolist() == [[True], [True]]
    assert torch.equal(batch.states[:, 0], torch.cat([states_of(store, 4), states_of(store, 0)]))


class Change(NamedTuple):
    """Something that the states depend on."""

    name: str
    store: StateStore


def changes(store: StateStore) -> list[Change]:
    column = store.column
    other_ids = column.ids.copy()
    other_ids[-1] += 1
    shifted = np.concatenate([column.offsets[:1], column.offsets[1:-1] + 1, column.offsets[-1:]])
    return [
        Change("encoder", replace(store, encoder="another")),
        Change("dtype", replace(store, dtype=torch.bfloat16)),
        Change("pooled", replace(store, needs="cls")),
        Change("other pooling", replace(store, needs="mean")),
        Change("segments", replace(store, joint=True)),
        Change("other segments", replace(store, joint=True, column=replace(column, second=column.second + 1))),
        Change("ids", replace(store, column=replace(column, ids=other_ids))),
        Change("where texts end", replace(store, column=replace(column, offsets=shifted))),
        Change("rows", replace(store, rows=store.rows[1:])),
    ]


def test_the_name_follows_all_that_the_states_depend_on(tmp_path: Path) -> None:
    store = made_store(tmp_path)
    names = {change.name: change.store.folder() for change in changes(store)}
    assert len(names) == 9
    assert len({store.folder(), *names.values()}) == 10


def test_the_name_is_that_of_equal_content_wherever_the_rows_stand(tmp_path: Path) -> None:
    store = made_store(tmp_path, rows=[3, 4, 5])
    first = int(store.column.offsets[3])
    part = TokenColumn(
        store.column.ids[first:], store.column.offsets[3:] - first, store.column.second[3:], store.column.full[3:]
    )
    assert replace(store, column=part, rows=np.arange(3)).folder() == store.folder()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fill(values: Tensor, starts: np.ndarray) -> None:
        values[:3] = 1
        raise error

    store = made_store(tmp_path)
    with pytest.raises((KeyboardInterrupt, WriteError)):
        store.write(store.folder(), fill)
    assert list(tmp_path.iterdir()) == []
    assert store.open(store.folder()) is None


def test_a_full_disk_is_met_before_the_values_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = made_store(tmp_path)
    with pytest.raises(WriteError, match="No space left on device; free space"):
        store.write(store.folder(), lambda values, starts: pytest.fail("the values were mapped"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["values", "starts", "sums.json"])
def test_a_damaged_store_is_not_used(tmp_path: Path, name: str) -> None:
    store = made_store(tmp_path)
    write(store)
    file = store.folder() / name
    file.write_bytes(file.read_bytes()[:-3])
    assert store.open(store.folder()) is None
    write(store)
    assert store.open(store.folder()) is not None


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))


def used(folder: Path, size: int, ago: float) -> Path:
    """A store of `size` bytes, last used `ago` seconds before now."""
    folder.mkdir()
    (folder / "values").write_bytes(bytes(size))
    os.utime(folder, (time.time() - ago, time.time() - ago))
    return folder


def test_the_stores_not_used_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, older, oldest = (used(tmp_path / f"states-{ago}", 1000, ago) for ago in (10, 20, 30))
    tokens = tmp_path / "tokens-0"
    tokens.mkdir()
    disk(monkeypatch, int(3000 / SHARE) - 3000)  # the share holds three such stores
    make_room(tmp_path, 1000, keep=[oldest])
    assert (old.exists(), older.exists(), oldest.exists(), tokens.exists()) == (True, False, True, True)


def test_more_than_the_share_of_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = used(tmp_path / "states-1", 1000, 5)
    disk(monkeypatch, 3000)
    make_room(tmp_path, int(4000 * SHARE), keep=[])
    assert not kept.exists()
    kept = used(tmp_path / "states-1", 1000, 5)
    with pytest.raises(WriteError, match=r"need 0\.00 GB, more than 0\.00 GB, a quarter of the free disk"):
        make_room(tmp_path, int(4000 * SHARE) + 1, keep=[])
    assert kept.exists()
