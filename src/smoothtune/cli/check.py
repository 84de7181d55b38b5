"""`smoothtune check`: what is in the data, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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
    from smoothtune.cli.tables import counted, err, give_json, out
    from smoothtune.errors import DataError, Problem, ProblemsError, SmoothtuneError
    from smoothtune.workflow.check import check_experiment

    try:
        report = check_experiment(experiment, data_dir=data_dir, overrides=override or ())
    except SmoothtuneError as error:
        if as_json:
            problems = error.problems if isinstance(error, ProblemsError) else (Problem("", str(error)),)
            give_json({"problems": [asdict(problem) for problem in problems]})
        raise
    if as_json:
        give_json(report.to_json())
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
        console.print(f"labels of {row[0]}.{row[1]}: {row[_LABELS]}", soft_wrap=True)


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
        console.print(line, soft_wrap=True)


def _warnings(report: CheckReport) -> Iterator[str]:
    from smoothtune.cli.tables import counted

    for task, splits in report.tasks.items():
        for split, found in splits.items():
            where = f"{task}.{split}"
            yield from found.remarks
            for reason, count in found.left_out.items():
                yield f"note: {where}: {counted(count, 'row', 'rows')} left out: {reason}"
            if split == "train" and found.doubts.absent:
                labels = _first([repr(label) for label in found.doubts.absent])
                yield f"note: {where}: no row has the label {labels}: it cannot be learned"
            if found.conflicts.count:
                what = counted(found.conflicts.count, "text", "texts")
                yield f"warning: {where}: {what} with more than one label, {_example(found.conflicts)}"
            if found.duplicates.count:
                what = counted(found.duplicates.count, "repeated row", "repeated rows")
                yield f"warning: {where}: {what}, {_example(found.duplicates)}"
            yield from (f"warning: {where}: {what}" for what in _label_texts(split, found))
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


def _label_texts(split: str, found: SplitReport) -> Iterator[str]:
    from smoothtune.cli.tables import counted

    doubts = found.doubts
    if doubts.rare:
        what = f"{counted(len(doubts.rare), 'class has', 'classes have')} fewer than 5 rows"
        labels = _first([f"{label!r} ({count})" for label, count in doubts.rare.items()])
        yield f"{what}: {labels}: scores of {_these(doubts.rare)} mean little"
    if doubts.lookalikes.count:
        what = counted(doubts.lookalikes.count, "label of a single row is", "labels of a single row are")
        labels = _first(
            [f"{item.label!r} at {item.place} ({item.other!r})" for item in doubts.lookalikes.examples],
            doubts.lookalikes.count,
        )
        yield f"{what} spelt almost like another: {labels}: mend the row if that is a mistake"
    if doubts.dominant is not None and found.metric == "accuracy":
        share = f"{found.balance[doubts.dominant] / found.rows:.0%} of the rows have the label {doubts.dominant!r}"
        yield f'{share}: accuracy hides what becomes of the others; set metric = "macro_f1"'
    for group in doubts.alike[:6]:
        labels = " and ".join(f"{label!r} ({found.balance[label]:,})" for label in group)
        yield f"labels alike but for case or spelling: {labels}: they are {len(group)} classes; mend the rows if they are one"
    for doubtful, why in ((doubts.none, "no label"), (doubts.several, "several labels in one")):
        if doubtful:
            labels = _first([f"{label!r} ({found.balance[label]:,})" for label in doubtful])
            classes = "it is a class" if len(doubtful) == 1 else "each is a class"
            yield f"{labels} may mean {why}: {classes} of its own; {_CURES[why]}"
    if split == "dev" and doubts.constant and found.span is not None:
        rows = f"all {found.rows:,} rows have" if found.rows > 1 else "the only row has"
        yield f"{rows} the label {found.span.min:g}: no correlation exists, so the task has no score; training follows the others"
    elif split == "dev" and doubts.constant:
        yield f"all {counted(found.rows, 'row has', 'rows have')} one label: a model that always gives it has the best score"
    elif split == "dev" and doubts.absent:
        what = f"{counted(len(doubts.absent), 'class has', 'classes have')} no row"
        labels = _first([repr(label) for label in doubts.absent])
        yield f"{what}: {labels}: scores say nothing about {_these(doubts.absent)}"
    if doubts.few_rows:
        yield f"{counted(found.rows, 'row is', 'rows are')} few: a score of so few is coarse; give 50 or more"


_CURES = {"no label": "leave such cells empty", "several labels in one": "give each row one label"}


def _these(classes: Collection[str]) -> str:
    return "this class" if len(classes) == 1 else "these classes"


def _first(items: Sequence[str], count: int | None = None) -> str:
    """The first six of `count` items, all by default, and how many more there are."""
    more = (len(items) if count is None else count) - 6
    return ", ".join(items[:6]) + (f" and {more:,} more" if more > 0 else "")


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
