"""A rare class: 200 support tickets, 3 % of them urgent. Recall of `urgent` by the defaults and by a balanced baseline.

Run: python benchmarks/tickets.py [--seeds 5] [--threads N]. Each seed makes 200 training rows with 6 urgent tickets and 300 new
rows with 11 to 20 (ticket_texts.py), and is the seed of both sides: `smoothtune.train` with the required keys, and logistic
regression with balanced class weights on frozen embeddings, its C by cross-validation. For the first seed, the output of
`smoothtune check` and `smoothtune train` is stored as well. Writes results/tickets.json.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from default_sides import SIDES
from harness import checkpoint, progress, run_side, save, settings_of
from options import parser_of
from rows import write_rows
from sources import package_code
from ticket_texts import Ticket, tickets

TRAIN_ROWS, URGENT_ROWS, NEW_ROWS, NEW_URGENT = 200, 6, 300, (11, 20)
COMPARED = {
    "ours": SIDES["ours"],
    "balanced": replace(SIDES["frozen"], name="balanced", options={"class_weight": "balanced"}),
}
EXPERIMENT = """seed = {seed}

[tasks.urgency]
kind = "classification"
text = "text"
label = "urgency"
train = "tickets.csv"
"""


def draws(seed: int) -> tuple[list[Ticket], list[Ticket]]:
    """The training rows and the new rows of a seed."""
    train = tickets(TRAIN_ROWS, seed, least=URGENT_ROWS, most=URGENT_ROWS)
    least, most = NEW_URGENT
    texts = frozenset(row.text for row in train)
    return train, tickets(NEW_ROWS, 1000 + seed, least=least, most=most, without=texts)


def measure(seed: int, threads: int | None) -> dict[str, Any]:
    """The metrics and seconds of both sides at one seed."""
    train, new = draws(seed)
    reports = {}
    with tempfile.TemporaryDirectory() as name:
        for file, rows in (("train", train), ("scored", new)):
            write_rows(Path(name) / f"{file}.tsv", [((row.text,), row.urgency) for row in rows])
        task = {"kind": "classification"}
        spec = {"data": name, "task": task, "seed": seed, "checkpoint": checkpoint(), "class": "urgent"}
        for side in COMPARED:
            report = run_side(COMPARED[side], spec, threads=threads)
            reports[side] = {key: report[key] for key in ("metrics", "train_seconds", "recipe") if key in report}
            metrics = ", ".join(f"{metric} {value:.3f}" for metric, value in report["metrics"].items())
            progress(f"tickets: seed {seed}, {side}: {metrics}")
    urgent = sum(row.urgency == "urgent" for row in new)
    return {"seed": seed, "new_urgent": urgent, "train": dict(Counter(row.urgency for row in train)), "sides": reports}


def write_csv(path: Path, rows: Sequence[Ticket]) -> None:
    """A CSV with the columns text and urgency."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Ticket._fields)
        writer.writerows(rows)


def command_outputs(seed: int, threads: int | None) -> dict[str, dict[str, Any]]:
    """What `smoothtune check` and `smoothtune train` print on the training rows of a seed, with their exit status."""
    outputs = {}
    with tempfile.TemporaryDirectory() as name:
        write_csv(Path(name) / "tickets.csv", draws(seed)[0])
        (Path(name) / "tickets.toml").write_text(EXPERIMENT.format(seed=seed), encoding="utf-8")
        limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        for command in (("check", "tickets.toml"), ("train", "tickets.toml", "--run-dir", "run")):
            process = subprocess.run(
                [sys.executable, "-m", "smoothtune", *command],
                env={**os.environ, **limits, "NO_COLOR": "1"},
                cwd=name, capture_output=True, text=True, check=False,
            )  # fmt: skip
            outputs[" ".join(("smoothtune", *command))] = {
                "status": process.returncode,
                "stdout": process.stdout.replace(name, "."),
                "stderr": process.stderr.replace(name, "."),
            }
    return outputs


def main() -> None:
    """Measure all seeds, then write the result."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    settings = settings_of(
        threads=options.threads, device="cpu", rows=TRAIN_ROWS, new_rows=NEW_ROWS, code=package_code()
    )
    runs = [measure(seed, options.threads) for seed in seeds]
    save("tickets", {**settings, "runs": runs, "printed": command_outputs(seeds[0], options.threads)})


if __name__ == "__main__":
    main()
