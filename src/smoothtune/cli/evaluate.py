"""`smoothtune evaluate`: how good a run is, with intervals."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from smoothtune.cli.options import Json, PerClass, RunFolder, Stage


def evaluate(
    run: RunFolder,
    data: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--data",
            metavar="TASK=FILE",
            help="Evaluate this task on FILE; only the tasks named so are evaluated. Repeatable.",
        ),
    ] = None,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--split", help="train, dev or test of the experiment; default: dev."),
    ] = None,
    stage: Stage = None,
    words_alone: Annotated[
        bool, typer.Option("--words-alone", help="Beside it, a TF-IDF baseline trained on the same rows.")
    ] = False,
    per_class: PerClass = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run: every metric with a 95 % interval.

    Beside it stands what the largest class for every row would score. Each class and the confusion matrix follow, for
    at most 12 classes or with --per-class.

    \b
    Examples:
      smoothtune evaluate runs/first
      smoothtune evaluate runs/first --data sst=new.tsv --json
      smoothtune evaluate runs/first --words-alone
      smoothtune evaluate runs/first --stage joint
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.evaluation_tables import print_evaluation
    from smoothtune.cli.tables import give_json, say
    from smoothtune.workflow.evaluate import evaluate_run

    found = evaluate_run(run, data=data or (), split=split, stage=stage, with_words_alone=words_alone)
    where = "data" if data else split or "dev"
    if as_json:
        give_json(found.to_json())
    else:
        print_evaluation(found.to_json(), where, per_class=per_class)
    for note in found.notes:
        say(note)
