"""What the defaults give: `smoothtune.train` with required keys alone, against two baselines, on 15 small sets.

Run: python benchmarks/default_sets.py [--half choice] [--sets NAME ...] [--sizes N ...] [--seeds N ...] [--sides NAME ...].
A seed draws the training rows and is the seed of every side; the whole test set is scored. `--dev` scores rows of the training
part instead, for choosing a recipe on the choice half. `--set KEY=VALUE` and `--label NAME` measure ours with overrides, under
the name. `--jobs N` runs N processes at once (give `--threads 1` with it).
Every cell is a line of results/default/CELLS.jsonl (`--dev`: DEV.jsonl). Stopped, the command resumes with the cells that are not
there. A cell of ours counts as there if the package's code is the same, or with `--keep` whatever its code.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from default_cells import CellFile, Key
from default_data import HALVES, SEEDS, SETS, SIZES, main_metric
from default_sides import SIDES, Bench, measure
from environments import HERE
from harness import RESULTS, progress
from rows import data_folder
from sources import package_code

FOLDER = RESULTS / "default"
FILES = {False: "CELLS.jsonl", True: "DEV.jsonl"}
"""By whether rows of the training part are scored."""


def cells(options: argparse.Namespace) -> Iterator[Key]:
    """The cells to measure: set after set, and small sizes first."""
    for name in options.sets or HALVES[options.half]:
        for rows in sorted(options.sizes):
            for seed in options.seeds:
                for side in options.sides:
                    yield Key(name, rows, seed, options.label if side == "ours" and options.label else side)


def is_ours(key: Key) -> bool:
    """Whether a cell is one of ours: `ours` itself or a label."""
    return key.side not in ("frozen", "words")


def same_fields(key: Key, bench: Bench, code: str, *, keep: bool) -> dict[str, Any]:
    """The fields that a cell must share to count as measured; those of ours depend on overrides and code."""
    if not is_ours(key):
        return {}
    overrides = {"overrides": list(bench.overrides)}
    return overrides if keep else {**overrides, "code": code}


def cell_line(key: Key, bench: Bench, shared: dict[str, Any]) -> dict[str, Any]:
    """The line of one cell, measured."""
    report = measure("ours" if is_ours(key) else key.side, key, bench)
    ours = {"overrides": list(bench.overrides), "code": shared["code"]} if is_ours(key) else {}
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    machine = {name: shared[name] for name in ("processor", "cores", "commit")}
    return {**key._asdict(), **report, **ours, **machine, "threads": bench.threads, "date": date}


def run_all(keys: Iterable[Key], file: CellFile, bench: Bench, *, jobs: int = 1, keep: bool = False) -> int:
    """Measure the cells that are not in the file; the number of those that failed."""
    shared = {**machine_fields(), "code": package_code()}
    missing = [key for key in keys if not file.has(key, same_fields(key, bench, shared["code"], keep=keep))]
    progress(f"default: {len(missing)} cells to measure in {file.path.name}")

    def run(number: int, key: Key) -> bool:
        name = f"default: {number}/{len(missing)} {key.set}, {key.rows} rows, seed {key.seed}, {key.side}"
        try:
            line = cell_line(key, bench, shared)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            progress(f"{name}: {error}")
            return False
        file.add(line)
        metric = main_metric(key.set)
        progress(f"{name}: {metric} {line['metrics'][metric]:.3f} after {line['train_seconds']:.1f} s")
        return True

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run, number, key) for number, key in enumerate(missing, start=1)]
        try:
            return sum(not job.result() for job in waiting)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def machine_fields() -> dict[str, Any]:
    """Processor, cores, and the commit of this checkout."""
    from smoothtune.workflow.run import machine

    facts = machine("cpu")
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return {"processor": facts["processor"], "cores": facts["cores"], "commit": commit}


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=data_folder, default=data_folder(None), help="folder with sets/")
    parser.add_argument("--half", choices=tuple(HALVES), default="all")
    parser.add_argument("--sets", nargs="+", choices=SETS, metavar="NAME", help="these sets, whatever their half")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="training rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), help="default: all; with --label: ours")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, help="of each process; default: what each side takes by itself")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for ours")
    parser.add_argument("--label", help="the side that cells of ours are stored as")
    parser.add_argument("--dev", action="store_true", help="score rows that are not drawn instead of the test set")
    parser.add_argument("--keep", action="store_true", help="cells of ours by older code count as measured")
    options = parser.parse_args(arguments)
    if options.data_dir is None:
        parser.error("--data-dir: got nothing; name the folder with sets/ here or in SMOOTHTUNE_DATA")
    if options.overrides and not options.label:
        parser.error("--set: cells with overrides need a name of their own; give --label NAME")
    if options.label in SIDES:
        parser.error(f"--label: got {options.label!r}, which is a side; give another name")
    options.sides = options.sides or (("ours",) if options.label else tuple(SIDES))
    return options


def main() -> None:
    """Measure what is missing; exit 1 where a cell failed."""
    options = read_options()
    locks = {name: Lock() for name in SETS}
    data = Path(options.data_dir).absolute()
    bench = Bench(data, options.threads, options.dev, tuple(options.overrides), locks)
    file = CellFile(FOLDER / FILES[options.dev])
    failures = run_all(cells(options), file, bench, jobs=options.jobs, keep=options.keep)
    if failures:
        sys.exit(f"default: {failures} cells failed; the lines above say why")


if __name__ == "__main__":
    main()
