"""Reads the rows of one source once, checks them and writes the good ones to a folder. Knows nothing of caches.

The folder holds `rows.arrow` (texts and labels), flat columns of numbers (`line`, `key`, `text_keys` of pairs, `label_key`)
and `summary.json`, the tally of what is wrong with the other rows. Memory does not grow with the source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smoothtune.data.checks import FATAL, RowSpec, Tally, check_row
from smoothtune.data.columns import ColumnWriter, open_column
from smoothtune.data.keys import label_key, pair_keys, text_keys
from smoothtune.data.readers import read_records
from smoothtune.data.remarks import RemarkCounts
from smoothtune.data.source import Flaw, Record, Remark, Source

ROWS, SUMMARY = "rows.arrow", "summary.json"
LINE, KEY, TEXT_KEYS, LABEL_KEY = "line", "key", "text_keys", "label_key"
_FLUSH_ROWS = 10_000
_FLUSH_CHARACTERS = 1 << 24
_GoodRow = tuple[tuple[str, ...], str, int]


def write_rows(spec: RowSpec, source: Source, folder: Path, file: BinaryIO | None = None) -> None:
    """Fill `folder` with the rows of `source`; `file` is its file where that is open already.

    Bad rows raise nothing: the summary has them. Raises `DataError` when the source has gone or the Hub does not answer.
    """
    tally, remarks = Tally(), RemarkCounts()
    total = 0
    with _Writer(spec, folder) as writer:
        named = spec.class_names and spec.kind != "regression"
        records = read_records(source, spec.columns, file, label=spec.label, class_names=named)
        for rows in _flushes(_good_rows(spec, records, tally, remarks)):
            writer.add(rows)
            total += len(rows)
    if total == 0 and FATAL.isdisjoint(tally.counts):
        tally.add([Flaw("no rows", 0, _no_rows_text(spec, tally))])
    summary = {**asdict(tally), "remarks": [asdict(found) for found in remarks.found()]}
    (folder / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class RowNumbers:
    """The flat columns of a folder, memory-mapped, (N,); `text_keys` (N, texts); no `label_key` without labels."""

    line: NDArray[np.int64]
    key: NDArray[np.uint64]
    text_keys: NDArray[np.uint64]
    label_key: NDArray[np.uint64] | None


def read_numbers(spec: RowSpec, folder: Path) -> RowNumbers:
    """The columns that `write_rows` left in `folder`."""
    texts = len(spec.texts)
    return RowNumbers(
        open_column(folder / LINE, np.int64),
        open_column(folder / KEY, np.uint64),
        open_column(folder / (KEY if texts == 1 else TEXT_KEYS), np.uint64, texts),
        None if spec.label is None else open_column(folder / LABEL_KEY, np.uint64),
    )


def text_names(spec: RowSpec) -> list[str]:
    """The names of the text columns in `rows.arrow`."""
    return ["text_a", "text_b"][: len(spec.texts)]


class _Writer:
    """Appends rows to the files of a folder."""

    def __init__(self, spec: RowSpec, folder: Path) -> None:
        label = [] if spec.label is None else [("label", pa.string())]
        self._schema = pa.schema([*((name, pa.string()) for name in text_names(spec)), *label])
        self._arrow = pa.OSFile(str(folder / ROWS), "wb")
        self._stream = pa.ipc.new_stream(self._arrow, self._schema)
        self._line = ColumnWriter(folder / LINE, np.int64)
        self._key = ColumnWriter(folder / KEY, np.uint64)
        self._text_keys = ColumnWriter(folder / TEXT_KEYS, np.uint64) if len(spec.texts) == 2 else None
        self._label_key = None if spec.label is None else ColumnWriter(folder / LABEL_KEY, np.uint64)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:  # each of them, also where one cannot be: the disk may be full
            for part in (self._label_key, self._text_keys, self._key, self._line, self._arrow, self._stream):
                if part is not None:
                    closing.callback(part.close)

    def add(self, rows: Sequence[_GoodRow]) -> None:
        """Append some rows, at least one."""
        texts, labels, lines = zip(*rows, strict=True)
        columns: list[Sequence[str]] = list(zip(*texts, strict=True))
        keys = [text_keys(column) for column in columns]
        self._line.add(lines)
        self._key.add(keys[0] if self._text_keys is None else pair_keys(keys[0], keys[1]))
        if self._text_keys is not None:
            self._text_keys.add(np.stack(keys, axis=1))
        if self._label_key is not None:
            self._label_key.add([label_key(label) for label in labels])
            columns.append(labels)
        self._stream.write(pa.record_batch([pa.array(column, pa.string()) for column in columns], self._schema))


def _flushes(rows: Iterable[_GoodRow]) -> Iterator[list[_GoodRow]]:
    """Lists of rows of bounded size."""
    some: list[_GoodRow] = []
    characters = 0
    for row in rows:
        some.append(row)
        characters += len(row[0][0])
        if len(some) == _FLUSH_ROWS or characters > _FLUSH_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _good_rows(
    spec: RowSpec, records: Iterable[Record | Flaw | Remark], tally: Tally, remarks: RemarkCounts
) -> Iterator[_GoodRow]:
    """Texts, label ("" in prediction) and line of the good rows; what is wrong with the others goes into `tally`."""
    count = len(spec.texts)
    for record in records:
        if isinstance(record, Flaw):
            tally.add([record])
            continue
        if isinstance(record, Remark):
            remarks.add(record)
            continue
        label, flaws = check_row(spec, record)
        if flaws:
            tally.add(flaws)
        elif label or spec.label is None:
            yield record.values[:count], label, record.line
        else:
            tally.unlabelled += 1


def _no_rows_text(spec: RowSpec, tally: Tally) -> str:
    if tally.rows:
        return f"has no row that can be used; rows with problems: {sum(tally.rows.values()):,}"
    if tally.unlabelled:
        return f"none of its {tally.unlabelled:,} rows has a label in column {spec.label!r}"
    return "has 0 rows; a file needs at least one row behind its column names"
