"""A stage on a frozen encoder: what its first epoch costs, and those after it, when states are kept.

Run: python benchmarks/frozen.py [--data-dir DIR] [--epochs 8] [--trunks cls conv_bilstm]. Needs sst/ (and quora/ for pair
trunks) with train.tsv and dev.tsv. Each trunk trains with `frozen_states` auto and off, in a cache of its own (--cache: one
that stays, whose states are removed before each run), after a few steps that build kernels and fill the other caches. An epoch
is timed from report to report, evaluation included, the first from the end of reading the data, encoding included. Prints one
JSON line per run: seconds of the first epoch, of encoding, and of the later epochs (minimum and median), and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

SINGLE = ("cls", "mean", "conv_bilstm")
TASKS: dict[str, dict[str, Any]] = {
    "sst": {
        "kind": "classification",
        "text": "sentence",
        "label": "sentiment",
        "train": "sst/train.tsv",
        "dev": "sst/dev.tsv",
        "trunk": "trunk",
    },
    "quora": {
        "kind": "binary",
        "text": ["sentence1", "sentence2"],
        "label": "is_duplicate",
        "train": "quora/train.tsv",
        "dev": "quora/dev.tsv",
        "max_train_rows": 4000,
        "trunk": "trunk",
    },
}


def experiment(trunk: str, states: str, epochs: int) -> dict[str, Any]:
    task = "sst" if trunk in SINGLE else "quora"
    stage = {"train": ["trunks", "outputs"], "learning_rate": 1e-3, "stop": {"max_epochs": epochs}}
    return {
        "tasks": {task: TASKS[task]},
        "trunks": {"trunk": {"kind": trunk}},
        "stages": [stage],
        "runtime": {"frozen_states": states},
    }


def warmed(trunk: str, data_dir: Path, folder: Path) -> None:
    """Everything that the first run alone would pay for, but no states."""
    import smoothtune

    short = experiment(trunk, "off", 1)
    short["stages"][0]["stop"] = {"max_steps": 3}
    smoothtune.train(short, data_dir=data_dir, run_dir=folder / "warm")


def measure(trunk: str, states: str, epochs: int, data_dir: Path, cache: Path | None) -> dict[str, Any]:
    import smoothtune
    from smoothtune.training.stage import StageEpoch
    from smoothtune.workflow.frozen import FrozenStates
    from smoothtune.workflow.train import RunBegin

    marks: list[float] = []
    encoding = 0.0

    def listen(event: Any) -> None:
        nonlocal encoding
        if isinstance(event, RunBegin | StageEpoch):
            marks.append(time.perf_counter())
        if isinstance(event, FrozenStates):
            encoding = event.seconds

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder if cache is None else str(cache)
        warmed(trunk, data_dir, Path(folder))
        for left in Path(os.environ["XDG_CACHE_HOME"]).glob("smoothtune/states-*"):
            shutil.rmtree(left)
        smoothtune.train(
            experiment(trunk, states, epochs), data_dir=data_dir, run_dir=Path(folder) / "run", listen=listen
        )
    first, *later = (end - begin for begin, end in pairwise(marks))
    return {
        "trunk": trunk,
        "frozen_states": states,
        "first": round(first, 3),
        "encoding": round(encoding, 3),
        "later_min": round(min(later), 4),
        "later_median": round(statistics.median(later), 4),
        "ratio": round(first / statistics.median(later), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SMOOTHTUNE_DATA"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--trunks", nargs="+", default=["cls", "siamese", "conv_bilstm", "pwim_resnet"])
    parser.add_argument("--states", nargs="+", default=["auto", "off"])
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    if asked.data_dir is None:
        parser.error("name the folder of the data with --data-dir, or in SMOOTHTUNE_DATA")
    for trunk in asked.trunks:
        for states in asked.states:
            print(json.dumps(measure(trunk, states, asked.epochs, asked.data_dir, asked.cache)), flush=True)


if __name__ == "__main__":
    main()
