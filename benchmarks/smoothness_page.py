"""Fills the tables of docs/smoothness.md from results/*.json. Measures nothing; a part that was not measured says so.

Run: python benchmarks/smoothness_page.py. A table stands between `<!-- table: PART -->` and `<!-- end -->`; the words around it
are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from environments import HERE
from harness import progress, read
from intervals import paired_difference
from tables import milliseconds, ratio, table, where

OUT = HERE.parent / "docs" / "smoothness.md"
PLACE = re.compile(r"(<!-- table: (?P<part>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Result = dict[str, Any]
CHEAPEST = "cheap"
# What is aimed at: whether its row over another (a key of the row) lies below or above a bound.
AIMS = (
    ("`exact` at most 2.7 plain steps", "exact", "over_plain", lambda value: value <= 2.7),
    ("`cheap` at most 1.4 plain steps", "cheap", "over_plain", lambda value: value <= 1.4),
    (
        "the same term through `smart-pytorch` in bf16 at least 2 `exact` steps",
        "smart-pytorch, bf16",
        "over_exact",
        lambda value: value >= 2,
    ),
)


def perturbations(result: Result) -> str:
    """A table per state and dtype: mean divergences, by preset and radius."""
    parts = [_dropout(result["states"])]
    for state, dtypes in result["states"].items():
        for dtype, tasks in dtypes.items():
            told = f"{_told(state, result)}, {dtype}"
            parts.append(f"### {told[0].upper()}{told[1:]}\n\n{_perturbation_table(tasks)}")
    return "\n\n".join(parts)


def _told(state: str, result: Result) -> str:
    return f"after {result['steps']} steps of the quick recipe" if state == "after" else "before fine-tuning"


def _dropout(states: Mapping[str, Any]) -> str:
    """Two passes that differ in dropout alone, and what rounding does by itself."""
    lines = []
    for state, dtypes in states.items():
        for dtype, tasks in dtypes.items():
            cells = []
            for found in tasks.values():
                rounding = found["rounding"]
                dropout = found["rows"]["exact"]["dropout"]
                cells += [f"{dropout:.1e}", f"{rounding['logit']:.0e}", f"{rounding['divergence']:.0e}"]
            lines.append([f"{state}, {dtype}", *cells])
    tasks = next(iter(next(iter(states.values())).values()))
    head = [f"{task}: {what}" for task in tasks for what in ("dropout alone", "largest logit error", "its divergence")]
    return table(("", *head), lines)


def _perturbation_table(tasks: Mapping[str, Any]) -> str:
    exact = "adversarial_float64" in next(iter(next(iter(tasks.values()))["rows"].values()))
    columns = ["random", "signs", "adversarial", *(["adversarial_float64"] if exact else [])]
    first = next(iter(tasks.values()))["rows"]
    lines = []
    for name, row in first.items():
        numbers = [f"{tasks[task]['rows'][name][column]:.1e}" for task in tasks for column in columns]
        lines.append([_row_name(name), f"{row['norm']:.1e}", f"{100 * row['surviving']:.0f} %", *numbers])
    shown = {"adversarial_float64": "adversarial, float64", "signs": "random signs"}
    head = ["", "norm", "survives", *(f"{task}: {shown.get(column, column)}" for task in tasks for column in columns)]
    return table(head, lines)


def _row_name(name: str) -> str:
    return f"`{name}`" if name.isalpha() else f"radius {name}"


def cost(result: Result) -> str:
    """A line per variant, then what was aimed at."""
    lines = []
    for name, row in result["variants"].items():
        over_exact = ratio(row["over_exact"]) if "over_exact" in row else ""
        lines.append(
            [name, milliseconds(row["median"]), "" if name == "plain" else ratio(row["over_plain"]), over_exact]
        )
    text = (
        f"Whole training steps on one batch of 32 SST texts ({result['tokens']} tokens, the longest text {result['longest']}), "
        f"in {result['dtype']} but where float32 stands; all in one process, taking turns, {result['repetitions']} turns after "
        f"{result['warm']} uncounted ones; with `every = k` a turn is k steps and counts their mean."
    )
    parts = [text, table(("variant", "step", "over plain", "over `exact`"), lines), *_aims(result["variants"])]
    return "\n\n".join([*parts, *(f"Not measured: {reason}." for reason in result["missing"])])


def _aims(variants: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (aim, ratio(variants[name][key]), "yes" if reached(variants[name][key]["value"]) else "no")
        for aim, name, key, reached in AIMS
        if key in variants.get(name, {})
    ]
    if rows:
        yield table(("aim", "measured", "reached"), rows)


def tuning(result: Result) -> str:
    """Every candidate, best first, and what was chosen."""
    ordered = sorted(result["table"].items(), key=lambda item: -item[1]["mean"])
    lines = [[f"`{name}`", f"{row['mean']:+.4f}", str(len(row["differences"]))] for name, row in ordered]
    chosen = "\n".join(f"- `{name}`: {_shown(options)}" for name, options in result["chosen"].items())
    text = (
        f"Mean difference to plain of the score on a fifth of the training rows that was held out, {result['steps']} steps; "
        f"all candidates of a grid at seed {result['seeds'][0]}, its best {result['finalists']} at seeds "
        f"{', '.join(map(str, result['seeds']))}. Chosen:"
    )
    return f"{text}\n\n{chosen}\n\n{table(('candidate', 'difference of the score', 'seeds'), lines)}"


def _shown(options: Mapping[str, Any]) -> str:
    told = {name: ", ".join(value) if isinstance(value, list) else value for name, value in options.items()}
    return ", ".join(f"{name} {value}" for name, value in told.items() if name not in ("kind", "preset", "name"))


def little_data(result: Result) -> str:
    """Means, and differences to plain and to `cheap` with their intervals, per task and overall."""
    found = result["compared"]
    figures = [name for name in next(iter(found.values())) if name != "beside"]
    (plain, row), *others = found.items()
    lines = [[plain, *(f"{row[figure]['mean']:.4f}" for figure in figures)]]
    for name, row in others:
        lines.append([name, *_differences(row, found[plain], figures)])
        if row["beside"] != plain:
            lines.append([f"{name} (to {row['beside']})", *_differences(row, found[row["beside"]], figures)])
    rows = ", ".join(f"{task} {count:,}" for task, count in result["rows"].items())
    codes = "" if result["codes"] == 1 else f" Made by {result['codes']} versions of the code."
    text = (
        f"Training rows: {rows}, drawn by the seed; {result['steps']} steps of 32; {len(result['seeds'])} seeds; the full dev "
        "sets, scored once, at the end. Accuracy (sst, quora), Pearson r (sts), and their mean with r as (r + 1) / 2. The first "
        "line is the mean, the others the mean difference to it, paired by seed, with Student's 95 % interval; what computes in "
        "float32 is compared with plain in float32 too, where the difference is that of the term alone. With so many "
        f"intervals some leave out 0 by chance.{codes}"
    )
    parts = [text, table(("", *figures), lines)]
    if CHEAPEST in found:
        beside = {name: row for name, row in others if name != CHEAPEST and row["beside"] is not None}
        lines = [
            [name, *_differences(row, found[CHEAPEST], figures)]
            for name, row in beside.items()
            if not name.startswith(plain)
        ]
        parts += [f"The other terms less `{CHEAPEST}`, which costs least:", table(("", *figures), lines)]
    settings = "\n".join(
        f"- {name}: {'; '.join(map(_shown, tables)) or 'as it comes'}" for name, tables in result["variants"].items()
    )
    return "\n\n".join([*parts, settings])


def _differences(row: Mapping[str, Any], other: Mapping[str, Any], figures: Iterable[str]) -> Iterator[str]:
    for figure in figures:
        found = paired_difference(row[figure]["values"], other[figure]["values"])
        yield f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


PARTS: dict[str, Callable[[Result], str]] = {
    "smoothness_tables": perturbations,
    "smoothness_cost": cost,
    "little_data_tuning": tuning,
    "little_data": little_data,
}


def filled(text: str) -> str:
    """The page with its tables written anew. Raises `ValueError` for a place that no part fills."""

    def place(found: re.Match[str]) -> str:
        part = found["part"]
        if part not in PARTS:
            raise ValueError(f"{OUT.name}: there is no part {part!r}; its tables are {', '.join(PARTS)}")
        result = read(part)
        body = "Not measured." if result is None else f"{PARTS[part](result)}\n\n{where(result)}"
        return f"{found[1]}\n{body}\n\n{found[3]}"

    return PLACE.sub(place, text)


def main(out: Path = OUT) -> None:
    """Write the page."""
    out.write_text(filled(out.read_text(encoding="utf-8")), encoding="utf-8")
    progress(f"wrote {out.name}")


if __name__ == "__main__":
    main()
