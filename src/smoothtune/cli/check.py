"""`smoothtune check`: what is in the data, and what is wrong with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smoothtune.cli.options import DataDir, Experiment, Json, Set

if TYPE_CHECKING:
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
    from smoothtune.cli.tables import err, out
    from smoothtune.errors import DataError, Problem
    from smoothtune.workflow.check import check_experiment

    report = check_experiment(experiment, data_dir=data_dir, overrides=override or ())
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print_report(report, out())
        print_warnings(report, err())
    if strict and report.leaking:
        leaks = [Problem(where, what) for where, what in _leak_lines(report)]
        raise DataError(f"{report.leaking} dev or test rows stand in training data (--strict):", leaks)


def _print_report(report: CheckReport, console: Any) -> None:
    from smoothtune.cli.tables import table

    rows = []
    for task, splits in report.tasks.items():
        for split, found in splits.items():
            lengths = found.lengths
            sizes = [f"{lengths.median:.0f}", f"{lengths.p95:.0f}", f"{lengths.longest:,}", f"{lengths.cut:.1%}"]
            faults = [f"{found.duplicates.count:,}", f"{found.conflicts.count:,}", _left_out(found)]
            rows.append([task, split, f"{found.rows:,}", _balance(found), *sizes, *faults])
    headers = ["task", "split", "rows", "labels", "tokens", "95 %", "max", "cut", "repeated", "conflicts", "left out"]
    console.print(table(headers, rows))


def _balance(found: SplitReport) -> str:
    if set(found.balance) == {"min", "mean", "max"} and not float(found.balance["mean"]).is_integer():
        low, mean, high = (found.balance[name] for name in ("min", "mean", "max"))
        return f"{low:g} to {high:g}, mean {mean:.2f}"
    shown = list(found.balance.items())[:6]
    more = f" and {len(found.balance) - 6} more" if len(found.balance) > 6 else ""
    return " ".join(f"{label}:{count / found.rows:.0%}" for label, count in shown) + more


def _left_out(found: SplitReport) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items()) or "0"


def print_warnings(report: CheckReport, console: Any) -> None:
    """One line for everything a careful person would look at."""
    for task, splits in report.tasks.items():
        for split, found in splits.items():
            for reason, count in found.left_out.items():
                console.print(f"note: {task}.{split}: {count:,} rows left out: {reason}", soft_wrap=True)
            if found.conflicts.count:
                _print_matches(
                    console, f"{task}.{split}: {found.conflicts.count} texts with more than one label", found.conflicts
                )
            if found.duplicates.count:
                _print_matches(console, f"{task}.{split}: {found.duplicates.count} repeated rows", found.duplicates)
    for where, what in _leak_lines(report):
        console.print(f"warning: {where}: {what}", soft_wrap=True)


def _print_matches(console: Any, headline: str, matches: Any) -> None:
    first = matches.examples[0]
    console.print(f"warning: {headline}, e.g. {first.here} and {first.there}", soft_wrap=True)


def _leak_lines(report: CheckReport) -> list[tuple[str, str]]:
    lines = []
    for task, splits in report.tasks.items():
        for split, found in splits.items():
            if found.leaks is None:
                continue
            where, leaks = f"{task}.{split}", found.leaks
            if leaks.whole.count:
                first = leaks.whole.examples[0]
                lines.append(
                    (where, f"{leaks.whole.count} rows stand in training data, e.g. {first.here} at {first.there}")
                )
            sharing = leaks.shared_one.count + leaks.shared_both.count
            if sharing:
                one, both = leaks.shared_one.count, leaks.shared_both.count
                lines.append(
                    (where, f"{sharing:,} pairs share a text with training pairs ({one:,} one, {both:,} both)")
                )
            if leaks.across.count:
                lines.append(
                    (where, f"{leaks.across.count} rows share a text with the training data of a task of other form")
                )
    return lines
