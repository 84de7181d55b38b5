"""Do the packaged experiments of the papers learn? 200 steps of every stage, the mean loss of each task's first and last 50.

Run: python benchmarks/packaged_learn.py --data-dir FOLDER [NAME ...]. Exits 1 when a task's loss did not fall.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

OVERRIDES = (
    "tasks.quora.max_train_rows=5000",
    *(f"tasks.{task}.dev=0.02" for task in ("sst", "quora", "sts")),  # only losses matter here
)


def losses_of(name: str, data_dir: str, run_dir: Path, steps: int) -> dict[str, list[float]]:
    """The unweighted loss of every step, by `stage/task`."""
    import smoothtune
    from smoothtune.config.loading import load
    from smoothtune.training.loop import StepReport

    losses: dict[str, list[float]] = defaultdict(list)

    def listen(event: object) -> None:
        if isinstance(event, StepReport):
            for task, parts in event.losses.items():
                losses[f"{event.stage}/{task}"].append(parts["unweighted"])

    stages = len(load(name).experiment.stages)
    cuts = [f"stages.{number}.stop.max_steps={steps}" for number in range(stages)]
    smoothtune.train(name, data_dir=data_dir, run_dir=run_dir, overrides=[*OVERRIDES, *cuts], listen=listen)
    return losses


def main() -> None:
    """Train, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    from smoothtune.config.loading import packaged_names
    from smoothtune.workflow.run import machine

    names = options.names or [name for name in packaged_names() if "/" in name]
    worse = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            run_dir = Path(folder) / name.replace("/", "-")
            for part, values in losses_of(name, options.data_dir, run_dir, options.steps).items():
                width = min(50, len(values) // 2) if len(values) < 51 else 50
                first, last = sum(values[:width]) / width, sum(values[-width:]) / width
                worse += [f"{name} {part}"] if last >= first else []
                print(
                    f"{name:28} {part:16} {len(values):4} steps  first {width} {first:.4f}  last {width} {last:.4f}",
                    flush=True,
                )
    print(json.dumps(machine("cpu")))
    if worse:
        sys.exit(f"did not fall: {', '.join(worse)}")


if __name__ == "__main__":
    main()
