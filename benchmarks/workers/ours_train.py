"""Our side of training: `smoothtune.train` on the rows of the spec, as a user calls it. Times are those of its step reports.

`options`: `trunk` (default: mean, siamese or joint by what is read), `max_length`, `learning_rate`, `seed`, `layers` left
to the checkpoint. The time of a step includes making its batch; evaluation between passes is no training.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from worker import PassClock, Report, Spec, run_worker

TRUNKS = {"single": "mean", "separate": "siamese", "joint": "joint"}


def experiment(spec: Spec) -> dict[str, object]:
    """The experiment of a spec: one task, one trunk, one stage."""
    options = spec.get("options", {})
    pair = spec["reads"] != "single"
    task = {
        "kind": spec["kind"],
        "text": ["text_a", "text_b"] if pair else "text",
        "label": "label",
        "train": str(Path(spec["data"]) / "train.tsv"),
        "dev": str(Path(spec["data"]) / "dev.tsv"),
        "trunk": "trunk",
    }
    stage = {
        "batch_size": spec["batch_size"],
        "learning_rate": options.get("learning_rate", {"encoder": 5e-5, "trunks": 1e-3, "outputs": 1e-3}),
        "weight_decay": options.get("weight_decay", 0.01),
        "precision": options.get("precision", "auto"),
        "stop": {"max_epochs": spec["passes"]},
    }
    return {
        "seed": options.get("seed", 1),
        "encoder": {"name": spec["checkpoint"], "max_length": options.get("max_length", 128)},
        "tasks": {"task": task},
        "trunks": {"trunk": {"kind": options.get("trunk", TRUNKS[spec["reads"]])}},
        "stages": [stage],
        "runtime": {"device": spec.get("device", "cpu")},
    }


def train(spec: Spec) -> Report:
    """Train as the spec says."""
    import smoothtune
    from smoothtune.training.loop import StepReport

    clock, spent, epoch = PassClock(), 0.0, -1

    def listen(event: object) -> None:
        nonlocal spent, epoch
        if isinstance(event, StepReport):
            if event.epoch != epoch:
                clock.begin_pass()
                epoch = event.epoch
            clock.passes[-1].append(event.seconds - spent)
            clock.losses.append(event.losses["task"]["unweighted"])
            spent = event.seconds

    with tempfile.TemporaryDirectory() as folder:
        run = smoothtune.train(experiment(spec), run_dir=Path(folder) / "run", listen=listen)
    rows = sum(1 for _ in (Path(spec["data"]) / "train.tsv").open(encoding="utf-8")) - 1
    assert run.evaluation is not None
    return {**clock.report(rows), "dev": run.evaluation}


if __name__ == "__main__":
    run_worker(train, ("data", "kind", "reads", "checkpoint", "batch_size", "passes"))
