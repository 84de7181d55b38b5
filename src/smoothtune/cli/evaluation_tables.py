"""The tables of an evaluation, from its JSON: scores beside baselines, each class, confusion. Knows nothing of runs.

Results go to stdout; warnings and advice to stderr. Labels are the user's: what a terminal would obey is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from smoothtune.cli.tables import fits, interval, number, out, say, table
from smoothtune.terminal_text import printable

MOST_CLASSES = 12
"""Classes up to which each is shown without being asked for."""
_PAIRS = 20  # confused pairs that are listed
_WORDS = "words alone"


def print_evaluation(evaluation: Mapping[str, Any], where: str, *, per_class: bool) -> None:
    """All of an evaluation; `where` names the rows, `per_class` shows each class however many there are."""
    console = out()
    console.print(_scores(evaluation, where))
    if "difference" in evaluation:
        mean = evaluation["difference"]["mean"]
        low, high = _signed(mean["low"]), _signed(mean["high"])
        console.print(f"mean difference to {_WORDS}: {_signed(mean['value'])}, paired 95 % interval {low} to {high}")
    for task, metrics in evaluation["tasks"].items():
        classes = metrics.get("per_class")
        if classes is None:
            continue
        if per_class or len(classes) <= MOST_CLASSES:
            _print_classes(console, printable(task), metrics)
        else:
            say(f"{printable(task)}: {len(classes):,} classes; --per-class shows each of them and which are confused")
    for warning in warnings(evaluation):
        say(warning)


def warnings(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each task whose main metric a baseline reaches."""
    for name, baseline in evaluation.get("baselines", {}).items():
        for task, metrics in baseline["tasks"].items():
            metric = evaluation["main"][task]
            value, theirs = evaluation["tasks"][task][metric]["value"], metrics[metric]["value"]
            if value is None or theirs is None or value > theirs or value == 1:  # nothing is better than 1
                continue
            label = baseline["labels"].get(task)
            rows = "" if label is None else f" ('{printable(label)}') for every row"
            yield (
                f"warning: {printable(task)}: {metric} {number(value)} is no better than "
                f"the {name}{rows} ({number(theirs)})"
            )


def _scores(evaluation: Mapping[str, Any], where: str) -> Table:
    """Every metric of every task, then the means; a column for each baseline, and the rows while there is room."""
    beside = dict(evaluation.get("baselines", {}))
    if "words_alone" in evaluation:
        beside[_WORDS] = evaluation["words_alone"]
    with_rows = len(beside) < 2
    headers = ["task", "metric", where, "95 % interval", *beside, *(["rows"] if with_rows else [])]
    lines = []
    for task, metrics in evaluation["tasks"].items():
        for metric, estimate in metrics.items():
            if metric in ("per_class", "confusion"):
                continue
            others = [_cell(baseline["tasks"].get(task, {}).get(metric)) for baseline in beside.values()]
            rows = [f"{estimate['n']:,}"] if with_rows else []
            lines.append([printable(task), metric, number(estimate["value"]), interval(estimate), *others, *rows])
    for mean in ("score", "plain_mean"):
        estimate = evaluation[mean]
        others = [_cell(baseline[mean]) for baseline in beside.values()]
        scoreless = evaluation.get("scoreless", ())
        which = f"all but {', '.join(map(printable, scoreless))}" if scoreless else "all"
        line = [which, mean.replace("_", " "), number(estimate["value"]), interval(estimate), *others]
        lines.append([*line, *([""] if with_rows else [])])
    return table(headers, lines)


def _cell(estimate: Mapping[str, Any] | None) -> str:
    return "-" if estimate is None or estimate["value"] is None else number(estimate["value"])


def _print_classes(console: Console, task: str, metrics: Mapping[str, Any]) -> None:
    rows = [
        [
            printable(label),
            f"{scores['rows']:,}",
            *(_with_limits(scores[name]) for name in ("precision", "recall", "f1")),
        ]
        for label, scores in metrics["per_class"].items()
    ]
    console.print()
    console.print(f"{task}: each class, with 95 % intervals", soft_wrap=True)
    console.print(table(["class", "rows", "precision", "recall", "F1"], rows))
    console.print()
    labels, cells = list(metrics["per_class"]), metrics["confusion"]
    matrix = _matrix(labels, cells)
    if fits(matrix, console):
        console.print(f"{task}: rows by label (down) and prediction (across)", soft_wrap=True)
        console.print(matrix)
    else:
        _print_pairs(console, task, cells)


def _matrix(labels: list[str], cells: list[dict[str, Any]]) -> Table:
    rows = {(cell["label"], cell["prediction"]): f"{cell['rows']:,}" for cell in cells}
    lines = [[printable(label), *(rows.get((label, other), "0") for other in labels)] for label in labels]
    return table(["label", *map(printable, labels)], lines)


def _print_pairs(console: Console, task: str, cells: list[dict[str, Any]]) -> None:
    """The confused pairs, the commonest first: the matrix is too wide."""
    wrong = sorted((cell for cell in cells if cell["label"] != cell["prediction"]), key=lambda cell: -cell["rows"])
    rest = f", the first {_PAIRS} of {len(wrong):,}" if len(wrong) > _PAIRS else ""
    console.print(f"{task}: confused pairs{rest}", soft_wrap=True)
    shown = [[printable(cell["label"]), printable(cell["prediction"]), f"{cell['rows']:,}"] for cell in wrong[:_PAIRS]]
    console.print(table(["label", "prediction", "rows"], shown))


def _with_limits(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{number(estimate['value'])} (-)"
    return f"{number(estimate['value'])} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def _signed(value: float | None) -> str:
    return "nan" if value is None else f"{value:+.3f}"
