"""One stream of records from every kind of source. A cell becomes text and no more: tasks and labels are unknown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from smoothtune.bounded import reason_of
from smoothtune.data.delimited import (
    HEADER_AGAIN,
    LINE_LIMIT,
    LineTooLongError,
    header_flaws,
    missing_text,
    raw_lines,
    read_delimited,
    short,
)
from smoothtune.data.hub import load_through_datasets
from smoothtune.data.source import Flaw, Record, Remark, Source
from smoothtune.data.values import cell_text
from smoothtune.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1_000


def read_records(
    source: Source, columns: Sequence[str], file: BinaryIO | None = None
) -> Iterator[Record | Flaw | Remark]:
    """The wanted `columns` of each row of `source` as text, in file order, and a `Flaw` where a row cannot be read.

    A `Remark` follows the record it is about. Class labels of `datasets` (ClassLabel) come as their numbers. Memory does not
    grow with the source. `file` is the file of a source that `has_lines`, where it is open already. Raises `DataError` where
    the source stops being readable.
    """
    with source.opening():
        yield from _records(source, columns, file)


def _records(source: Source, columns: Sequence[str], file: BinaryIO | None) -> Iterator[Record | Flaw | Remark]:
    if source.kind in ("tsv", "csv"):
        assert source.path is not None
        yield from read_delimited(source.path, columns, "\t" if source.kind == "tsv" else ",", file)
    elif source.kind == "jsonl":
        yield from _read_jsonl(source, columns, file)
    elif source.kind == "hub":
        dataset = load_through_datasets(source.location, source.config, str(source.split), source.shown)
        yield from _read_dataset(dataset, columns)
    else:
        yield from _read_table(source, columns)


def _read_jsonl(source: Source, columns: Sequence[str], file: BinaryIO | None) -> Iterator[Record | Flaw]:
    assert source.path is not None
    number = 0
    try:
        for number, raw in enumerate(raw_lines(source.path, file), start=1):
            if not raw.isspace():
                yield _json_record(number, raw, columns)
    except LineTooLongError:
        yield Flaw("file", number + 1, f"the line is longer than {LINE_LIMIT >> 20} MiB; write one JSON object a line")


def _json_record(line: int, raw: bytes, columns: Sequence[str]) -> Record | Flaw:
    try:
        row = _DECODER.decode(raw.decode())
    except UnicodeDecodeError as error:
        what = (
            f"byte 0x{raw[error.start]:02X} at byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
        )
        return Flaw("not UTF-8", line, what)
    except RecursionError:
        return Flaw("bad JSON", line, "is nested too deeply; write one JSON object of texts and numbers a line")
    except ValueError as error:
        return Flaw("bad JSON", line, f"is not JSON ({error}); write one JSON object a line")
    if not isinstance(row, dict):
        return Flaw("bad JSON", line, f"holds {_json_name(row)}, not an object; write one JSON object a line")
    for column in columns:
        if column not in row:
            return Flaw("missing key", line, missing_text(column, list(row)))
    return _record(line, [row[column] for column in columns], columns)


def _row(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {short(twice)} stands twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_row)


def _json_name(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {json.dumps(value)[:40]}"


def _read_table(source: Source, columns: Sequence[str]) -> Iterator[Record | Flaw]:
    from smoothtune.data.arrow_files import BrokenTableError, parquet_cells, parquet_names, saved_cells, saved_names

    assert source.path is not None
    names, cells = (parquet_names, parquet_cells) if source.kind == "parquet" else (saved_names, saved_cells)
    number = 0
    try:
        flaws = header_flaws(names(source.path), columns)
        yield from flaws
        for number, row in enumerate(() if flaws else cells(source.path, columns), start=1):
            yield _record(number, row, columns)
    except BrokenTableError as error:
        if source.kind == "saved":
            what = f"is a damaged folder ({error}); write it again with save_to_disk"
            raise DataError("A data source cannot be used.", [Problem(source.shown, what)]) from error
        yield Flaw("file", number, f"is not a Parquet file that can be read ({error}); write it again")


def _read_dataset(dataset: Dataset, columns: Sequence[str]) -> Iterator[Record | Flaw]:
    from smoothtune.data.arrow_files import BROKEN

    flaws = header_flaws(dataset.column_names, columns)
    yield from flaws
    number = 0
    try:
        for table in () if flaws else dataset.select_columns(list(columns)).with_format("arrow").iter(_ROWS):
            for cells in zip(*(table.column(column).to_pylist() for column in columns), strict=True):
                number += 1
                yield _record(number, cells, columns)
    except BROKEN as error:
        yield Flaw("file", number, f"cannot be read any further ({reason_of(error)}); load it with datasets and see")


def _record(line: int, cells: Sequence[object], columns: Sequence[str]) -> Record | Flaw:
    values: list[str] = []
    for column, cell in zip(columns, cells, strict=True):
        text = cell_text(cell)
        if text is None:
            return Flaw("not text", line, f"column {column!r} holds a {type(cell).__name__}, not text or a number")
        if not _is_unicode(text):
            return Flaw("not UTF-8", line, f"column {column!r} has half of a surrogate pair; write whole characters")
        values.append(text)
    if len(values) > 1 and values == list(columns):
        return Flaw("header", line, HEADER_AGAIN)
    return Record(line, tuple(values))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
