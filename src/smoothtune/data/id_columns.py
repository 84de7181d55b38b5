"""The columns of a source that name its rows: `id`, and names that end in `_id` or `idx`. Knows nothing of tasks."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence

from smoothtune.bounded import parse_json
from smoothtune.data.delimited import raw_lines
from smoothtune.data.hub import load_through_datasets
from smoothtune.data.readers import read_records
from smoothtune.data.source import Record, Source
from smoothtune.errors import DataError

_ID = re.compile(r"id|.*_id|.*idx", re.IGNORECASE | re.DOTALL)


def id_columns(source: Source) -> tuple[str, ...]:
    """The names of the columns that name rows, in their order; of JSON lines, those of the first. None where it has gone."""
    try:
        with source.opening():
            return tuple(name for name in _names(source) if _ID.fullmatch(name))
    except (DataError, ValueError, csv.Error):
        return ()


def id_values(source: Source, columns: Sequence[str], lines: Collection[int]) -> dict[int, tuple[str, ...]]:
    """The values of `columns` at some `lines` of a source; rows that cannot be read, or have gone, are not in it."""
    wanted = set(lines)
    values: dict[int, tuple[str, ...]] = {}
    try:
        for record in read_records(source, columns):
            if isinstance(record, Record) and record.line in wanted:
                values[record.line] = record.values
    except DataError:
        return values
    return values


def _names(source: Source) -> Sequence[str]:
    if source.kind == "hub":
        return tuple(
            load_through_datasets(source.location, source.config, str(source.split), source.shown).column_names
        )
    assert source.path is not None
    if source.kind in ("tsv", "csv"):
        lines = (line.decode(errors="replace") for line in raw_lines(source.path))
        return next(csv.reader(lines, delimiter="\t" if source.kind == "tsv" else ","), [])
    if source.kind == "jsonl":
        return list(_first_object(raw_lines(source.path)))
    from smoothtune.data.arrow_files import parquet_names, saved_names

    return (parquet_names if source.kind == "parquet" else saved_names)(source.path)


def _first_object(lines: Iterator[bytes]) -> dict[str, object]:
    first = parse_json(next((line for line in lines if not line.isspace()), b"{}").decode())
    return first if isinstance(first, dict) else {}
