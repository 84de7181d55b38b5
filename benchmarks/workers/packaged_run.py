"""Trains a packaged experiment and reports the unweighted loss of every step, by `stage/task`.

A spec holds `name`, `data_dir`, `overrides`, and `steps`, after which every stage ends.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

from worker import Report, Spec, run_worker


def train(spec: Spec) -> Report:
    """Train."""
    import smoothtune
    from smoothtune.config.loading import load
    from smoothtune.training.loop import StepReport

    losses: dict[str, list[float]] = defaultdict(list)

    def listen(event: object) -> None:
        if isinstance(event, StepReport):
            for task, parts in event.losses.items():
                losses[f"{event.stage}/{task}"].append(parts["unweighted"])

    stages = len(load(spec["name"]).experiment.stages)
    overrides = [*spec["overrides"], *(f"stages.{number}.stop.max_steps={spec['steps']}" for number in range(stages))]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        smoothtune.train(spec["name"], data_dir=spec["data_dir"], run_dir=run, overrides=overrides, listen=listen)
    return {"losses": losses}


if __name__ == "__main__":
    run_worker(train, ("name", "data_dir", "overrides", "steps"))
