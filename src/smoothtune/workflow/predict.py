"""Predicts from a run for the rows of a file: streaming, in order, in constant memory."""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from smoothtune.data.readers import read_records
from smoothtune.data.source import Flaw, Record, Source, resolve_source
from smoothtune.data.tokenising import windows
from smoothtune.errors import DataError, Problem, UsageError
from smoothtune.files import WriteError
from smoothtune.inference.model import WINDOW, Model, Predictions
from smoothtune.runtime.device import keep_memory_mapped, set_threads

FORMATS = ("tsv", "jsonl")


def predict_file(
    run: Path, task: str, source: str | None, out: Path | None, *, form: str, with_probabilities: bool
) -> int:
    """Write the task's text columns, `prediction` and (if asked) `p_LABEL` for every row; returns the number of rows.

    Without `source` TSV is read from stdin, without `out` the result goes to stdout. A file is written aside and renamed.
    Raises `UsageError` for what cannot be asked of the run, `DataError` naming file:line at the first bad row.
    """
    if form not in FORMATS:
        raise UsageError(f"--format: got {form!r}, expected one of {', '.join(FORMATS)}")
    set_threads(None)
    keep_memory_mapped()
    model = Model.load(run)
    if with_probabilities and model.kind(task) == "regression":
        raise UsageError(f"--probabilities: task {task!r} is a regression and has none")
    columns = model.columns(task)
    rows = _rows(_source(source), columns)
    count = 0
    with _opened(out) as file:
        writer = _Writer(file, form, columns, model.labels[task] if with_probabilities else None)
        for window in windows(rows, WINDOW):
            writer.add(window, model.answer(task, window))
            count += len(window)
    return count


def _source(text: str | None) -> Source:
    if text in (None, "-"):
        return Source("tsv", "stdin", Path("/dev/stdin"))
    assert text is not None
    return resolve_source(text, Path.cwd())


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
    try:
        number, aside = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent)
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror}; give a file in a folder that exists") from None
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        os.replace(aside, out)
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror}; free space or choose another folder") from None
    finally:
        Path(aside).unlink(missing_ok=True)


class _Writer:
    """Writes rows as TSV with a header or as one JSON object a line."""

    def __init__(self, file: IO[str], form: str, columns: tuple[str, ...], labels: tuple[str, ...] | None) -> None:
        self._names = [*columns, "prediction", *(f"p_{label}" for label in labels or ())]
        self._with_probabilities = labels is not None
        self._file = file
        self._csv = csv.writer(file, delimiter="\t", lineterminator="\n") if form == "tsv" else None
        if self._csv is not None:
            self._csv.writerow(self._names)

    def add(self, rows: list[tuple[str, ...]], found: Predictions) -> None:
        """Append rows with their answers."""
        for number, row in enumerate(rows):
            values: list[Any] = [*row, found.values[number]]
            if self._with_probabilities and found.probabilities is not None:
                values += [round(float(share), 6) for share in found.probabilities[number]]
            self._write(values)

    def _write(self, values: list[Any]) -> None:
        if self._csv is not None:
            self._csv.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
        else:
            self._file.write(json.dumps(dict(zip(self._names, values, strict=True)), ensure_ascii=False) + "\n")
