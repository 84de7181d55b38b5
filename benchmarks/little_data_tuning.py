"""Radius and weight of `exact` and `cheap`, tuned on other seeds than those reported and on 20 % held out of the training rows.

Run: python benchmarks/little_data_tuning.py [--jobs 1] [--finalists 3] [--final-seeds 2]. As `little_data.py`, but scored on
the held-out fifth of each training file; dev is never read. First a coarse grid at one seed, then its finalists at further seeds;
chosen is the largest mean difference to plain of the score, over all seeds of the finalists. `exact`: radius x weight. `cheap`:
the (layer, fraction, every) that cost at most 1.4 plain steps (results/smoothness_cost.json), at the radius and weight of
`exact`; then its own radius x weight. Noise and step grow with the radius, as the preset has it. Every run is kept in
results/little_data_tuning/. Writes results/little_data_tuning.json, and prints its table.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from harness import progress, read, save, settings_of
from little_data_cells import STEPS, TRAIN_ROWS, Cell, Grid, Rows, Table, run_all, write_tasks
from options import parser_of
from rows import SOURCES, read_rows, what_data

RADII, WEIGHTS = (0.003, 0.01, 0.03, 0.1), (0.3, 1.0, 3.0)
FIRST_SEED = 101
HELD_OUT = 0.2
MOST = 1.4
DEFAULT_PLACES: tuple[Table, ...] = ({"layer": "middle", "fraction": 0.5},)
Candidates = dict[str, Table]


def at(radius: float, weight: float, **more: Any) -> Table:
    """`exact` at a radius and weight, and what else is given."""
    return {"kind": "smoothness", "preset": "exact", "radius": radius, "weight": weight, **more}


def grid_of(name: str, **more: Any) -> Candidates:
    """Every radius with every weight."""
    return {f"{name}-{radius:g}-{weight:g}": at(radius, weight, **more) for radius, weight in product(RADII, WEIGHTS)}


def cheap_places(cost: Mapping[str, Any] | None) -> tuple[Table, ...]:
    """The (layer, fraction, every) whose step costs at most 1.4 plain ones, as measured; unmeasured, a default."""
    if cost is None:
        return DEFAULT_PLACES
    found = []
    for name, row in cost["variants"].items():
        given = dict(part.split(" = ") for part in name.split(", ") if " = " in part)
        if given and set(given) <= {"layer", "fraction", "every"} and row["over_plain"]["value"] <= MOST:
            layer = given.get("layer", "0")
            place = {"layer": int(layer) if layer.isdigit() else layer, "fraction": float(given.get("fraction", 1))}
            found.append({**place, "every": int(given["every"])} if "every" in given else place)
    return tuple(found)


def name_of(place: Table) -> str:
    """What a place is called among the runs."""
    every = f"-every-{place['every']}" if "every" in place else ""
    return f"cheap-{place['layer']}-{place['fraction']:g}{every}"


def held_out(rows: Rows, seed: int = 0) -> tuple[Rows, Rows]:
    """The rows without, and of, a fifth of the texts; rows of the same texts, in either order, stay together."""
    keys = sorted({tuple(sorted(texts)) for texts, _ in rows})
    random.Random(seed).shuffle(keys)
    kept = set(keys[: round(HELD_OUT * len(keys))])
    away = [tuple(sorted(texts)) in kept for texts, _ in rows]
    return [row for row, out in zip(rows, away, strict=True) if not out], [
        row for row, out in zip(rows, away, strict=True) if out
    ]


class Tuning:
    """The runs of all phases: a candidate at a seed is run once, however many phases ask for it."""

    def __init__(self, grid: Grid, folder: Path, seeds: Sequence[int]) -> None:
        self._grid = grid
        self._folder = folder
        self._seeds = tuple(seeds)
        self.table: dict[str, dict[str, Any]] = {}

    def best(self, candidates: Candidates, finalists: int) -> str:
        """The candidate with the largest mean difference to plain, the coarse grid being run at the first seed alone."""
        first = self._differences(candidates, self._seeds[:1])
        left = sorted(first, key=lambda name: -first[name])[:finalists]
        last = self._differences({name: candidates[name] for name in left}, self._seeds)
        return max(last, key=lambda name: last[name])

    def _differences(self, candidates: Candidates, seeds: Iterable[int]) -> dict[str, float]:
        """Mean difference of the score to plain, by candidate; the table keeps what there is."""
        seeds = list(seeds)
        cells = [Cell("plain", seed) for seed in seeds]
        cells += [Cell(name, seed, (table,)) for seed in seeds for name, table in candidates.items()]
        found = run_all(cells, self._grid, self._folder)
        for name, table in candidates.items():
            values = {seed: found[name, seed]["score"] - found["plain", seed]["score"] for seed in seeds}
            self.table[name] = {"regulariser": table, "differences": values, "mean": statistics.fmean(values.values())}
        return {name: self.table[name]["mean"] for name in candidates}


def tuned(tuning: Tuning, places: Sequence[Table], finalists: int) -> dict[str, Table]:
    """The regularisers chosen for `exact` and `cheap`; no `cheap` where no place is cheap enough."""
    exact = tuning.table[tuning.best(grid_of("exact"), finalists)]["regulariser"]
    if not places:
        return {"exact": exact}
    at_places = {name_of(place): at(exact["radius"], exact["weight"], **place) for place in places}
    name = tuning.best(at_places, finalists)
    place = {key: at_places[name][key] for key in ("layer", "fraction", "every") if key in at_places[name]}
    cheap = tuning.best(grid_of(f"{name}-at", **place), finalists)
    return {"exact": exact, "cheap": tuning.table[cheap]["regulariser"]}


def lines_of(table: Mapping[str, Any], chosen: Mapping[str, Table]) -> list[str]:
    """What is printed: a line per candidate, best first, and what was chosen."""
    ordered = sorted(table.items(), key=lambda item: -item[1]["mean"])
    lines = [f"{row['mean']:+.4f}  {len(row['differences'])} seeds  {name}" for name, row in ordered]
    return [*lines, *(f"chosen for {name}: {table}" for name, table in chosen.items())]


def main() -> None:
    """Tune, save, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--finalists", type=int, default=3, help="of a grid, run at all seeds")
    parser.add_argument("--final-seeds", type=int, default=2, help="further seeds of the finalists")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    places = cheap_places(read("smoothness_cost"))
    progress(f"little data tuning: cheap enough are {', '.join(map(str, places)) or 'none'}")
    seeds = range(FIRST_SEED, FIRST_SEED + 1 + options.final_seeds)
    with tempfile.TemporaryDirectory() as name:
        split = {task: held_out(read_rows(source, options.data_dir)) for task, source in SOURCES.items()}
        write_tasks(Path(name), *({task: parts[side] for task, parts in split.items()} for side in (0, 1)))
        grid = Grid("little_data_tuning", options.jobs, steps=options.steps, threads=options.threads)
        tuning = Tuning(grid, Path(name), seeds)
        chosen = tuned(tuning, places, options.finalists)
    settings = settings_of(
        data=what_data(options.data_dir), threads=options.threads, rows=TRAIN_ROWS, steps=options.steps,
        seeds=list(seeds), finalists=options.finalists, places=places,
    )  # fmt: skip
    save("little_data_tuning", {**settings, "table": tuning.table, "chosen": chosen})
    print("\n".join(lines_of(tuning.table, chosen)))


if __name__ == "__main__":
    main()
