"""`smoothtune evaluate`: how good a run is, with intervals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from smoothtune.cli.options import Json, RunFolder, Stage

if TYPE_CHECKING:
    from smoothtune.workflow.evaluate import Evaluation


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
    as_json: Json = False,
) -> None:
    """Evaluate a run: every metric with a 95 % bootstrap interval.

    \b
    Examples:
      smoothtune evaluate runs/first
      smoothtune evaluate runs/first --data sst=new.tsv --json
      smoothtune evaluate runs/first --words-alone
      smoothtune evaluate runs/first --stage joint
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.tables import out, score_rows, table
    from smoothtune.workflow.evaluate import evaluate_run

    found = evaluate_run(run, data=data or (), split=split, stage=stage, with_words_alone=words_alone)
    where = "data" if data else split or "dev"
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    elif found.words_alone is None:
        headers = ["task", "metric", where, "95 % interval", "rows"]
        out().print(table(headers, score_rows(found.scores.to_json())))
    else:
        _print_beside(found, where)
    for note in found.notes:
        typer.echo(note, err=True)


def _print_beside(found: Evaluation, where: str) -> None:
    from smoothtune.cli.tables import interval, number, out, table

    assert found.words_alone is not None
    assert found.difference is not None
    scores, words = found.scores.to_json(), found.words_alone.to_json()
    rows = []
    for task, metrics in scores["tasks"].items():
        for metric, value in metrics.items():
            beside = words["tasks"][task][metric]
            rows.append([task, metric, number(value["value"]), interval(value), number(beside["value"])])
    for name in ("score", "plain_mean"):
        rows.append(["all", name.replace("_", " "), number(scores[name]["value"]), interval(scores[name])])
        rows[-1].append(number(words[name]["value"]))
    out().print(table(["task", "metric", where, "95 % interval", "words alone"], rows))
    mean = found.difference.mean
    out().print(
        f"mean difference to words alone: {mean.value:+.3f}, paired 95 % interval {mean.low:+.3f} to {mean.high:+.3f}"
    )
