"""One stream of records from every kind of source. A cell becomes text and no more: tasks and labels are unknown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

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
from smoothtune.data.values import cell_text, is_unicode
from smoothtune.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1_000


def read_records(
    source: Source,
    columns: Sequence[str],
    file: BinaryIO | None = None,
    *,
    label: str | None = None,
    class_names: bool = True,
) -> Iterator[Record | Flaw | Remark]:
    """The wanted `columns` of each row of `source` as text, in file order, and a `Flaw` where a row cannot be read.

    A `Remark` follows the record it is about. The column `label` may be absent in lines of JSON, though not in all; where
    it has the class labels of `datasets` (ClassLabel), `class_names` come instead of their numbers, and nothing for -1.
    Memory does not grow with the source. `file` is the file of a source that `has_lines`, where it is open already. Raises
    `DataError` where the source stops being readable.
    """
    asked = _Asked(tuple(columns), label, label if class_names else None)
    with source.opening():
        yield from _records(source, asked, file)


class _Asked(NamedTuple):
    """The columns; which of them may be absent in lines of JSON, and which has class labels to be named."""

    columns: tuple[str, ...]
    label: str | None
    named: str | None


def _records(source: Source, asked: _Asked, file: BinaryIO | None) -> Iterator[Record | Flaw | Remark]:
    if source.kind in ("tsv", "csv"):
        assert source.path is not None
        yield from read_delimited(source.path, asked.columns, "\t" if source.kind == "tsv" else ",", file)
    elif source.kind == "jsonl":
        yield from _read_jsonl(source, asked, file)
    elif source.kind == "hub":
        dataset = load_through_datasets(source.location, source.config, str(source.split), source.shown)
        yield from _read_dataset(dataset, asked)
    else:
        yield from _read_table(source, asked)


def _read_jsonl(source: Source, asked: _Asked, file: BinaryIO | None) -> Iterator[Record | Flaw]:
    assert source.path is not None
    decoder = json.JSONDecoder(object_pairs_hook=partial(_row, frozenset(asked.columns)))
    number, labelled, keys = 0, asked.label is None, tuple[str, ...]()
    try:
        for number, raw in enumerate(raw_lines(source.path, file), start=1):
            if raw.isspace():
                continue
            row = _json_row(number, raw, decoder)
            if isinstance(row, Flaw):
                yield row
                continue
            if not labelled:
                labelled, keys = asked.label in row, keys or tuple(row)
            yield _json_record(number, row, asked)
    except LineTooLongError:
        yield Flaw("file", number + 1, f"the line is longer than {LINE_LIMIT >> 20} MiB; write one JSON object a line")
    if not labelled and keys:
        yield Flaw("missing column", 0, missing_text(str(asked.label), keys))


def _json_row(line: int, raw: bytes, decoder: json.JSONDecoder) -> dict[str, object] | Flaw:
    try:
        row = decoder.decode(raw.decode())
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
    return row


def _json_record(line: int, row: dict[str, object], asked: _Asked) -> Record | Flaw:
    for column in asked.columns:
        if column not in row and column != asked.label:
            return Flaw("missing key", line, missing_text(column, list(row)))
    return _record(line, [row.get(column) for column in asked.columns], asked.columns)


def _row(wanted: frozenset[str], pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of these keys; of the `wanted` ones none may stand twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        for key in wanted & counts.keys():
            if counts[key] > 1:
                raise ValueError(f"the key {short(key)} stands twice")
    return found


def _json_name(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {json.dumps(value)[:40]}"


def _read_table(source: Source, asked: _Asked) -> Iterator[Record | Flaw]:
    from smoothtune.data import arrow_files as arrow
    from smoothtune.data.arrow_files import BrokenTableError

    assert source.path is not None
    saved, columns = source.kind == "saved", asked.columns
    names, cells = (arrow.saved_names, arrow.saved_cells) if saved else (arrow.parquet_names, arrow.parquet_cells)
    classes_of = arrow.saved_classes if saved else arrow.parquet_classes
    number = 0
    try:
        flaws = header_flaws(names(source.path), columns)
        yield from flaws
        if flaws:
            return
        classes = None if asked.named is None else classes_of(source.path, asked.named)
        for number, row in enumerate(cells(source.path, columns), start=1):
            yield _named_record(number, row, asked, classes)
    except BrokenTableError as error:
        if source.kind == "saved":
            what = f"is a damaged folder ({error}); write it again with save_to_disk"
            raise DataError("A data source cannot be used.", [Problem(source.shown, what)]) from error
        yield Flaw("file", number, f"is not a Parquet file that can be read ({error}); write it again")


def _read_dataset(dataset: Dataset, asked: _Asked) -> Iterator[Record | Flaw]:
    from smoothtune.data.arrow_files import BROKEN, class_names

    columns = asked.columns
    flaws = header_flaws(dataset.column_names, columns)
    yield from flaws
    classes = None if asked.named is None else class_names(dataset.features.to_dict(), asked.named)
    number = 0
    try:
        for table in () if flaws else dataset.select_columns(list(columns)).with_format("arrow").iter(_ROWS):
            for cells in zip(*(table.column(column).to_pylist() for column in columns), strict=True):
                number += 1
                yield _named_record(number, cells, asked, classes)
    except BROKEN as error:
        yield Flaw("file", number, f"cannot be read any further ({reason_of(error)}); load it with datasets and see")


def _named_record(line: int, cells: Sequence[object], asked: _Asked, classes: tuple[str, ...] | None) -> Record | Flaw:
    """A record whose class label, of the column `asked.named`, is the name among `classes`."""
    if classes is None or asked.named is None:
        return _record(line, cells, asked.columns)
    at = asked.columns.index(asked.named)
    number = cells[at]
    if not isinstance(number, int):
        return _record(line, cells, asked.columns)
    if not -1 <= number < len(classes):
        what = f"column {asked.named!r} has the class {number}; its classes have the numbers 0 to {len(classes) - 1}"
        return Flaw("no class", line, what)
    name = None if number == -1 else classes[number]  # -1 is how data sets without labels say so
    return _record(line, [*cells[:at], name, *cells[at + 1 :]], asked.columns)


def _record(line: int, cells: Sequence[object], columns: Sequence[str]) -> Record | Flaw:
    values: list[str] = []
    for column, cell in zip(columns, cells, strict=True):
        text = cell_text(cell)
        if text is None:
            return Flaw("not text", line, f"column {column!r} holds a {type(cell).__name__}, not text or a number")
        if not is_unicode(text):
            return Flaw("not UTF-8", line, f"column {column!r} has half of a surrogate pair; write whole characters")
        values.append(text)
    if len(values) > 1 and values == list(columns):
        return Flaw("header", line, HEADER_AGAIN)
    return Record(line, tuple(values))
