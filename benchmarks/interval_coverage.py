"""How often 95 % intervals of scores hold the true value, by simulation: results/coverage.json, a table of docs/intervals.md.

Run: python benchmarks/interval_coverage.py [--sets 1000] [--metrics accuracy ...]. A cell is a metric, a population, a number
of rows and a window of true values: `TRUTHS` values spread evenly over the window, `--sets` data sets of each.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environments import HERE
from harness import RESULTS, progress, save, settings_of
from smoothtune.evaluation.intervals import Estimate, mean_estimate, metric_estimate
from smoothtune.evaluation.per_class import class_scores
from tables import table, where

OUT = HERE.parent / "docs" / "intervals.md"
PLACE = re.compile(r"(<!-- table: coverage -->\n).*?(<!-- end -->)", re.DOTALL)
ROWS = (15, 80, 1000)
TRUTHS = 10
CLASSES = {
    "three classes of equal size": (1.0, 1.0, 1.0),
    "five classes, of 46 to 6 % of the rows": (1.0, 0.6, 0.36, 0.22, 0.13),
}
Generator = np.random.Generator
Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Share of the intervals that hold the true value; the smallest share for one truth; truths under and over them."""

    mean: float
    lowest: float
    below: float
    above: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """A metric of rows drawn from a population: `draw(truth, rows, generator)` is the estimate of one data set."""

    metric: str
    population: str
    windows: tuple[tuple[float, float], ...]
    draw: Callable[[float, int, Generator], Estimate]
    rows: tuple[int, ...] = ROWS


def coverage(simulation: Simulation, rows: int, window: tuple[float, float], sets: int, seed: int = 0) -> Coverage:
    """The coverage of `sets` data sets of `rows` rows for each of `TRUTHS` true values in the window."""
    generator = np.random.default_rng(seed)
    sides = []
    for truth in np.linspace(*window, TRUTHS):
        estimates = [simulation.draw(float(truth), rows, generator) for _ in range(sets)]
        low, high = (np.array([getattr(estimate, side) for estimate in estimates]) for side in ("low", "high"))
        sides.append(((truth < low).mean(), (truth > high).mean(), ((low <= truth) & (truth <= high)).mean()))
    below, above, held = np.array(sides).T
    return Coverage(float(held.mean()), float(held.min()), float(below.mean()), float(above.mean()))


def accuracy(truth: float, rows: int, generator: Generator) -> Estimate:
    """Accuracy of rows that are right with probability `truth`."""
    return metric_estimate("accuracy", generator.random(rows) < truth, np.ones(rows, dtype=bool))


def f1(truth: float, rows: int, generator: Generator) -> Estimate:
    """F1 of a class of 40 % of the rows, missed as often as it is predicted wrongly."""
    return class_scores(*_classes(np.array([0.6, 0.4]), 0.4 * (1 - truth), rows, generator), 2)[1].f1


def macro_f1(shares: tuple[float, ...]) -> Callable[[float, int, Generator], Estimate]:
    """Macro-F1 of classes of these relative sizes, every pair of them confused alike."""
    sizes = np.array(shares) / sum(shares)

    def draw(truth: float, rows: int, generator: Generator) -> Estimate:
        return metric_estimate("macro_f1", *_classes(sizes, _wrong_share(sizes, truth), rows, generator))

    return draw


def _classes(sizes: Numbers, wrong: float, rows: int, generator: Generator) -> tuple[Numbers, Numbers]:
    """Predictions and targets; each ordered pair of classes has the share `wrong` of all rows."""
    count = len(sizes)
    joint = np.full((count, count), wrong)
    joint[np.diag_indices(count)] = sizes - (count - 1) * wrong
    cells = generator.choice(count * count, size=rows, p=joint.ravel())
    return cells % count, cells // count


def _wrong_share(sizes: Numbers, truth: float) -> float:
    """The share of rows in each wrong cell that makes macro-F1 `truth`: F1 of a class is 1 - errors / its size."""
    return float((1 - truth) / ((len(sizes) - 1) * (1 / sizes).mean()))


