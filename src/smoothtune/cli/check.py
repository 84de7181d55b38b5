"""`smoothtune check`: what is in the data, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smoothtune.cli.options import DataDir, Experiment, Json, Set

if TYPE_CHECKING:
    from smoothtune.data.findings import Leaks, Matches
    from smoothtune.workflow.check import CheckReport, SplitReport


def check(
    experiment: Experiment,
    data_dir: DataDir = None,
    override: Set = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Leaks from dev or test into training are an error.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read all data of an experiment and report sizes, labels, lengths, repeats, contradictions and leaks.

    \b
    Examples:
      smoothtune check demo
      smoothtune check my.toml --data-dir data --strict
      smoothtune check my.toml --json > check.json
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.tables import counted, err, out
    from smoothtune.errors import DataError, Problem, ProblemsError, SmoothtuneError
    from smoothtune.workflow.check import check_experiment

    try:
        report = check_experiment(experiment, data_dir=data_dir, overrides=override or ())
    except SmoothtuneError as error:
        if as_json:
            problems = error.problems if isinstance(error, ProblemsError) else (Problem("", str(error)),)
            typer.echo(json.dumps({"problems": [asdict(problem) for problem in problems]}, indent=2))
        raise
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print_report(report, out())
        print_warnings(report, err())
    if strict and report.leaking:
        headline = counted(report.leaking, "dev or test row stands", "dev or test rows stand")
        whole = [Problem(where, _whole(leaks)) for where, leaks in _leaks(report) if leaks.whole.count]
        raise DataError(f"{headline} in training data (--strict):", whole)


_HEADERS = ["task", "split", "rows", "labels", "tokens", "95 %", "max", "cut", "repeated", "conflicts", "left out"]
_LABELS = _HEADERS.index("labels")


def _print_report(report: CheckReport, console: Any) -> None:
    from smoothtune.cli.tables import fits, table

    rows = []
    for task, splits in report.tasks.items():
        for split, found in splits.items():
            lengths = found.lengths
            sizes = [f"{lengths.median:.0f}", f"{lengths.p95:.0f}", f"{lengths.longest:,}", f"{lengths.cut:.1%}"]
            faults = [found.duplicates.count, found.conflicts.count, sum(found.left_out.values())]
            rows.append([task, split, f"{found.rows:,}", _balance(found), *sizes, *(f"{count:,}" for count in faults)])
    whole = table(_HEADERS, rows)
    if fits(whole, console):
        console.print(whole)
        return
    console.print(table(_without_labels(_HEADERS), [_without_labels(row) for row in rows]))
    console.print()
    for row in rows:
        console.print(f"labels of {row[0]}.{row[1]}: {row[_LABELS]}", soft_wrap=True, markup=False)


def _without_labels(row: list[str]) -> list[str]:
    return row[:_LABELS] + row[_LABELS + 1 :]


def _balance(found: SplitReport) -> str:
    if found.span is not None:
        return f"{found.span.min:g} to {found.span.max:g}, mean {found.span.mean:.2f}"
    shown = list(found.balance.items())[:6]
    more = f" and {len(found.balance) - 6} more" if len(found.balance) > 6 else ""
    return " ".join(f"{label}:{count / found.rows:.0%}" for label, count in shown) + more


def print_warnings(report: CheckReport, console: Any) -> None:
    """One line for everything a careful person would look at."""
    for line in _warnings(report):
        console.print(line, soft_wrap=True, markup=False)


def _warnings(report: CheckReport) -> Iterator[str]:
    from smoothtune.cli.tables import counted

    for task, splits in report.tasks.items():
        for split, found in splits.items():
            where = f"{task}.{split}"
            for reason, count in found.left_out.items():
                yield f"note: {where}: {counted(count, 'row', 'rows')} left out: {reason}"
            never = [repr(label) for label, count in found.balance.items() if not count]
            if split == "train" and never:
                more = f" and {len(never) - 6} more" if len(never) > 6 else ""
                yield f"note: {where}: no row has the label {', '.join(never[:6])}{more}: it cannot be learned"
            if found.conflicts.count:
                what = counted(found.conflicts.count, "text", "texts")
                yield f"warning: {where}: {what} with more than one label, {_example(found.conflicts)}"
            if found.duplicates.count:
                what = counted(found.duplicates.count, "repeated row", "repeated rows")
                yield f"warning: {where}: {what}, {_example(found.duplicates)}"
    silent = "nothing in the encoder trains, so there is no dropout in it"
    kept = [name for name in report.frozen if name not in (*report.looked_into, *report.adapted)]
    if kept:
        yield f"note: {_stages(kept)}: {silent} and its states can be kept"
    if report.looked_into:
        why = "regularisers look into it, so its states are not kept"
        yield f"note: {_stages(report.looked_into)}: {silent}; {why} and every step encodes"
    if report.adapted:
        why = "LoRA or adapters change what it gives, so its states are not kept"
        yield f"note: {_stages(report.adapted)}: {silent}; {why} and every step encodes"
    for slow in report.slow_starts:
        rises = f"its rate rises for {slow.warmup:g} of its {slow.epochs} epochs and its patience is {slow.patience}"
        yield f"warning: stage {slow.stage}: {rises}: it may end before its rate is at its peak"
    for where, leaks in _leaks(report):
        yield from (f"warning: {where}: {what}" for what in _leak_texts(leaks))


def _stages(names: Sequence[str]) -> str:
    return f"{'stage' if len(names) == 1 else 'stages'} {', '.join(names)}"


def _example(matches: Matches) -> str:
    first = matches.examples[0]
    return f"e.g. {first.here} and {first.there}"


def _leaks(report: CheckReport) -> list[tuple[str, Leaks]]:
    return [
        (f"{task}.{split}", found.leaks)
        for task, splits in report.tasks.items()
        for split, found in splits.items()
        if found.leaks is not None
    ]


def _whole(leaks: Leaks) -> str:
    from smoothtune.cli.tables import counted

    first = leaks.whole.examples[0]
    return (
        f"{counted(leaks.whole.count, 'row stands', 'rows stand')} in training data, e.g. {first.here} at {first.there}"
    )


def _leak_texts(leaks: Leaks) -> Iterator[str]:
    from smoothtune.cli.tables import counted

    if leaks.whole.count:
        yield _whole(leaks)
    one, both = leaks.shared_one.count, leaks.shared_both.count
    if one + both:
        yield f"{counted(one + both, 'pair shares', 'pairs share')} a text with training pairs ({one:,} one, {both:,} both)"
    if leaks.across.count:
        what = counted(leaks.across.count, "row shares", "rows share")
        yield f"{what} a text with the training data of a task of other form"
