"""Little data: the quick recipe on 1,000 SST, 1,000 STS and 2,000 Quora training rows, plain and with every regulariser.

Run: python benchmarks/little_data.py [--seeds 5] [--jobs 1] [NAME ...]. A seed draws the training rows, the first weights, the
order and the masks, the same for all variants, so that differences to plain are paired; what computes in float32 is paired
with plain in float32. 625 steps of 32 rows are 5 epochs' worth.
Nothing is chosen on dev: the stage sees a few training rows as its dev part, and the full dev sets are scored once, at the end.
Each run is kept as results/little_data/VARIANT-SEED.json with what it was made with: stopped, the command goes on where it was,
seed by seed across the variants. `exact` and `cheap` are as `little_data_tuning.py` chose them. `--jobs N` runs N processes at
once (give `--threads 1` with it). Writes results/little_data.json when all runs are there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import read, save, settings_of
from intervals import paired_difference
from little_data_cells import STEPS, TRAIN_ROWS, Cell, Grid, Table, run_all, write_tasks
from options import parser_of
from rows import SOURCES, read_rows, what_data

SMOOTH = {"kind": "smoothness"}
# Weights: r_drop 1 (Liang et al., 2021, its setting for GLUE), r3f 1 (within the grid of Aghajanyan et al., 2021), wang 5 (Wang's
# larger), paper 3 (the middle of the grid of Jiang et al., 2020), mtdnn 1 (its code's default). A radius or noise of 1e-5 is
# rounded away in bfloat16, so what has one computes in float32. `r_drop-as-paper` is `paper` without its perturbation: agreement
# of two dropout masks, of the same strength (r_drop halves the two sides of classes and binary, not of regression), in bfloat16.
VARIANTS: dict[str, tuple[Table, ...]] = {
    "plain": (),
    "plain-float32": (),
    "r_drop": ({"kind": "r_drop", "weight": 1.0},),
    "r_drop-as-paper": (
        {"kind": "r_drop", "weight": 6.0, "second_loss": False, "tasks": ["sst", "quora"]},
        {"kind": "r_drop", "name": "r_drop_sts", "weight": 3.0, "second_loss": False, "tasks": ["sts"]},
    ),
    "r3f": ({"kind": "r3f", "weight": 1.0, "precision": "float32"},),
    "wang": ({**SMOOTH, "preset": "wang", "weight": 5.0, "precision": "float32"},),
    "paper": ({**SMOOTH, "preset": "paper", "weight": 3.0, "precision": "float32"},),
    "mtdnn": ({**SMOOTH, "preset": "mtdnn", "weight": 1.0},),
    "exact": ({**SMOOTH, "preset": "exact"},),
    "cheap": ({**SMOOTH, "preset": "cheap"},),
}


def variants() -> dict[str, tuple[Table, ...]]:
    """The variants; `exact` and `cheap` as they were tuned, where they were."""
    tuned = (read("little_data_tuning") or {"chosen": {}})["chosen"]
    return {name: (tuned[name],) if name in tuned else tables for name, tables in VARIANTS.items()}


def beside(name: str, tables: Sequence[Table]) -> str | None:
    """The variant that one is compared with: plain, in float32 where it computes in float32; None for plain itself."""
    if name == "plain":
        return None
    return "plain-float32" if any(table.get("precision") == "float32" for table in tables) else "plain"


def compared(
    found: Mapping[tuple[str, int], dict[str, Any]], seeds: Sequence[int], others: Mapping[str, str | None]
) -> dict[str, dict[str, Any]]:
    """Per variant and figure (a task's main metric, `score`): the values by seed, their mean, the difference to `others`."""
    names = list(dict.fromkeys(name for name, _ in found))
    figures = [*found[names[0], seeds[0]]["tasks"], "score"]
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        other = others[name]
        rows[name] = {"beside": other}
        for figure in figures:
            values = [_value(found[name, seed], figure) for seed in seeds]
            rows[name][figure] = {"values": values, "mean": sum(values) / len(values), "difference": None}
            if other is not None:
                plain = [_value(found[other, seed], figure) for seed in seeds]
                rows[name][figure]["difference"] = paired_difference(values, plain).to_json()
    return rows


def _value(run: dict[str, Any], figure: str) -> float:
    return float(run["score"] if figure == "score" else run["tasks"][figure])


def main() -> None:
    """Run what is missing, then compare."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", help="variants beside plain, default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    every = variants()
    unknown = set(options.names) - set(every)
    if options.seeds < 2 or unknown:
        parser.error(f"expected at least 2 seeds and variants among {', '.join(every)}")
    needed = {"plain", *options.names} | {beside(name, every[name]) for name in options.names}
    chosen = {name: tables for name, tables in every.items() if not options.names or name in needed}
    seeds = range(1, options.seeds + 1)
    cells = [
        Cell(name, seed, tables, "float32" if name == "plain-float32" else None)
        for seed in seeds
        for name, tables in chosen.items()
    ]
    grid = Grid("little_data", options.jobs, steps=options.steps, threads=options.threads)
    with tempfile.TemporaryDirectory() as name:
        parts = ({task: read_rows(source, options.data_dir, split) for task, source in SOURCES.items()}
                 for split in ("train", "dev"))  # fmt: skip
        write_tasks(Path(name), *parts)
        found = run_all(cells, grid, Path(name))
    settings = settings_of(
        data=what_data(options.data_dir), threads=options.threads, rows=TRAIN_ROWS, steps=options.steps,
        seeds=list(seeds), variants=chosen, codes=len({run["made_with"]["code"] for run in found.values()}),
    )  # fmt: skip
    save(
        "little_data",
        {
            **settings,
            "compared": compared(found, seeds, {name: beside(name, tables) for name, tables in chosen.items()}),
        },
    )


if __name__ == "__main__":
    main()
