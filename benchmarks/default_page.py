"""Writes docs/defaults.md from results/default/CELLS.jsonl, several_tasks.json and tickets.json.

Measures nothing; says what is missing.

Run: python benchmarks/default_page.py. `--side NAME` shows the cells of that label as ours, `--dev` those of DEV.jsonl; with
either, the tables are printed instead, and the page is not touched. `notes/default.md`, where there is one, follows the
introduction.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

import default_data
from default_cells import Key, complete_lines, latest
from default_compare import BASELINES, LOSS, Cells, Comparison, Means, View, losses, mean_over_sets, seconds
from default_data import HALVES, SEEDS, SIZES
from default_sets import FILES, FOLDER
from environments import HERE
from harness import progress, read
from several_tasks_section import section as several_section
from tables import table
from tickets_section import section as tickets_section

OUT = HERE.parent / "docs" / "defaults.md"
MARK = "▼"
INTRODUCTION = f"""# What the defaults give

`ours` is `smoothtune.train` with the required keys alone: kind, text, label, train (and the range of a similarity). It stands
against two baselines that do not train the encoder:

- `frozen`: embeddings of the same encoder (all-MiniLM-L6-v2 by transformers, float32, mean of the token states, length 1, at most
  256 tokens) and logistic regression, its C by cross-validation on the training rows; for a pair u, v, |u − v| and u · v; for
  similarity also the cosine, and ridge;
- `words`: TF-IDF of words and characters and a linear model, as `smoothtune evaluate --words-alone` fits it.

A cell is a set, a number of training rows and a seed, which draws the rows and is the seed of every side. The whole test set is
scored. Figures are means over seeds {", ".join(map(str, SEEDS))}, times 100: accuracy, for similarity Spearman's correlation;
{MARK} is where ours is more than {100 * LOSS:g} point below. The better baseline is the one with the larger mean.
Differences are of the seeds that both sides have.

Recipes are chosen on the choice half alone, on training rows that are not drawn. The halves are fixed by name: every other set in
alphabetical order.

