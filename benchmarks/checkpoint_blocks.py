"""What one checkpoint costs a run, whatever the machine does meanwhile: blocks of steps with one and without, in one run.

Run: python benchmarks/checkpoint_blocks.py [--repetitions 3] [--block 20]. The run of `checkpoint_cost.py`, with a checkpoint
after every second block of steps; a block with one, which holds its writing and whatever follows from it, is paired with the
block after it. Blocks in which an epoch ends are left out. `difference` is the mean over the pairs in seconds, `of_default`
that of all checkpoints of the default setting over the rest of its stage, by `checkpoint_cost.py`; both with intervals. Writes
results/checkpoint_blocks.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from checkpoint_cost import experiment
from harness import Side, alternate, read, save, settings_of
from intervals import Interval, paired_difference
from options import parser_of
from rows import SOURCES, read_rows, what_data, write_rows


def share_of(difference: Interval, row: dict[str, Any]) -> Interval:
    """What the checkpoints of a setting cost, over the rest of the median stage of its `row`."""
    seconds, writes = median(row["seconds"]), row["writes"]
    found = (
        writes * value / (seconds - writes * value) for value in (difference.value, difference.low, difference.high)
    )
    return Interval(*found)


def main() -> None:
    """Measure, save, print."""
    parser = parser_of(__doc__, repetitions=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--block", type=int, default=20, help="steps")
    options = parser.parse_args()
    every = {"epochs": 0, "minutes": 0, "steps": 2 * options.block}
    side = Side("in blocks", "checkpoint_run.py", options={"checkpoint_every": every, "block": options.block})
    with tempfile.TemporaryDirectory() as name:
        for split in ("train", "dev"):
            write_rows(Path(name) / f"{split}.tsv", read_rows(SOURCES["sst"], options.data_dir, split))
        spec = {"experiment": experiment(Path(name), options.epochs)}
        (found,) = alternate([side], spec, options.repetitions, threads=options.threads, label="checkpoints")
    if found.failure is not None:
        raise SystemExit(found.failure)
    pairs = [pair for report in found.reports for pair in report["pairs"]]
    difference = paired_difference([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    cost = read("checkpoint_cost")
    settings = settings_of(
        data=what_data(options.data_dir), threads=options.threads, block=options.block, repetitions=options.repetitions
    )
    result = {
        "pairs": len(pairs),
        "without": median(pair[1] for pair in pairs),
        "writing": median(report["write_seconds"] / report["writes"] for report in found.reports),
        "difference": difference.to_json(),
        "of_default": None if cost is None else share_of(difference, cost["rows"]["default"]).to_json(),
    }
    save("checkpoint_blocks", {**settings, **result})


if __name__ == "__main__":
    main()
