"""Runs of the quick recipe with some regularisers and a seed, each a process, kept as a file, so that a grid of them resumes.

Knows nothing of which runs are wanted or how they are compared.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import RESULTS, Side, progress, run_side
from rows import SOURCES, write_rows
from sources import package_code
from workers.worker import versions

Rows = list[tuple[tuple[str, ...], str]]
Table = dict[str, Any]

TRAIN_ROWS = {"sst": 1000, "quora": 2000, "sts": 1000}
STEPS = 625  # of 32 rows: 5 epochs' worth of these
FEW = 32
SIDE = Side("smoothtune", "little_data_run.py")
TIMEOUT = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: what it is called among the results, its seed, its regularisers, its precision (None: the recipe's)."""

    name: str
    seed: int
    regularisers: tuple[Table, ...] = ()
    precision: str | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """What all cells share: where their runs are kept, `jobs` processes at once, steps, training rows by task (None: all)."""

    part: str
    jobs: int
    steps: int = STEPS
    rows: Mapping[str, int] | None = field(default_factory=lambda: TRAIN_ROWS)
    threads: int | None = None


def write_tasks(folder: Path, train: Mapping[str, Rows], scored: Mapping[str, Rows] | None = None) -> None:
    """The files of a run, per task: `train.tsv`, `few.tsv` (some of its rows, for the stage's own evaluation), `scored.tsv`."""
    for name, rows in train.items():
        write_rows(folder / name / "train.tsv", rows)
        write_rows(folder / name / "few.tsv", rows[:FEW])
        if scored is not None:
            write_rows(folder / name / "scored.tsv", scored[name])


def quick_table(
    folder: Path,
    *,
    steps: int,
    seed: int,
    regularisers: Sequence[Table] = (),
    rows: Mapping[str, int] | None = None,
    precision: str | None = None,
) -> Table:
    """The quick recipe on the files of `write_tasks`: one stretch of `steps` steps, nothing selected on a dev set."""
    import smoothtune.config

    packaged = Path(smoothtune.config.__file__).parent / "packaged" / "quick.toml"
    table = tomllib.loads(packaged.read_text(encoding="utf-8"))
    for name, task in table["tasks"].items():
        pair = len(SOURCES[name].text) == 2
        task |= {"text": ["text_a", "text_b"] if pair else "text", "label": "label"}
        task |= {split: str(folder / name / f"{file}.tsv") for split, file in (("train", "train"), ("dev", "few"))}
        if rows is not None:
            task["max_train_rows"] = rows[name]
    (stage,) = table["stages"]
    stage["schedule_options"]["steps_per_epoch"] = steps
    stage["stop"] = {"metric": "score", "max_epochs": 1}
    if precision is not None:
        stage["precision"] = precision
    if regularisers:
        stage["regularisers"] = list(regularisers)
    return {**table, "seed": seed}


def content_of(folder: Path) -> str:
    """A hash of all files of the tasks."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.tsv")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_all(cells: Iterable[Cell], grid: Grid, folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What every cell scored, in the order of the cells; those that are kept are not run again.

    Raises `RuntimeError` of the first that failed, when the others that had begun are done.
    """
    wanted, shared = list(cells), {"data": content_of(folder), "versions": versions(), "code": package_code()}
    with ThreadPoolExecutor(grid.jobs) as pool:
        waiting = {(cell.name, cell.seed): pool.submit(run_cell, cell, grid, folder, shared) for cell in wanted}
        try:
            return {key: found.result() for key, found in waiting.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_cell(cell: Cell, grid: Grid, folder: Path, shared: Mapping[str, Any]) -> dict[str, Any]:
    """One run, from its file when it was made with the same."""
    path = RESULTS / grid.part / f"{cell.name}-{cell.seed}.json"
    made = {
        **shared,
        "seed": cell.seed,
        "steps": grid.steps,
        "rows": grid.rows,
        "threads": grid.threads,
        "regularisers": list(cell.regularisers),
    }
    if cell.precision is not None:
        made["precision"] = cell.precision
    made = json.loads(json.dumps(made))
    if (kept := kept_cell(path, made)) is not None:
        return kept
    table = quick_table(
        folder,
        steps=grid.steps,
        seed=cell.seed,
        regularisers=cell.regularisers,
        rows=grid.rows,
        precision=cell.precision,
    )
    scored = {name: str(folder / name / "scored.tsv") for name in table["tasks"]}
    report = run_side(SIDE, {"experiment": table, "scored": scored}, threads=grid.threads, timeout=TIMEOUT)
    found = {"made_with": made, **report}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    progress(f"{grid.part}: {path.stem}: score {found['score']:.4f} after {found['train_seconds']:.0f} s")
    return found


def kept_cell(path: Path, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run in a file, None where there is none or it was made with something else; a line says what.

    Another code of the package is told, and the run is taken: remove the file to run it anew.
    """
    if not path.exists():
        return None
    kept = dict(json.loads(path.read_text()))
    other = [name for name, value in made.items() if _same(name, kept["made_with"].get(name)) != _same(name, value)]
    if other == ["code"]:
        progress(f"{path.parent.name}: {path.name} was made by another code and is taken; remove it to run anew")
    elif other:
        progress(f"{path.parent.name}: {path.name} is run anew, for these differ: {', '.join(other)}")
        return None
    return kept


def _same(name: str, value: Any) -> Any:
    """What of a setting must be equal: of versions the release, not the build's label (`+cpu`), of Python the minor version."""
    if name != "versions" or value is None:
        return value
    releases = {package: release.partition("+")[0] for package, release in value.items()}
    return {**releases, "python": ".".join(releases["python"].split(".")[:2])}
