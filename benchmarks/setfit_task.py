"""Training on SST by `setfit`'s own method beside ours: the whole training on the same rows, one pass, first-time costs included.

Run: python benchmarks/setfit_task.py [--rows 160] [--repetitions 5]. Writes results/setfit.json.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import Measured, alternate, save, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import what_data
from sides import OURS, SETFIT
from training import BATCH, write_workload


def seconds_of(measured: Measured) -> list[float]:
    """Seconds of the whole training, by repetition."""
    return measured.values("seconds" if measured.side is SETFIT else "first_pass_seconds")


def row_of(measured: Measured, ours: Measured) -> dict[str, Any]:
    """A line of the table."""
    row: dict[str, Any] = {"side": measured.side.name, "note": measured.side.note, "failure": measured.failure}
    if not measured.reports:
        return row
    seconds = seconds_of(measured)
    row |= {"seconds": seconds, "median": statistics.median(seconds), "versions": measured.reports[0]["versions"]}
    return row | {"ratio": ratio_of_medians(seconds, seconds_of(ours)).to_json()} if ours.reports else row


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=5 * BATCH)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = write_workload("sst", options.data_dir, options.rows // BATCH, Path(folder)) | {"passes": 1}
        measured = alternate([OURS, SETFIT], spec, options.repetitions, threads=options.threads, label="setfit")
    settings = settings_of(
        data=what_data(options.data_dir), rows=options.rows, repetitions=options.repetitions, threads=options.threads
    )
    save("setfit", {**settings, "rows_of_table": [row_of(one, measured[0]) for one in measured]})


if __name__ == "__main__":
    main()
