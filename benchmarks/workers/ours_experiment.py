"""Trains any experiment of ours and reports the seconds of every step, of training, and of the whole call.

A spec holds `experiment`: a table as `smoothtune.train` takes it.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from worker import Report, Spec, run_worker


def train(spec: Spec) -> Report:
    """Train; `train_seconds` are those of all steps, `seconds` of the whole call, reading and evaluation included."""
    import smoothtune
    from smoothtune.training.loop import StepReport

    steps: list[float] = []
    spent = 0.0

    def listen(event: object) -> None:
        nonlocal spent
        if isinstance(event, StepReport):
            steps.append(event.seconds - spent)
            spent = event.seconds

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = smoothtune.train(spec["experiment"], run_dir=Path(folder) / "run", listen=listen)
    return {
        "seconds_per_step": [round(value, 6) for value in steps],
        "train_seconds": spent,
        "seconds": time.perf_counter() - began,
        "dev": run.evaluation,
    }


if __name__ == "__main__":
    run_worker(train, ("experiment",))