`make bench-default` measures what is missing (hours; stopped, it resumes) and writes this page; `make bench-default-page` writes
the page alone."""
NAMES = {"all": "Both halves", "choice": "The choice half", "confirmation": "The confirmation half"}


def page(cells: Cells, ours: str = "ours") -> str:
    """The whole page."""
    note = HERE / "notes" / "default.md"
    parts = [INTRODUCTION, *([note.read_text(encoding="utf-8").strip()] if note.exists() else [])]
    parts += [*_sections(cells, ours), several_section(read("several_tasks")), tickets_section(read("tickets"))]
    return "\n\n".join(parts) + "\n"


def _sections(cells: Cells, ours: str) -> Iterator[str]:
    yield _machines(cells, ours)
    for half in ("all", "choice", "confirmation"):
        sets = HALVES[half]
        yield f"## {NAMES[half]}\n\n{_counts(cells, sets, ours)}"
        view, f1 = View(cells, ours), View(cells, ours, "macro_f1")
        yield _summary(view, f1, sets)
        if half == "all":
            yield f"### Seconds of training\n\n{_seconds(cells, sets, ours)}"
            yield f"### Log loss\n\n{_log_loss(View(cells, ours, 'log_loss'), sets)}"
            yield f"### Where ours loses\n\n{_losses(view, f1, sets)}"
        else:
            yield f"### {NAMES[half]}: accuracy, for similarity Spearman's correlation\n\n{_rows(view, sets)}"
            yield f"### {NAMES[half]}: macro-F1\n\n{_rows(f1, sets)}"


def _machines(cells: Cells, ours: str) -> str:
    """Which processors measured how many cells, when, with which versions; and of which commits the cells of ours are."""
    lines = [line for key, line in cells.items() if key.side in (ours, *BASELINES)]
    if not lines:
        return "No cell is measured."
    dates = sorted(line["date"][:10] for line in lines)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    machines = Counter((line["processor"], line["cores"], line["threads"]) for line in lines)
    shown = [
        f"{count} cells on {processor}, {cores} cores, {'threads by default' if threads is None else f'{threads} thread(s)'}"
        for (processor, cores, threads), count in machines.most_common()
    ]
    versions = {f"torch {line['versions']['torch']}, Python {line['versions']['python']}" for line in lines}
    commits = sorted({str(line["commit"]) for key, line in cells.items() if key.side == ours})
    codes = len({line["code"] for key, line in cells.items() if key.side == ours})
    code = f"ours at commit {', '.join(commits)}" if codes else "no cell of ours"
    several = f" ({codes} states of the package's code)" if codes > 1 else ""
    return f"*{span}; {'; '.join(shown)}; {'; '.join(sorted(versions))}; {code}{several}.*"


def _counts(cells: Cells, sets: Sequence[str], ours: str) -> str:
    total = len(sets) * len(SIZES) * len(SEEDS)
    counts = {
        side: sum(Key(name, rows, seed, side) in cells for name in sets for rows in SIZES for seed in SEEDS)
        for side in (ours, *BASELINES)
    }
    shown = ", ".join(f"{side} {count} of {total}" for side, count in counts.items())
    return f"Sets: {', '.join(sets)}. Cells that are measured: {shown}."


def _summary(view: View, f1: View, sets: Sequence[str]) -> str:
    """Mean differences over sets by size, for the main metric and macro-F1."""
    lines = []
    for title, part in (("main metric", view), ("macro-F1", f1)):
        compared = part.comparisons(sets)
        for name, field in (("frozen", "to_frozen"), ("the better baseline", "to_better")):
            for rows in SIZES:
                differences = [getattr(row, field) for row in compared if row.rows == rows]
                means = mean_over_sets([value for value in differences if value is not None])
                if means is not None:
                    lines.append([f"{title}, to {name}", f"{rows:,}", *_means(means)])
    if not lines:
        return "No mean difference: fewer than two sets have cells of ours and of a baseline."
    head = ("ours, mean difference", "rows", "sets", "points", "Student's interval", "bootstrap over sets")
    return (
        "Differences are paired: means over the seeds of a set, then over sets. Both 95 % intervals are over sets: "
        "Student's over the set means, and a percentile bootstrap that draws sets.\n\n" + table(head, lines)
    )


def _means(means: Means) -> list[str]:
    ends = [f"{100 * part.low:+.1f} to {100 * part.high:+.1f}" for part in (means.student, means.bootstrap)]
    return [str(means.sets), f"{100 * means.student.value:+.1f}", *ends]


def _rows(view: View, sets: Sequence[str]) -> str:
    lines = [
        [
            row.set,
            f"{row.rows:,}",
            *(_percent(row.means[side]) for side in ("ours", *BASELINES)),
            _points(row.to_frozen),
            _points(row.to_better),
        ]
        for row in view.comparisons(sets)
    ]
    head = ("set", "rows", "ours", *BASELINES, "ours − frozen", "ours − better baseline")
    return table(head, lines) if lines else "No cell is measured."


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    if value is None:
        return ""
    return f"{MARK} {100 * value:+.1f}" if value < -LOSS else f"{100 * value:+.1f}"


def _losses(view: View, f1: View, sets: Sequence[str]) -> str:
    parts = []
    for title, part in (("Main metric", view), ("Macro-F1", f1)):
        compared = [row for row in part.comparisons(sets) if row.to_better is not None]
        rows = losses(compared)
        count = f"{title}: more than {100 * LOSS:g} point below the better baseline at {len(rows)} of {len(compared)}"
        lines = [_loss(difference, row) for difference, row in rows]
        parts.append("\n".join([f"{count} sets and sizes.", "", *lines]).strip())
    return "\n\n".join(parts)


def _loss(difference: float, row: Comparison) -> str:
    half = "choice" if row.set in default_data.CHOICE else "confirmation"
    return f"- {row.set} ({half}), {row.rows:,} rows: {100 * difference:+.1f} to {row.better}"


def _seconds(cells: Cells, sets: Sequence[str], ours: str) -> str:
    lines = []
    for rows in SIZES:
        times = [seconds(cells, sets, rows, side) for side in (ours, *BASELINES)]
        lines.append([f"{rows:,}", *("" if value is None else f"{value:.1f}" for value in times)])
    return (
        "Medians over sets and seeds. Ours: the call of `smoothtune.train`. `frozen`: embedding the training rows, "
        "cross-validation and fitting. `words`: cross-validation, fitting and predicting the test set.\n\n"
        + table(("rows", "ours", *BASELINES), lines)
    )


def _log_loss(view: View, sets: Sequence[str]) -> str:
    """Means over the sets that have cells of both sides."""
    compared, lines = [row for row in view.comparisons(sets) if row.to_frozen is not None], []
    for rows in SIZES:
        values = {
            side: [mean for row in compared if row.rows == rows and (mean := row.means[side]) is not None]
            for side in ("ours", "frozen")
        }
        if values["ours"]:
            means = [f"{statistics.fmean(numbers):.3f}" for numbers in values.values()]
            lines.append([f"{rows:,}", str(len(values["ours"])), *means])
    if not lines:
        return "No set has cells of ours and of `frozen`."
    return (
        "Means over seeds, then over the classification sets; lower is better. A probability counts as at least 1e-6, "
        "so that classes without a training row have a loss.\n\n" + table(("rows", "sets", "ours", "frozen"), lines)
    )


def main() -> None:
    """Write the page, or print the tables of a label."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", default="ours", help="the label that is shown as ours")
    parser.add_argument("--dev", action="store_true", help="show the cells of DEV.jsonl")
    options = parser.parse_args()
    cells = latest(complete_lines(FOLDER / FILES[options.dev]))
    if options.dev or options.side != "ours":
        print("\n\n".join(_sections(cells, options.side)))
        return
    OUT.write_text(page(cells), encoding="utf-8")
    progress(f"wrote {OUT.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
