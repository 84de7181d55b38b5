"""One cell of ours: trains with the required keys alone, then predicts and scores the other rows.

A spec holds `data` (a folder with train.tsv and scored.tsv), `task` (kind, and range of a regression), `seed`; in `options`
`overrides`, as `--set` takes them. `train_seconds` is the time of the call of `smoothtune.train`, without imports.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from scores import report_of
from worker import Report, Spec, read_rows, run_worker


def experiment(spec: Spec, columns: list[str]) -> dict[str, Any]:
    """The table for `smoothtune.train`."""
    text = columns[0] if len(columns) == 1 else columns
    train = str(Path(spec["data"]) / "train.tsv")
    return {"seed": spec["seed"], "tasks": {"task": {**spec["task"], "text": text, "label": "label", "train": train}}}


def measure(spec: Spec) -> Report:
    """Train, load, predict, score."""
    import smoothtune

    rows = read_rows(spec, "scored")
    columns = [column for column in rows[0] if column != "label"]
    texts = [row[columns[0]] if len(columns) == 1 else tuple(row[column] for column in columns) for row in rows]
    train, overrides = smoothtune.train, spec["options"].get("overrides", ())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        began = time.perf_counter()
        run = train(experiment(spec, columns), run_dir=folder, overrides=overrides)
        train_end = time.perf_counter()
        if run.interrupted:
            raise SystemExit("interrupted")
        state = json.loads((folder / "run.json").read_text())
        model = smoothtune.load(folder)
        parts = [window["task"] for window in model.predict_windows(("task",), texts)]
        predict_end = time.perf_counter()
    values = [value for part in parts for value in part.values]
    distribution = None
    if spec["task"]["kind"] != "regression":
        distribution = parts[0].labels, [row for part in parts for row in part.probabilities]
    return {
        "metrics": report_of(spec, [row["label"] for row in rows], values, distribution),
        "train_seconds": train_end - began,
        "predict_seconds": predict_end - train_end,
        "recipe": state.get("recipe"),
    }


if __name__ == "__main__":
    run_worker(measure, ("data", "task", "seed"))
