"""The section of docs/defaults.md on the rare class, from results/tickets.json. Measures nothing."""

from __future__ import annotations

import statistics
from typing import Any

from tables import quoted, table, where

METRICS = {"recall": "recall of urgent", "precision": "its precision", "macro_f1": "macro-F1", "accuracy": "accuracy"}
TITLES = {"ours": "ours", "balanced": "frozen, balanced"}


def section(result: dict[str, Any] | None) -> str:
    """The whole section."""
    head = "## A rare class: urgent tickets\n\n`make bench-tickets`\n\n"
    return head + ("Not measured." if result is None else _body(result))


def _body(result: dict[str, Any]) -> str:
    runs = result["runs"]
    urgent = sorted(run["new_urgent"] for run in runs)
    introduction = (
        f"{result['rows']} made-up tickets of three urgencies train, {runs[0]['train']['urgent']} of them urgent; "
        f"{result['new_rows']} new ones with {urgent[0]} to {urgent[-1]} urgent are scored. The text is from templates: what "
        "happened makes the urgency, not the tone. The baseline is logistic regression with balanced class weights on "
        f"frozen embeddings, its C by cross-validation. Means of {len(runs)} seeds; in brackets the seeds."
    )
    lines = [
        [TITLES[side], *(_seeds([run["sides"][side]["metrics"][metric] for run in runs]) for metric in METRICS)]
        for side in TITLES
    ]
    parts = [introduction, table(("", *METRICS.values()), lines), where(result)]
    return "\n\n".join([*parts, *(_printed(command, output) for command, output in result["printed"].items())])


def _seeds(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def _printed(command: str, output: dict[str, Any]) -> str:
    lines = [line.rstrip() for part in ("stderr", "stdout") for line in output[part].splitlines()]
    return f"`{command}` on the tickets of the first seed prints:\n\n{quoted(line for line in lines if line)}"
