"""Trains an experiment of ours and scores its model once on other files than those it saw: main metric by task, and the score.

A spec holds `experiment`, a table as `smoothtune.train` takes it, and `scored`, a labelled file per task.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from worker import Report, Spec, run_worker


def train(spec: Spec) -> Report:
    """Train, then score; `last` are the loss parts of the last step, `train_seconds` those of all steps."""
    import smoothtune
    from smoothtune.training.loop import StepReport
    from smoothtune.workflow.evaluate import evaluate_run

    last: dict[str, Any] = {"seconds": 0.0, "losses": {}}

    def listen(event: object) -> None:
        if isinstance(event, StepReport):
            last.update(seconds=event.seconds, losses=event.losses)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        run = smoothtune.train(spec["experiment"], run_dir=folder, listen=listen)
        if run.interrupted:
            raise SystemExit("interrupted")
        found = evaluate_run(folder, data=[f"{task}={path}" for task, path in spec["scored"].items()]).scores.to_json()
    tasks = run.experiment.tasks
    return {
        "tasks": {task: found["tasks"][task][tasks[task].metric]["value"] for task in tasks},
        "score": found["score"]["value"],
        "train_seconds": last["seconds"],
        "seconds": time.perf_counter() - began,
        "last": last["losses"],
    }


if __name__ == "__main__":
    run_worker(train, ("experiment", "scored"))
