"""Trains an experiment of ours and tells how long its stages took, checkpoints included, and how much of that writing them took.

A spec holds `experiment`, a table as `smoothtune.train` takes it; `options.checkpoint_every` goes into its runtime. With
`options.block`, so many steps, the report has pairs of blocks one after another, the first with a checkpoint, in seconds.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from worker import Report, Spec, run_worker


def train(spec: Spec) -> Report:
    """Train, by the wall clock from the first stage's begin to the last one's end."""
    import smoothtune
    from smoothtune.training.checkpoint import Checkpoints
    from smoothtune.training.loop import StepReport
    from smoothtune.training.stage_events import StageBegin, StageEnd, StageEpoch

    spans: dict[str, float] = {}
    block, marks = spec["options"].get("block", 0), [(0, 0.0)]
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
        if isinstance(event, StageEpoch):
            marks.append((0, 0.0))  # what is around it is no block
        if isinstance(event, StepReport) and block and event.step % block == 0:
            marks.append((event.step, time.perf_counter()))
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
        "pairs": pairs_of(marks, block),
    }


def pairs_of(marks: Sequence[tuple[int, float]], block: int) -> list[tuple[float, float]]:
    """Seconds of each block that begins with a checkpoint, after every second block of steps, and of the one after it.

    `marks` are steps and times of theirs; a step of 0 breaks the row.
    """
    threes = zip(marks, marks[1:], marks[2:], strict=False)
    return [
        (middle - first, last - middle)
        for (step, first), (second, middle), (third, last) in threes
        if step and second and third and step % (2 * block) == 0
    ]


if __name__ == "__main__":
    run_worker(train, ("experiment", "options"))
