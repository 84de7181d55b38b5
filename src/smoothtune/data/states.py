"""The states that an encoder gave to token sequences, kept on disk and memory-mapped.

Knows nothing of models: it is told which encoder is meant and handed the states. Each store is a folder of the cache,
written aside and renamed, and named by all that its content depends on, so that it is never stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothtune.cache import aside, opened, settle
from smoothtune.data.columns import open_column
from smoothtune.data.tokenising import TokenColumn
from smoothtune.files import WriteError
from smoothtune.system import reserve
from smoothtune.types import Needs

SHARE = 0.25  # of the disk space that is free, or taken by stores
_FORMAT = 2
_HASHED_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class StateColumn:
    """States of the rows `rows` (M,), ascending, of a token column; memory-mapped.

    Pooled: `values` (M, D) float32, `starts` None. Else `values` (P, D) of all P tokens, row i's being
    values[starts[i]:starts[i + 1]].
    """

    rows: np.ndarray
    values: Tensor
    starts: np.ndarray | None

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where `rows` (B,) of the token column stand in `self.rows`, (B,) int64; they must be among them."""
        found: np.ndarray = self.rows.searchsorted(rows)
        return found

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """States of each of `rows` (B,), (B,) int64, where they are not pooled."""
        assert self.starts is not None
        places = self.places(rows)
        lengths: np.ndarray = self.starts[places + 1] - self.starts[places]
        return lengths

    def gather(self, rows: np.ndarray, into: Tensor) -> None:
        """Copy the states of `rows` (B,) into `into` (B, T, D); places after a row's last state repeat that one."""
        places = self.places(rows)
        if self.starts is not None:
            first, last = self.starts[places], self.starts[places + 1] - 1
            places = np.minimum(first[:, None] + np.arange(into.shape[1]), last[:, None]).reshape(-1)
        torch.index_select(self.values, 0, torch.from_numpy(places), out=into.view(-1, into.shape[2]))


@dataclass(frozen=True, slots=True)
class StateStore:
    """One folder of states: those of `rows` (M,), ascending, of `column`, from the encoder that `encoder` names.

    `needs` is what is kept: all token states in `dtype`, or one pooled float32 state per row, both of `width` D. With
    `layers` those of K layers stand side by side, and `width` is K * D.
    """

    cache: Path
    encoder: str
    column: TokenColumn
    rows: np.ndarray
    joint: bool
    needs: Needs
    dtype: torch.dtype
    width: int
    layers: tuple[int, ...] | None = None

    @property
    def kept_in(self) -> torch.dtype:
        """The dtype of the values."""
        return self.dtype if self.needs == "states" else torch.float32

    def folder(self) -> Path:
        """Where it is, or will be: named by encoder, token ids, segments, dtype and what is kept. Reads all ids."""
        identity: list[Any] = [_FORMAT, self.encoder, self.needs, str(self.dtype), self.width, self.joint]
        identity += [] if self.layers is None else [self.layers]
        digest = hashlib.sha256(json.dumps(identity).encode())
        for part in _content(self.column, self.rows, self.joint):
            digest.update(part)
        return self.cache / f"states-{digest.hexdigest()[:32]}"

    def count(self) -> int:
        """Values of all rows: P tokens, or M where they are pooled."""
        return int(self.column.lengths(self.rows).sum()) if self.needs == "states" else len(self.rows)

    def bytes(self) -> int:
        """Disk space of the values."""
        return self.count() * self.width * self.kept_in.itemsize

    def write(self, folder: Path, fill: Callable[[Tensor, np.ndarray], None]) -> None:
        """Make `folder` of what `fill` puts into the values (P, D), given where each row's begin, (M + 1,) int64.

        Raises `WriteError` when there is no room, or the cache cannot be written; nothing is left then.
        """
        lengths = self.column.lengths(self.rows) if self.needs == "states" else np.ones(len(self.rows), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        with aside(folder.parent) as written:
            with (written / "values").open("wb") as file:
                # A mapped file without its blocks would kill the process on a full disk.
                reserve(file, self.bytes())
            values = _mapped(written / "values", int(starts[-1]), self.width, self.kept_in, shared=True)
            fill(values, starts)
            if self.needs == "states":
                (written / "starts").write_bytes(starts.tobytes())
            settle(written, folder)

    def open(self, folder: Path) -> StateColumn | None:
        """The states of `folder`, None where it is missing or not whole. Its use is noted, for `make_room`.

        Cost: once per process the reading of all its bytes, to compare their checksums.
        """
        return opened(folder, self._read)

    def _read(self, folder: Path) -> StateColumn:
        values = _mapped(folder / "values", self.count(), self.width, self.kept_in, shared=False)
        starts = open_column(folder / "starts", np.int64) if self.needs == "states" else None
        with suppress(OSError):  # a cache that can only be read
            os.utime(folder)
        return StateColumn(self.rows, values, starts)


def _mapped(path: Path, count: int, width: int, dtype: torch.dtype, *, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=count * width, dtype=dtype).view(count, width)


def _content(column: TokenColumn, rows: np.ndarray, joint: bool) -> Iterator[bytes]:
    """Ids, lengths and, for joint pairs, segments of `rows`, in pieces."""
    for start in range(0, len(rows), _HASHED_ROWS):
        part = rows[start : start + _HASHED_ROWS]
        first, lengths = column.offsets[part], column.lengths(part)
        ends = np.cumsum(lengths)
        yield column.ids[np.repeat(first - ends + lengths, lengths) + np.arange(ends[-1])].astype(np.int32).tobytes()
        yield lengths.astype(np.int64).tobytes()
        if joint:
            yield column.second[part].astype(np.int32).tobytes()


def make_room(cache: Path, wanted: int, keep: Collection[Path]) -> None:
    """Remove the stores that were not used for longest until `wanted` bytes fit into the share of the disk.

    Those of `keep` stay. Raises `WriteError` where the share is too small; then nothing is removed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stores = {folder: _size(folder) for folder in cache.glob("states-*")}
    allowed = int(SHARE * (shutil.disk_usage(cache).free + sum(stores.values())))
    needed = wanted + sum(size for folder, size in stores.items() if folder in keep)
    if needed > allowed:
        raise WriteError(
            f"{cache}: the states need {needed / 1e9:.2f} GB, more than {allowed / 1e9:.2f} GB, a quarter of the free disk"
        )
    excess = wanted + sum(stores.values()) - allowed
    for folder in sorted(stores.keys() - set(keep), key=_last_used):
        if excess <= 0:
            break
        shutil.rmtree(folder, ignore_errors=True)
        excess -= stores[folder]


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime if folder.exists() else 0.0


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.glob("*"))
    except FileNotFoundError:  # another process makes room
        return 0
