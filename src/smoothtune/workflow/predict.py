"""Predicts from a run for the rows of a file: streaming, in order, in constant memory."""

from __future__ import annotations

import csv
import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NoReturn

from smoothtune.data.readers import read_records
from smoothtune.data.source import Flaw, Record, Source, SourceKind, resolve_source
from smoothtune.data.tokenising import windows
from smoothtune.errors import DataError, Problem, UsageError
from smoothtune.files import WriteError
from smoothtune.inference.model import WINDOW, Model, Predictions
from smoothtune.runtime.device import keep_memory_mapped, set_threads

FORMATS = ("tsv", "jsonl")
STDIN_FORMATS: dict[str, SourceKind] = {"tsv": "tsv", "csv": "csv", "jsonl": "jsonl"}


def predict_file(
    run: Path,
    task: str,
    source: str | None,
    out: Path | None,
    *,
    form: str,
    with_probabilities: bool,
    input_form: str | None = None,
) -> int:
    """Write the task's text columns, `prediction` and (if asked) `p_LABEL` for every row; returns the number of rows.

    Without `source` stdin is read as `input_form` (TSV), without `out` the result goes to stdout, from the first window
    of rows that can all be read. A file is written aside and renamed. Raises `UsageError` for what cannot be asked of
    the run, `DataError` naming file:line at the first bad row.
    """
    if form not in FORMATS:
        raise UsageError(f"--format: got {form!r}, expected one of {', '.join(FORMATS)}")
    given = _source(source, input_form)
    set_threads(None)
    keep_memory_mapped()
    model = Model.load(run)
    if with_probabilities and model.kind(task) == "regression":
        raise UsageError(f"--probabilities: task {task!r} is a regression and has none")
    columns = model.columns(task)
    labels = model.labels[task] if with_probabilities else None
    answers = ("prediction", *(f"p_{label}" for label in labels or ()))
    for column in columns:
        if column in answers:
            raise UsageError(
                f"task {task!r}: its text column is called {column!r}, as a column of the answers is; "
                "predict from Python, or train with another name for it"
            )
    found = windows(_rows(given, columns), WINDOW)
    first = list(islice(found, 1))
    count = 0
    with _opened(out) as file:
        writer = _Writer(file, form, (*columns, *answers))
        for window in chain(first, found):
            writer.add(window, model.answer(task, window))
            count += len(window)
    return count


def _source(text: str | None, form: str | None) -> Source:
    if text is not None and text != "-":
        if form is not None:
            raise UsageError(f"--input-format {form}: is for stdin, but {text} is named; leave it out")
        return resolve_source(text, Path.cwd())
    kind = STDIN_FORMATS.get("tsv" if form is None else form)
    if kind is None:
        raise UsageError(f"--input-format: got {form!r}, expected one of {', '.join(STDIN_FORMATS)}")
    return Source(kind, "stdin", Path("/dev/stdin"))


def _rows(source: Source, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for record in _records(source, columns):
        if isinstance(record, Flaw):
            _refuse(source, record.line, record.what)
        empty = [column for column, text in zip(columns, record.values, strict=True) if not text.strip()]
        if empty:
            _refuse(source, record.line, f"column {empty[0]!r} is empty; write a text or remove the row")
        yield record.values


def _records(source: Source, columns: tuple[str, ...]) -> Iterator[Record | Flaw]:
    try:
        yield from read_records(source, columns)
    except OSError as error:
        _refuse(source, 0, f"cannot be read: {error.strerror or error}")


def _refuse(source: Source, line: int, what: str) -> NoReturn:
    raise DataError("The input cannot be predicted:", [Problem(source.place(line), what)])


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    try:
        file = aside.open("x", encoding="utf-8", newline="")
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


class _Writer:
    """Writes rows as TSV with a header or as one JSON object a line."""

    def __init__(self, file: IO[str], form: str, names: tuple[str, ...]) -> None:
        self._names = names
        self._file = file
        self._csv = csv.writer(file, delimiter="\t", lineterminator="\n") if form == "tsv" else None
        if self._csv is not None:
            self._csv.writerow(self._names)

    def add(self, rows: list[tuple[str, ...]], found: Predictions) -> None:
        """Append rows with their answers."""
        for number, row in enumerate(rows):
            values: list[Any] = [*row, found.values[number]]
            if len(values) < len(self._names) and found.probabilities is not None:
                values += [round(float(share), 6) for share in found.probabilities[number]]
            self._write(values)

    def _write(self, values: list[Any]) -> None:
        if self._csv is not None:
            self._csv.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
        else:
            self._file.write(json.dumps(dict(zip(self._names, values, strict=True)), ensure_ascii=False) + "\n")
