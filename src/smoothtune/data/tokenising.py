"""Token ids of a row table, on disk and memory-mapped. Knows nothing of batches or labels.

The texts of a table are gone through once, in chunks: while one is encoded, on all cores unless TOKENIZERS_PARALLELISM
says otherwise, the one before is written. Texts longer than the limit are encoded a second time for their whole length.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike
from tokenizers import Tokenizer

from smoothtune.bounded import FOREIGN, check_plain, reason_of
from smoothtune.cache import aside, fetched, settle
from smoothtune.data.ahead import one_ahead
from smoothtune.data.columns import ColumnWriter, open_column
from smoothtune.data.special_tokens import as_text, read_as_text, reads_as_text
from smoothtune.data.tokenizer_file import panics_told, read_tokenizer
from smoothtune.errors import ModelFileError
from smoothtune.types import Input, SpecialTokens

_FORMAT = 2
_CHUNK = 2048
# Cutting is a setting of the tokenizer itself, so threads that share one take turns.
_SETTINGS = threading.Lock()
_Part = tuple[list[Any], list[int]]  # the encodings of a column, and their lengths before cutting


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

    def lengths(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Tokens of the sequences `rows` (M,), by default of all (N,), after cutting, int64."""
        return np.diff(self.offsets) if rows is None else np.asarray(self.offsets[rows + 1] - self.offsets[rows])


