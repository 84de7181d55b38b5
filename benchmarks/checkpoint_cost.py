"""What checkpoints cost: the same run with them off, as they are by default, and after every epoch whatever it costs, in turn.

Run: python benchmarks/checkpoint_cost.py [--repetitions 5] [--epochs 3]. SST with the bundled encoder, batches of 32, the whole
training set each epoch. `over off` is the time of the stage over that without checkpoints, each with its interval; `writing`
is the time inside the writing over the rest, measured in the runs themselves, so that the machine's own ups and downs, which are
larger than 3 %, stay out of it. Writes results/checkpoint_cost.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from harness import Measured, Side, alternate, checkpoint, save, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import SOURCES, read_rows, what_data, write_rows

EVERY: dict[str, Any] = {"off": False, "default": {}, "every epoch": {"share": 1}}


def experiment(folder: Path, epochs: int) -> dict[str, Any]:
    """SST alone."""
    task = {"kind": "classification", "text": "text", "label": "label", "trunk": "mean"}
    files = {split: str(folder / f"{split}.tsv") for split in ("train", "dev")}
    return {
        "encoder": {"name": checkpoint()},
        "tasks": {"sst": {**task, **files}},
        "trunks": {"mean": {"kind": "mean"}},
        "stages": [{"batch_size": 32, "stop": {"max_epochs": epochs}}],
    }


def row_of(measured: Measured, off: Measured) -> dict[str, Any]:
    """What one side came to."""
    seconds = measured.values("seconds")
    found = {
        "seconds": [round(value, 2) for value in seconds],
        "writes": median(measured.values("writes")),
        "megabytes": round(max(measured.values("bytes")) / 1e6),
        "writing": {"median": median(measured.values("share")), "most": max(measured.values("share"))},
    }
    return (
        found if measured is off else {**found, "over_off": ratio_of_medians(seconds, off.values("seconds")).to_json()}
    )


def main() -> None:
    """Measure, save, print."""
    parser = parser_of(__doc__, repetitions=5)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    sides = [Side(name, "checkpoint_run.py", options={"checkpoint_every": every}) for name, every in EVERY.items()]
    with tempfile.TemporaryDirectory() as name:
        for split in ("train", "dev"):
            write_rows(Path(name) / f"{split}.tsv", read_rows(SOURCES["sst"], options.data_dir, split))
        spec = {"experiment": experiment(Path(name), options.epochs)}
        found = alternate(sides, spec, options.repetitions, threads=options.threads, label="checkpoints")
    failed = [measured.failure for measured in found if measured.failure is not None]
    if failed:
        raise SystemExit(failed[0])
    rows = {measured.side.name: row_of(measured, found[0]) for measured in found}
    settings = settings_of(
        data=what_data(options.data_dir),
        threads=options.threads,
        epochs=options.epochs,
        repetitions=options.repetitions,
    )
    save("checkpoint_cost", {**settings, "rows": rows})


if __name__ == "__main__":
    main()
