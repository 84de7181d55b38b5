"""`smoothtune predict`: a file in, the same rows with predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from smoothtune.cli.options import RunFolder, Stage


def predict(
    run: RunFolder,
    task: Annotated[
        list[str],
        typer.Option(
            "--task", metavar="TASK", help="The task to answer; several as A,B or repeated, on the same texts."
        ),
    ],
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="INPUT", help="File with the task's text columns; default: stdin."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="File to write; default: stdout.")] = None,  # noqa: UP045
    form: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--format", help="tsv, csv, jsonl or parquet; default: by the suffix of --out, tsv on stdout."),
    ] = None,
    input_form: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--input-format", help="tsv, csv or jsonl on stdin; default: tsv. A file's suffix says its own."),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Add a column p_LABEL (of several tasks: p_TASK_LABEL) for every label."),
    ] = False,
    precision: Annotated[
        str,
        typer.Option("--precision", help="float32, bfloat16 or auto: as in training, or the faster if answers agree."),
    ] = "auto",
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--report",
            help="JSON file of rows, tasks and the measured precision; default: OUT.report.json, none for stdout.",
        ),
    ] = None,
    stage: Stage = None,
) -> None:
    """Predict tasks for every row of a file, in order, in constant memory.

    The column of one task is called prediction; those of several prediction_TASK. Several share what they can of the work.
    Rows are answered 4,096 at a time, when as many more have been read or the input ends. A row with an empty text has an
    empty answer.

    \b
    Examples:
      smoothtune predict runs/first --task sst reviews.tsv --out answers.tsv
      smoothtune predict runs/first --task quora pairs.csv --probabilities --out answers.jsonl
      smoothtune predict runs/first --task sst,polite reviews.tsv
      smoothtune predict runs/first --stage joint --task sst reviews.tsv
      cat reviews.tsv | smoothtune predict runs/first --task sst
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.tables import say
    from smoothtune.workflow.predict import predict_file

    done = predict_file(
        run,
        tuple(dict.fromkeys(name for item in task for name in item.split(","))),
        source,
        out,
        form=form,
        with_probabilities=probabilities,
        input_form=input_form,
        precision=precision,
        report=report,
        stage=stage,
    )
    for note in done.notes:
        say(note)
    if done.precision is not None:
        say(str(done.precision))
    where = "" if out is None else f" in {out}"
    where += "" if done.report is None else f"; report in {done.report}"
    rows = "1 row" if done.rows == 1 else f"{done.rows:,} rows"
    say(f"{rows} predicted{where}")
    if done.empty:
        rows = "1 row has" if done.empty == 1 else f"{done.empty:,} rows have"
        say(f"warning: {rows} an empty text and no answer")