def load_tokenizer(folder: Path, special_tokens: SpecialTokens = "text") -> Tokenizer:
    """The tokenizer of a checkpoint folder, without padding and truncation (some files carry both).

    `special_tokens` says what those that a text spells are: text, or the tokens themselves. Raises `ModelFileError` when
    there is no tokenizer, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_tokenizer(path) if path.exists() else _converted(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if special_tokens == "text":
        read_as_text(tokenizer)
    return tokenizer


def _converted(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        for part in folder.iterdir():
            if not part.is_dir():
                check_plain(part, inside=folder)
        with panics_told(f"{folder}: holds no tokenizer that works"):
            loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = loaded.backend_tokenizer
    except FOREIGN as error:
        raise ModelFileError(
            f"{folder}: has no tokenizer.json and no tokenizer that converts to one ({reason_of(error)}); "
            "save it with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`"
        ) from None
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def encode(tokenizer: Tokenizer, rows: list[tuple[str, ...]], reads: Input, max_length: int) -> list[list[Any]]:
    """Encodings per column: one column for single and joint input, two for separate. Threads may share a tokenizer.

    Raises `ModelFileError` where the tokenizer fails at these texts.
    """
    with _SETTINGS, panics_told("tokenizer: fails at these texts"):
        tokenizer.enable_truncation(max_length)
        try:
            if reads == "separate":
                columns = [tokenizer.encode_batch_fast([row[side] for row in rows]) for side in (0, 1)]
            else:
                columns = [tokenizer.encode_batch_fast([row if reads == "joint" else row[0] for row in rows])]
        finally:
            tokenizer.no_truncation()
        return [as_text(tokenizer, column, pairs=reads == "joint") for column in columns]


def tokenise(
    table: TextTable, tokenizer: Tokenizer, *, reads: Input, max_length: int, cache: Path
) -> list[TokenColumn]:
    """The token columns of a table, from the cache when they are there.

    The cache key is the content of the texts, the tokenizer and how it reads special tokens, the length and the input.
    Memory stays constant. Raises `WriteError` when the cache cannot be written.
    """
    with _SETTINGS:
        identity = [_FORMAT, table.content_key, tokenizer.to_str(), max_length, reads]
    if reads_as_text(tokenizer):  # the tokenizer's own text does not say so
        identity.append("special tokens are text")
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache / f"tokens-{key}"
    return fetched(folder, partial(_read, reads), partial(_write, table, tokenizer, reads, max_length, folder))


def _read(reads: Input, folder: Path) -> list[TokenColumn]:
    return [_open(folder, number) for number in range(_columns(reads))]


def _columns(reads: Input) -> int:
    return 2 if reads == "separate" else 1


def _write(table: TextTable, tokenizer: Tokenizer, reads: Input, max_length: int, folder: Path) -> None:
    def encoded(rows: list[tuple[str, ...]]) -> list[_Part]:
        columns = encode(tokenizer, rows, reads, max_length)
        fulls = (_full_lengths(tokenizer, rows, column, number, reads) for number, column in enumerate(columns))
        return list(zip(columns, fulls, strict=True))

    with aside(folder.parent) as written:
        writers = [_ColumnWriter(written, number, tokenizer.get_vocab_size()) for number in range(_columns(reads))]
        for parts in one_ahead(encoded, table.chunks(_CHUNK)):
            for writer, (encodings, full) in zip(writers, parts, strict=True):
                writer.add(encodings, full, joint=reads == "joint")
        for writer in writers:
            writer.close()
        settle(written, folder)


def _full_lengths(
    tokenizer: Tokenizer, rows: list[tuple[str, ...]], encodings: list[Any], number: int, reads: Input
) -> list[int]:
    lengths = [len(encoding) for encoding in encodings]
    cut = [index for index, encoding in enumerate(encodings) if encoding.overflowing]
    if cut:
        inputs = [rows[index] if reads == "joint" else rows[index][number] for index in cut]
        with _SETTINGS, panics_told("tokenizer: fails at these texts"):
            whole = tokenizer.encode_batch_fast(inputs)
        for index, encoding in zip(cut, whole, strict=True):
            lengths[index] = len(encoding)
    return lengths


class _ColumnWriter:
    """Appends one column to its files."""

    def __init__(self, folder: Path, number: int, vocabulary: int) -> None:
        self._dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.int32)
        (folder / f"{number}.dtype").write_text(self._dtype.name)
        self._ids, self._offsets, self._second, self._full = (
            ColumnWriter(folder / f"{number}.{name}", dtype) for name, dtype in _dtypes(self._dtype)
        )
        self._end = 0
        self._offsets.add([0])

    def add(self, encodings: list[Any], full: list[int], *, joint: bool) -> None:
        ids, lengths, second = flattened(encodings, self._dtype, joint=joint)
        self._ids.add(ids)
        self._offsets.add(self._end + np.cumsum(lengths))
        self._second.add(second)
        self._full.add(full)
        self._end += len(ids)

    def close(self) -> None:
        for column in (self._ids, self._offsets, self._second, self._full):
            column.close()


def _dtypes(ids: np.dtype[Any]) -> list[tuple[str, Any]]:
    return [("ids", ids), ("offsets", np.int64), ("second", np.int32), ("full", np.int32)]


def _open(folder: Path, number: int) -> TokenColumn:
    ids = np.dtype((folder / f"{number}.dtype").read_text())
    return TokenColumn(*(open_column(folder / f"{number}.{name}", dtype) for name, dtype in _dtypes(ids)))


def flattened(encodings: list[Any], dtype: DTypeLike, *, joint: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ids in a row (sum of lengths,), lengths (N,) int64, and where each second text begins (N,), or the length."""
    lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
    every = chain.from_iterable(encoding.ids for encoding in encodings)
    ids = _fitting(np.fromiter(every, np.int64, int(lengths.sum())), np.dtype(dtype))
    if not joint:
        return ids, lengths, lengths
    second = np.fromiter((encoding.type_ids.count(0) for encoding in encodings), np.int64, len(encodings))
    return ids, lengths, second


def _fitting(ids: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """`ids` (N,) int64 in `dtype`. Raises `ModelFileError` for one that it does not hold: it is of no vocabulary."""
    highest, most = int(ids.max(initial=0)), np.iinfo(dtype).max
    if highest > most:
        raise ModelFileError(
            f"tokenizer: gives the token id {highest:,}, expected at most {most:,} by its vocabulary; "
            "take the tokenizer.json that was saved with the model"
        )
    return ids.astype(dtype)


def in_memory(encodings: list[list[Any]]) -> list[TokenColumn]:
    """Token columns of encodings that are already in memory (prediction); `full` is one more than the length of a cut text."""
    columns = []
    for column in encodings:
        ids, lengths, second = flattened(column, np.int32, joint=True)
        full = lengths + np.fromiter((bool(encoding.overflowing) for encoding in column), np.int64, len(column))
        columns.append(TokenColumn(ids, np.concatenate([[0], np.cumsum(lengths)]), second, full))
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