def correlation(metric: str, population: str) -> Callable[[float, int, Generator], Estimate]:
    """A correlation of two columns whose true one is `truth`."""

    def draw(truth: float, rows: int, generator: Generator) -> Estimate:
        r = truth if metric == "pearson" else 2 * np.sin(np.pi * truth / 6)
        targets, noise = generator.normal(size=(2, rows))
        columns = np.stack([r * targets + np.sqrt(1 - r * r) * noise, targets])
        if population == HEAVY:  # Student's t with 5 degrees of freedom: a common scale leaves r as it is
            columns /= np.sqrt(generator.chisquare(5, size=rows) / 5)
        return metric_estimate(metric, *columns)

    return draw


def mean_of_tasks(truth: float, rows: int, generator: Generator) -> Estimate:
    """The mean of three tasks, by accuracy, macro-F1 and Pearson's r, all of the same true value."""
    draws = (accuracy, macro_f1((1.0, 1.0, 1.0)), correlation("pearson", NORMAL))
    return mean_estimate([draw(truth, rows, generator) for draw in draws])


NORMAL, HEAVY = "normal", "heavy tails (t, 5 degrees)"
USUAL, NEAR_ONE = (0.5, 0.9), (0.9, 0.99)
BOTH = (USUAL, NEAR_ONE)
SIMULATIONS = (
    Simulation("accuracy", "rows right at random", BOTH, accuracy),
    Simulation("F1 of a class", "a class of 40 % of the rows", BOTH, f1),
    *(Simulation("macro-F1", name, ((0.6, 0.9), NEAR_ONE), macro_f1(shares)) for name, shares in CLASSES.items()),
    Simulation("macro-F1", "twenty classes of equal size", ((0.6, 0.9), NEAR_ONE), macro_f1((1.0,) * 20), (80, 1000)),
    Simulation("Pearson's r", NORMAL, BOTH, correlation("pearson", NORMAL)),
    Simulation("Pearson's r", HEAVY, BOTH, correlation("pearson", HEAVY)),
    Simulation("Spearman's rho", NORMAL, BOTH, correlation("spearman", NORMAL)),
    Simulation("mean of three tasks", "accuracy, macro-F1, Pearson's r", BOTH, mean_of_tasks),
)


def write_page(result: dict[str, Any]) -> None:
    """The table in docs/intervals.md, between its marks."""
    lines = [
        [
            f"{row['metric']}: {row['population']}", f"{row['window'][0]:g} to {row['window'][1]:g}", f"{row['rows']:,}",
            *(f"{100 * row[name]:.1f}" for name in ("mean", "lowest", "below", "above")),
        ]
        for row in result["cells"]
    ]  # fmt: skip
    head = ("metric and population", "true values", "rows", "covered, %", "lowest", "truth below", "truth above")
    note = f"{result['sets']:,} data sets of each of {TRUTHS} true values a line. {where(result)}"
    text = OUT.read_text(encoding="utf-8")
    filled = PLACE.sub(lambda place: f"{place[1]}{table(head, lines)}\n\n{note}\n{place[2]}", text)
    OUT.write_text(filled, encoding="utf-8")


def main() -> None:
    """Simulate, save and fill the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000, help="data sets of each true value")
    names = tuple(dict.fromkeys(simulation.metric for simulation in SIMULATIONS))
    parser.add_argument(
        "--metrics", nargs="+", choices=names, default=names, help="these alone; others stay as they are"
    )
    options = parser.parse_args()
    path = RESULTS / "coverage.json"
    before = json.loads(path.read_text())["cells"] if path.exists() else []
    earlier = {(cell["metric"], cell["population"], *cell["window"], cell["rows"]): cell for cell in before}
    cells = []
    for simulation in SIMULATIONS:
        for window in simulation.windows:
            for rows in simulation.rows:
                name = (simulation.metric, simulation.population, *window, rows)
                if simulation.metric not in options.metrics and name in earlier:
                    cells.append(earlier[name])
                    continue
                result = coverage(simulation, rows, window, options.sets)
                cells.append(
                    {"metric": simulation.metric, "population": simulation.population, "window": window, "rows": rows}
                    | asdict(result)
                )
                progress(f"{', '.join(map(str, name))}: {result}")
    measured = settings_of(sets=options.sets, cells=cells)
    save("coverage", measured)
    write_page(measured)


if __name__ == "__main__":
    main()
