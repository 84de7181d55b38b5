"""Training on SST, Quora siamese and Quora joint: ours, Trainer as it comes and at its best, other peers.

Run: python benchmarks/training.py [sst siamese joint] [--steps 12] [--repetitions 5]. Every side is a process of its own;
one pass over the rows pays all first-time costs, the next one is timed. Writes results/training[-cuda].json.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import Measured, Side, alternate, checkpoint, part_name, save, seconds_per_step, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import SOURCES, Reads, read_rows, sampled, what_data, write_rows
from sides import AS_IT_COMES, OURS, at_its_best, cross_encoder

BATCH = 32
DEV_ROWS = 64
WORKLOADS: dict[str, tuple[str, Reads]] = {
    "sst": ("sst", "single"),
    "siamese": ("quora", "separate"),
    "joint": ("quora", "joint"),
}


def write_workload(workload: str, data_dir: Path | None, steps: int, folder: Path) -> dict[str, Any]:
    """The rows of a workload written to `folder`, and the spec that all its sides are given."""
    name, reads = WORKLOADS[workload]
    source = SOURCES[name]
    write_rows(folder / "train.tsv", sampled(read_rows(source, data_dir), steps * BATCH))
    write_rows(folder / "dev.tsv", sampled(read_rows(source, data_dir, "dev"), DEV_ROWS))
    return {
        "data": str(folder),
        "kind": source.kind,
        "labels": source.labels,
        "reads": reads,
        "checkpoint": checkpoint(),
        "batch_size": BATCH,
        "passes": 2,
    }


def sides_of(workload: str, device: str) -> list[Side]:
    """Ours first, then the peers of a workload."""
    peers = [AS_IT_COMES, at_its_best(device), *([cross_encoder(device)] if workload == "joint" else [])]
    return [OURS, *peers]


def row_of(measured: Measured, ours: Measured) -> dict[str, Any]:
    """A line of the table."""
    side = measured.side
    row: dict[str, Any] = {"side": side.name, "note": side.note, "failure": measured.failure}
    if not measured.reports:
        return row
    seconds = [seconds_per_step(report) for report in measured.reports]
    base = [seconds_per_step(report) for report in ours.reports]
    row |= {
        "seconds_per_step": seconds,
        "median": statistics.median(seconds),
        "first_pass_seconds": statistics.median(measured.values("first_pass_seconds")),
        "peak_anonymous_mb": statistics.median(measured.values("peak_anonymous_mb")),
        "versions": measured.reports[0]["versions"],
        "losses": [measured.reports[0]["loss_first"], measured.reports[0]["loss_last"]],
    }
    return row | {"ratio": ratio_of_medians(seconds, base).to_json()} if base else row


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--steps", type=int, default=12, help="batches of 32 rows in a pass")
    options = parser.parse_args()
    found = {}
    for workload in options.workloads:
        with tempfile.TemporaryDirectory() as folder:
            spec = write_workload(workload, options.data_dir, options.steps, Path(folder)) | {"device": options.device}
            sides = sides_of(workload, options.device)
            measured = alternate(sides, spec, options.repetitions, threads=options.threads, label=workload)
        found[workload] = [row_of(one, measured[0]) for one in measured]
    settings = settings_of(
        data=what_data(options.data_dir), batch=BATCH, steps=options.steps, repetitions=options.repetitions,
        threads=options.threads, device=options.device,
    )  # fmt: skip
    save(part_name("training", options.device), {**settings, "workloads": found})


if __name__ == "__main__":
    main()
