"""What Trainer's best settings are on this machine: attention, padding, allocator and waiting threads, tried on SST.

Run: python benchmarks/tune_trainer.py [--steps 8]. Writes results/trainer_best[-cuda].json, which the other parts read.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from harness import alternate, part_name, save, seconds_per_step, settings_of
from options import parser_of
from rows import what_data
from sides import candidates
from training import write_workload


def main() -> None:
    """Try all candidates in turn, keep the one with the smallest median."""
    parser = parser_of(__doc__, repetitions=2)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = write_workload("sst", options.data_dir, options.steps, Path(folder)) | {"device": options.device}
        measured = alternate(
            candidates(),
            spec,
            options.repetitions,
            threads=options.threads,
            label="tuning Trainer, six settings in turn",
        )
    tried = [
        {
            "note": one.side.note,
            "failure": one.failure,
            "median": statistics.median(map(seconds_per_step, one.reports)) if one.reports else None,
        }
        for one in measured
    ]
    working = [number for number, row in enumerate(tried) if row["median"] is not None]
    chosen = min(working, key=lambda number: float(str(tried[number]["median"])))
    settings = settings_of(data=what_data(options.data_dir), steps=options.steps, repetitions=options.repetitions)
    part = part_name("trainer_best", options.device)
    save(part, {**settings, "chosen": chosen, "tried": tried})


if __name__ == "__main__":
    main()
