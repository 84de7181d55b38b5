"""Token ids of a row table, on disk and memory-mapped. Knows nothing of batches or labels."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from smoothtune.errors import ModelFileError
from smoothtune.types import Input

_FORMAT = 1
_CHUNK = 8192
# Cutting is a setting of the tokenizer itself, so threads that share one take turns.
_SETTINGS = threading.Lock()


class TextTable(Protocol):
    """What is tokenised: rows of one text or two, with a name for their content."""

    @property
    def content_key(self) -> str:
        """Names the texts: equal keys, equal texts."""
        ...

    def __len__(self) -> int: ...

    def chunks(self, size: int) -> Iterable[list[tuple[str, ...]]]:
        """The texts of the rows in order, `size` rows at a time."""
        ...


@dataclass(frozen=True, slots=True)
class TokenColumn:
    """Token ids of N sequences: `ids` flat, sequence i is ids[offsets[i]:offsets[i + 1]].

    `second` (N,) is where the second text of a joint pair begins (segment 1), or the length.
    `full` (N,) is the length before cutting. All memory-mapped.
    """

    ids: np.ndarray
    offsets: np.ndarray
    second: np.ndarray
    full: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Tokens of each sequence after cutting, (N,) int32."""
        return np.diff(self.offsets).astype(np.int32)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, without padding and truncation (some files carry both).

    Raises `ModelFileError` when there is none, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exception
            raise ModelFileError(
                f"{path}: is not a tokenizer file ({error}); "
                "save it again with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`"
            ) from None
    else:
        tokenizer = _converted(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _converted(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(
            f"{folder}: has no tokenizer.json and no tokenizer that converts to one ({reason}); "
            "save it with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`"
        ) from None
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def encode(tokenizer: Tokenizer, rows: list[tuple[str, ...]], reads: Input, max_length: int) -> list[list[Any]]:
    """Encodings per column: one column for single and joint input, two for separate. Threads may share a tokenizer."""
    with _SETTINGS:
        tokenizer.enable_truncation(max_length)
        try:
            if reads == "separate":
                return [tokenizer.encode_batch_fast([row[side] for row in rows]) for side in (0, 1)]
            return [tokenizer.encode_batch_fast([row if reads == "joint" else row[0] for row in rows])]
        finally:
            tokenizer.no_truncation()


def tokenise(
    table: TextTable, tokenizer: Tokenizer, *, reads: Input, max_length: int, cache: Path
) -> list[TokenColumn]:
    """The token columns of a table, from the cache when they are there.

    The cache key is the content of the texts, the tokenizer, the length and the input. Memory stays constant.
    """
    with _SETTINGS:
        identity = [_FORMAT, table.content_key, tokenizer.to_str(), max_length, reads]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache / f"tokens-{key}"
    if not (folder / "done.json").is_file():
        _write(table, tokenizer, reads, max_length, folder)
    columns = json.loads((folder / "done.json").read_text())["columns"]
    return [_open(folder, number) for number in range(columns)]


def _write(table: TextTable, tokenizer: Tokenizer, reads: Input, max_length: int, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="tokens-", suffix=".part", dir=folder.parent))
    try:
        count = 2 if reads == "separate" else 1
        writers = [_ColumnWriter(aside, number, tokenizer.get_vocab_size()) for number in range(count)]
        for rows in table.chunks(_CHUNK):
            encoded = encode(tokenizer, rows, reads, max_length)
            for number, (writer, encodings) in enumerate(zip(writers, encoded, strict=True)):
                full = _full_lengths(tokenizer, rows, encodings, number, reads)
                writer.add(encodings, full)
        for writer in writers:
            writer.close()
        (aside / "done.json").write_text(json.dumps({"columns": count, "format": _FORMAT}))
        try:
            aside.rename(folder)
        except OSError:  # another process was first; its folder is as good
            if not (folder / "done.json").is_file():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _full_lengths(
    tokenizer: Tokenizer, rows: list[tuple[str, ...]], encodings: list[Any], number: int, reads: Input
) -> list[int]:
    lengths = [len(encoding.ids) for encoding in encodings]
    cut = [index for index, encoding in enumerate(encodings) if encoding.overflowing]
    if cut:
        inputs = [rows[index] if reads == "joint" else rows[index][number] for index in cut]
        with _SETTINGS:
            whole = tokenizer.encode_batch_fast(inputs)
        for index, encoding in zip(cut, whole, strict=True):
            lengths[index] = len(encoding.ids)
    return lengths


class _ColumnWriter:
    """Appends one column to its files."""

    def __init__(self, folder: Path, number: int, vocabulary: int) -> None:
        self._dtype = np.uint16 if vocabulary <= 1 << 16 else np.int32
        (folder / f"{number}.dtype").write_text(np.dtype(self._dtype).name)
        self._ids, self._offsets, self._second, self._full = (
            (folder / f"{number}.{name}").open("wb") for name in ("ids", "offsets", "second", "full")
        )
        self._end = 0
        self._offsets.write(np.int64(0).tobytes())

    def add(self, encodings: list[Any], full: list[int]) -> None:
        ids = [np.asarray(encoding.ids, dtype=self._dtype) for encoding in encodings]
        ends = self._end + np.cumsum([len(sequence) for sequence in ids], dtype=np.int64)
        second = [sum(1 for kind in encoding.type_ids if kind == 0) for encoding in encodings]
        self._ids.write(np.concatenate(ids).tobytes())
        self._offsets.write(ends.tobytes())
        self._second.write(np.asarray(second, dtype=np.int32).tobytes())
        self._full.write(np.asarray(full, dtype=np.int32).tobytes())
        self._end = int(ends[-1])

    def close(self) -> None:
        for file in (self._ids, self._offsets, self._second, self._full):
            file.close()


def _open(folder: Path, number: int) -> TokenColumn:
    dtype = np.dtype((folder / f"{number}.dtype").read_text())
    ids, offsets, second, full = (
        np.memmap(folder / f"{number}.{name}", dtype=kind, mode="r")
        for name, kind in (("ids", dtype), ("offsets", np.int64), ("second", np.int32), ("full", np.int32))
    )
    return TokenColumn(ids, offsets, second, full)


def in_memory(encodings: list[list[Any]]) -> list[TokenColumn]:
    """Token columns of encodings that are already in memory (prediction); `full` is the length after cutting."""
    columns = []
    for column in encodings:
        lengths = [len(encoding.ids) for encoding in column]
        columns.append(
            TokenColumn(
                ids=np.concatenate([np.asarray(encoding.ids, dtype=np.int32) for encoding in column]),
                offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
                second=np.asarray([sum(1 for kind in encoding.type_ids if kind == 0) for encoding in column], np.int32),
                full=np.asarray(lengths, dtype=np.int32),
            )
        )
    return columns


def windows(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of at most `size` rows."""
    window: list[Any] = []
    for row in rows:
        window.append(row)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
