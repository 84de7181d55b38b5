"""The matrix products of the timed steps and nothing else, as a side: see benchmarks/floor.py, which says what they are.

`seconds_per_step` is the mean over the batches of the median of 4 runs each: 5 repetitions make the 20.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from worker import Report, Spec, run_worker

sys.path.insert(0, str(Path(__file__).parents[1]))


def train(spec: Spec) -> Report:
    """Run the products of the spec's batches."""
    from floor import batches_of, floor_of
    from smoothtune.runtime.device import set_threads

    set_threads(None)
    settings = json.loads((Path(spec["checkpoint"]) / "config.json").read_text())
    shapes = batches_of(spec)
    seconds = floor_of(shapes, settings, spec.get("device", "cpu"), runs=4)
    return {"seconds_per_step": [seconds]}


if __name__ == "__main__":
    run_worker(train, ("data", "reads", "checkpoint", "batch_size"))
