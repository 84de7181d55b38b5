"""The file of answers: rows with predictions in one of four formats, whole or not at all. Knows nothing of models."""

from __future__ import annotations

import csv
import json
import os
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Protocol, cast

from smoothtune.data.source import SUFFIXES
from smoothtune.errors import UsageError
from smoothtune.files import WriteError
from smoothtune.terminal_text import shown

FORMATS = ("tsv", "csv", "jsonl", "parquet")


def format_of(out: Path | None, form: str | None) -> str:
    """The format that `form` or the suffix of `out` names; TSV for stdout where neither does.

    Raises `UsageError` where they disagree, where neither names one for a file, and for Parquet on stdout.
    """
    if form is not None and form not in FORMATS:
        raise UsageError(f"--format: got {form!r}, expected one of {', '.join(FORMATS)}")
    if out is None:
        if form == "parquet":
            raise UsageError("--format parquet: is not for stdout; name a file with --out FILE.parquet")
        return form or "tsv"
    by_suffix = SUFFIXES.get(out.suffix.lower())
    if form is None and by_suffix is None:
        suffixes = ", ".join(dict.fromkeys(f".{name}" for name in FORMATS))
        raise UsageError(f"--out {out}: the suffix names no format; end it in one of {suffixes}, or give --format")
    if form is not None and by_suffix not in (None, form):
        raise UsageError(f"--format {form}: --out {out} ends in {out.suffix}, which is {by_suffix}; let them agree")
    return form or str(by_suffix)


@contextmanager
def opened(out: Path | None, *, binary: bool = False) -> Iterator[IO[Any]]:
    """The file to write, made aside and renamed at the end; stdout for None. Raises `WriteError` naming the file."""
    if out is None:
        yield cast(IO[str], shown(sys.stdout))
        return
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    try:
        file: IO[Any] = aside.open("xb") if binary else aside.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror}; give a file in a folder that exists") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, out)
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror}; free space or choose another folder") from None
    finally:
        aside.unlink(missing_ok=True)


class Writer(Protocol):
    """Appends rows of texts and answers to a file."""

    def add(self, rows: Sequence[tuple[str, ...]], answers: Sequence[Sequence[Any]]) -> None:
        """Append rows (N,) with their answers: (N,) of each column after the texts; None is an empty answer."""
        ...


def answer_writer(
    file: IO[Any], form: str, names: Sequence[str], numbers: Collection[str]
) -> AbstractContextManager[Writer]:
    """A writer of the columns `names`, of which `numbers` hold numbers; to be left before the file is closed."""
    if form == "parquet":
        return _parquet_writer(file, names, numbers)
    return nullcontext(_JsonWriter(file, names) if form == "jsonl" else DelimitedWriter(file, names, form))


class DelimitedWriter:
    """Writes TSV or CSV with a header."""

    def __init__(self, file: IO[str], names: Sequence[str], form: str = "tsv") -> None:
        delimiter = "\t" if form == "tsv" else ","
        self._plain = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        self._quoted = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._write(names)

    def add(self, rows: Sequence[tuple[str, ...]], answers: Sequence[Sequence[Any]]) -> None:
        """Append rows (N,) with their answers: (N,) of each column after the texts; None is an empty answer."""
        for row, *found in zip(rows, *answers, strict=True):
            self._write([f"{value:.6g}" if isinstance(value, float) else value for value in (*row, *found)])

    def _write(self, values: Sequence[Any]) -> None:
        # The csv module leaves a lone carriage return without quotes, and a reader then ends the row there.
        returns = any(isinstance(value, str) and "\r" in value for value in values)
        (self._quoted if returns else self._plain).writerow(values)


class _JsonWriter:
    """Writes one JSON object a line."""

    def __init__(self, file: IO[str], names: Sequence[str]) -> None:
        self._file, self._names = file, names

    def add(self, rows: Sequence[tuple[str, ...]], answers: Sequence[Sequence[Any]]) -> None:
        for row, *found in zip(rows, *answers, strict=True):
            values = dict(zip(self._names, (*row, *found), strict=True))
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")


@contextmanager
def _parquet_writer(file: IO[bytes], names: Sequence[str], numbers: Collection[str]) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.float64() if name in numbers else pa.string()) for name in names])

    class ParquetWriter:
        def add(self, rows: Sequence[tuple[str, ...]], answers: Sequence[Sequence[Any]]) -> None:
            columns = [*zip(*rows, strict=True), *answers]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            into.write_batch(pa.record_batch(arrays, schema))

    with pq.ParquetWriter(file, schema) as into:
        yield ParquetWriter()
