"""Predicts from a run for the rows of a file: streaming, in order, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from smoothtune.data.readers import read_records
from smoothtune.data.source import Flaw, Record, Source, SourceKind, resolve_source
from smoothtune.errors import DataError, Problem, UsageError
from smoothtune.files import write_text
from smoothtune.inference.model import Model, Predictions
from smoothtune.inference.precision import Precision
from smoothtune.runtime.device import keep_memory_mapped, set_threads
from smoothtune.runtime.kernels.building import notes
from smoothtune.workflow.answer_file import FORMATS, AnswerWriter, opened
from smoothtune.workflow.stage_folders import model_of

STDIN_FORMATS: dict[str, SourceKind] = {"tsv": "tsv", "csv": "csv", "jsonl": "jsonl"}


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was done: the number of rows, and the number format they were computed in (None where there was no row).

    `report` is the file that says so, None where there is none; `notes` are sentences on this machine.
    """

    rows: int
    precision: Precision | None
    report: Path | None
    notes: tuple[str, ...] = ()


def predict_file(
    run: Path,
    tasks: Sequence[str],
    source: str | None,
    out: Path | None,
    *,
    form: str,
    with_probabilities: bool,
    input_form: str | None = None,
    precision: str = "auto",
    report: Path | None = None,
    stage: str | None = None,
) -> Predicted:
    """Write the text columns, `prediction` and (if asked) `p_LABEL` for every row.

    Several tasks share the text columns of the first one; theirs are `prediction_TASK` and `p_TASK_LABEL`. Without
    `source` stdin is read as `input_form` (TSV), without `out` the result goes to stdout, from the first window of rows
    that can all be read. A window (`inference.model.WINDOW` rows) is written when the next one has been read or the input
    ends: of a pipe, the first answers come after two windows. Files are written aside and renamed; `report` is a JSON file
    of rows, tasks and precision, by default `OUT.report.json`, none for stdout. The model is the run's, or that after
    `stage`. Raises `UsageError` for what cannot be asked of the run, `DataError` naming file:line at the first bad row,
    after the windows before it.
    """
    if form not in FORMATS:
        raise UsageError(f"--format: got {form!r}, expected one of {', '.join(FORMATS)}")
    given = _source(source, input_form)
    set_threads(None)
    keep_memory_mapped()
    model = Model.load(model_of(run, stage), precision=precision)
    model.text_count(tasks)
    columns = model.columns(tasks[0])
    names = answer_names(_labels(model, tasks, with_probabilities), columns)
    found = model.answer_rows(tasks, _rows(given, columns))
    first, count = list(islice(found, 1)), 0
    with opened(out) as file:
        writer = AnswerWriter(file, form, (*columns, *names))
        for rows, answers in chain(first, found):
            writer.add(rows, _answer_columns(answers, with_probabilities))
            count += len(rows)
            file.flush()
    if report is None and out is not None:
        report = out.with_name(f"{out.name}.report.json")
    done = Predicted(count, model.precision_of(tasks), report, notes(model.network.device.type))
    if report is not None:
        _write_report(report, done, tasks)
    return done


def _labels(model: Model, tasks: Sequence[str], with_probabilities: bool) -> dict[str, tuple[str, ...]]:
    """The labels that get a column of probabilities, by task."""
    if with_probabilities and all(model.kind(task) == "regression" for task in tasks):
        what = "is a regression and has none" if len(tasks) == 1 else "are regressions and have none"
        listed = ("task " if len(tasks) == 1 else "tasks ") + ", ".join(map(repr, tasks))
        raise UsageError(f"--probabilities: {listed} {what}")
    return {task: (model.labels[task] or ()) if with_probabilities else () for task in tasks}


def answer_names(labels: Mapping[str, tuple[str, ...]], texts: Sequence[str]) -> list[str]:
    """The columns after the `texts`, for tasks with `labels` to give probabilities of. Raises `UsageError` for repeats."""
    several, names = len(labels) > 1, list[str]()
    for task, of_task in labels.items():
        names.append(f"prediction_{task}" if several else "prediction")
        names += [f"p_{task}_{label}" if several else f"p_{label}" for label in of_task]
    hidden = next((column for column in texts if column in names), None)
    if hidden is not None:
        raise UsageError(
            f"task {next(iter(labels))!r}: its text column is called {hidden!r}, as a column of the answers is; "
            "predict from Python, or train with another name for it"
        )
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UsageError(f"--task: two columns of the answers would be called {twice!r}; ask the tasks apart")
    return names


def _answer_columns(answers: dict[str, Predictions], with_probabilities: bool) -> list[list[Any]]:
    columns: list[list[Any]] = []
    for found in answers.values():
        columns.append(found.values)
        if with_probabilities and found.probabilities is not None:
            columns += found.probabilities.round(6).T.tolist()
    return columns


def _write_report(path: Path, done: Predicted, tasks: Sequence[str]) -> None:
    precision = None if done.precision is None else done.precision.to_json()
    write_text(path, json.dumps({"rows": done.rows, "tasks": list(tasks), "precision": precision}, indent=2) + "\n")


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
