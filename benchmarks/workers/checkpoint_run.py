"""Trains an experiment of ours and tells how long its stages took, checkpoints included, and how much of that writing them took.

A spec holds `experiment`, a table as `smoothtune.train` takes it; `options.checkpoint_every` goes into its runtime.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from worker import Report, Spec, run_worker


def train(spec: Spec) -> Report:
    """Train, by the wall clock from the first stage's begin to the last one's end."""
    import smoothtune
    from smoothtune.training.checkpoint import Checkpoints
    from smoothtune.training.stage_events import StageBegin, StageEnd

    spans: dict[str, float] = {}
    writes: list[tuple[float, int]] = []
    write = Checkpoints.write

    def timed(self: Checkpoints, state: dict[str, object]) -> Path:
        began = time.perf_counter()
        folder = write(self, state)
        writes.append((time.perf_counter() - began, sum(file.stat().st_size for file in folder.iterdir())))
        return folder

    def listen(event: object) -> None:
        if isinstance(event, StageBegin):
            spans.setdefault("began", time.perf_counter())
        if isinstance(event, StageEnd):
            spans["ended"] = time.perf_counter()

    Checkpoints.write = timed  # type: ignore[method-assign]
    table = {**spec["experiment"]}
    table["runtime"] = {**table.get("runtime", {}), "checkpoint_every": spec["options"]["checkpoint_every"]}
    with tempfile.TemporaryDirectory() as name:
        smoothtune.train(table, run_dir=Path(name) / "run", listen=listen)
    seconds = spans["ended"] - spans["began"]
    written = sum(taken for taken, _ in writes)
    return {
        "seconds": seconds,
        "writes": len(writes),
        "write_seconds": written,
        "share": written / (seconds - written),
        "bytes": max((size for _, size in writes), default=0),
    }


if __name__ == "__main__":
    run_worker(train, ("experiment", "options"))
