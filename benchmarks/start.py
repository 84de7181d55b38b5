"""How long the program takes to start: `smoothtune --help`, and `predict` on 10 rows with where its time goes.

Run: python benchmarks/start.py [--data-dir FOLDER] [--repetitions 5]. Prints milliseconds, the smallest of the repetitions,
then one JSON line with all of them. Files are in the page cache and the precision was chosen before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from one_step import one_step_run
from options import parser_of
from rows import SOURCES, read_rows

ROWS = 10
# What `predict` does, part by part, in a process of its own.
PARTS = """
import json, sys, time
marks = [time.perf_counter()]
def mark(): marks.append(time.perf_counter())
import torch; mark()
import smoothtune.workflow.predict
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.inference.model import Model
from smoothtune.nn.folder import read_model_folder
from smoothtune.runtime.device import keep_memory_mapped
from pathlib import Path; mark()
keep_memory_mapped()
read_model_folder(Path(sys.argv[1]) / "model"); mark()
load_tokenizer(Path(sys.argv[1]) / "model"); mark()
model = Model.load(sys.argv[1]); texts = json.loads(sys.argv[2]); mark()
model.predict("sst", texts); mark()
print(json.dumps([1000 * (later - earlier) for earlier, later in zip(marks, marks[1:])]))
"""
NAMES = ("import torch", "import smoothtune", "weights", "tokenizer", "", "compute")


def milliseconds(command: list[str]) -> float:
    """The time of one process. Raises `CalledProcessError` when it fails."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return 1000 * (time.perf_counter() - began)


def parts_of(run: Path, texts: list[str]) -> dict[str, float]:
    """Milliseconds of the parts of `predict`."""
    command = [sys.executable, "-c", PARTS, str(run), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: took for name, took in zip(NAMES, found, strict=True) if name}


def measure(run: Path, folder: Path, texts: list[str], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of every repetition, by what was measured; the first round is not counted."""
    rows = folder / "rows.tsv"
    rows.write_text("\n".join(["text", *texts]) + "\n", encoding="utf-8")
    program = [sys.executable, "-m", "smoothtune"]
    found: dict[str, list[float]] = {}
    for number in range(repetitions + 1):
        took = {
            "interpreter": milliseconds([sys.executable, "-c", ""]),
            "--help": milliseconds([*program, "--help"]),
            "predict 10 rows": milliseconds([*program, "predict", str(run), "--task", "sst", str(rows)]),
            **parts_of(run, texts),
        }
        for name, value in took.items() if number else ():
            found.setdefault(name, []).append(value)
    return found


def main() -> None:
    """Measure and print."""
    options = parser_of(__doc__).parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too
    from smoothtune.workflow.run import machine

    texts = [" ".join(row[0][0].split()) for row in read_rows(SOURCES["sst"], options.data_dir)[:ROWS]]
    with tempfile.TemporaryDirectory() as name:
        run = one_step_run(Path(name), options.data_dir)
        found = measure(run, Path(name), texts, options.repetitions)
    for what, values in found.items():
        print(f"{what:20}{min(values):8.0f} ms   (median {statistics.median(values):.0f})")
    print(json.dumps({"milliseconds": found, "machine": machine("cpu")}))


if __name__ == "__main__":
    main()
