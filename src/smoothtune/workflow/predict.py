"""Predicts from a run for the rows of a file: streaming, in order, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from smoothtune.data.batching import Examples
from smoothtune.data.readers import read_records
from smoothtune.data.remarks import RemarkCounts
from smoothtune.data.source import Flaw, Record, Remark, Source, SourceKind, resolve_source
from smoothtune.data.text_counts import TextCounts
from smoothtune.errors import DataError, Problem, UsageError
from smoothtune.files import write_text
from smoothtune.inference.model import Model
from smoothtune.inference.precision import Precision
from smoothtune.inference.predictions import Predictions
from smoothtune.runtime.device import keep_memory_mapped, set_threads
from smoothtune.runtime.kernels.building import notes
from smoothtune.types import Input
from smoothtune.workflow.answer_file import answer_writer, format_of, opened
from smoothtune.workflow.empty_rows import Asked, Row
from smoothtune.workflow.overwriting import check_outputs, data_files
from smoothtune.workflow.run import EXPERIMENT
from smoothtune.workflow.stage_folders import experiment_of, model_of

STDIN_FORMATS: dict[str, SourceKind] = {"tsv": "tsv", "csv": "csv", "jsonl": "jsonl"}


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was done: the number of rows, and the number format they were computed in (None where there was no row).

    `empty` of the rows have no text and an empty answer. `report` is the file that says so, None where there is none;
    `notes` are sentences on this machine and on the input.
    """

    rows: int
    precision: Precision | None
    report: Path | None
    notes: tuple[str, ...] = ()
    empty: int = 0


def predict_file(
    run: Path,
    tasks: Sequence[str],
    source: str | None,
    out: Path | None,
    *,
    form: str | None = None,
    with_probabilities: bool = False,
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
    `stage`. `form` is the format of the result, by default that of the suffix of `out`. A row with an empty text has an
    empty answer. Raises `UsageError` for what cannot be asked of the run and for an output that is an input, before any
    work; `DataError` naming file:line at the first row that cannot be read, after the windows before it.
    """
    form = format_of(out, form)
    given = _source(source, input_form)
    if report is None and out is not None:
        report = out.with_name(f"{out.name}.report.json")
    check_outputs({"--out": out, "--report": report}, given.path, run, _data_of(run))
    out, report = _behind(out), _behind(report)
    set_threads(None)
    keep_memory_mapped()
    model = Model.load(model_of(run, stage), precision=precision)
    model.text_count(tasks)
    columns = model.columns(tasks[0])
    names = answer_names(_labels(model, tasks, with_probabilities), columns)
    remarks = RemarkCounts()
    asked = Asked(_rows(given, columns, remarks))
    counts: dict[Input, TextCounts] = {}
    answered = asked.with_empty(_answers(model, tasks, asked, with_probabilities, counts), len(names))
    first, count = list(islice(answered, 1)), 0
    numbers = _number_columns(model, tasks, names)
    with (
        opened(out, binary=form == "parquet") as file,
        answer_writer(file, form, (*columns, *names), numbers) as writer,
    ):
        for rows, found in chain(first, answered):
            writer.add(rows, found)
            count += len(rows)
            file.flush()
    told = (
        *notes(model.network.device.type),
        *(found.sentence("", given) for found in remarks.found()),
        *dict.fromkeys(line for count in counts.values() for line in count.sentences("")),
    )
    done = Predicted(count, model.precision_of(tasks), report, told, asked.empty)
    if report is not None:
        _write_report(report, done, tasks)
    return done


def _answers(
    model: Model, tasks: Sequence[str], rows: Iterable[Row], with_probabilities: bool, counts: dict[Input, TextCounts]
) -> Iterator[tuple[list[Row], list[list[Any]]]]:
    """The answers, window by window; `counts` are filled by way of reading."""

    def count(examples: Examples) -> None:
        if examples.reads not in counts:
            counts[examples.reads] = TextCounts.of(model.tokenizer, examples.reads, examples.limit)
        for column in examples.columns:
            counts[examples.reads].add(column, examples.chosen)

    for window, answers in model.answer_rows(tasks, rows, heed=count):
        yield window, _answer_columns(answers, with_probabilities)


def _number_columns(model: Model, tasks: Sequence[str], names: Sequence[str]) -> set[str]:
    """Those of the answers' columns that hold numbers: probabilities, and predictions of regressions."""
    regressions = [task for task in tasks if model.kind(task) == "regression"]
    predictions = {f"prediction_{task}" for task in regressions} | ({"prediction"} if regressions else set())
    return {name for name in names if name.startswith("p_") or name in predictions}


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


def _behind(path: Path | None) -> Path | None:
    """The file that a link leads to, so that the link stays one; other paths as they are."""
    return path.resolve() if path is not None and path.is_symlink() else path


def _data_of(run: Path) -> list[Path]:
    """The data files of a run; none of a model folder alone."""
    return data_files(experiment_of(run)) if (run / EXPERIMENT).is_file() else []


def _write_report(path: Path, done: Predicted, tasks: Sequence[str]) -> None:
    precision = None if done.precision is None else done.precision.to_json()
    content = {"rows": done.rows, "empty": done.empty, "tasks": list(tasks), "precision": precision}
    write_text(path, json.dumps(content, indent=2) + "\n")


def _source(text: str | None, form: str | None) -> Source:
    if text is not None and text != "-":
        if form is not None:
            raise UsageError(f"--input-format {form}: is for stdin, but {text} is named; leave it out")
        return resolve_source(text, Path.cwd())
    kind = STDIN_FORMATS.get("tsv" if form is None else form)
    if kind is None:
        raise UsageError(f"--input-format: got {form!r}, expected one of {', '.join(STDIN_FORMATS)}")
    return Source(kind, "stdin", Path("/dev/stdin"))


def _rows(source: Source, columns: tuple[str, ...], remarks: RemarkCounts) -> Iterator[tuple[str, ...]]:
    for record in _records(source, columns):
        if isinstance(record, Flaw):
            _refuse(source, record.line, record.what)
        if isinstance(record, Remark):
            remarks.add(record)
        else:
            yield record.values


def _records(source: Source, columns: tuple[str, ...]) -> Iterator[Record | Flaw | Remark]:
    try:
        yield from read_records(source, columns)
    except OSError as error:
        _refuse(source, 0, f"cannot be read: {error.strerror or error}")


def _refuse(source: Source, line: int, what: str) -> NoReturn:
    raise DataError("The input cannot be predicted:", [Problem(source.place(line), what)])
