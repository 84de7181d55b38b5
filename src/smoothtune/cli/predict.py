"""`smoothtune predict`: a file in, the same rows with predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from smoothtune.cli.options import RunFolder


def predict(
    run: RunFolder,
    task: Annotated[str, typer.Option("--task", help="The task to answer.")],
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="INPUT", help="File with the task's text columns; default: stdin."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="File to write; default: stdout.")] = None,  # noqa: UP045
    form: Annotated[str, typer.Option("--format", help="tsv or jsonl.")] = "tsv",
    input_form: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--input-format", help="tsv, csv or jsonl on stdin; default: tsv. A file's suffix says its own."),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column p_LABEL for every label.")
    ] = False,
) -> None:
    """Predict one task for every row of a file, in order, in constant memory.

    \b
    Examples:
      smoothtune predict runs/first --task sst reviews.tsv --out answers.tsv
      smoothtune predict runs/first --task quora pairs.csv --probabilities --format jsonl
      cat reviews.tsv | smoothtune predict runs/first --task sst
    """  # noqa: D301 - click reads \b
    from smoothtune.workflow.predict import predict_file

    count = predict_file(run, task, source, out, form=form, with_probabilities=probabilities, input_form=input_form)
    where = "" if out is None else f" in {out}"
    typer.echo(f"{count:,} rows predicted{where}", err=True)
