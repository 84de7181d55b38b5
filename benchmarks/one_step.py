"""A run of the bundled encoder after one training step: for measurements in which what was learnt plays no part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import SOURCES, Source, read_rows, sampled, write_rows

TASKS = ("sst", "quora")


def one_step_run(folder: Path, data_dir: Path | None) -> Path:
    """Write a run with the tasks `sst` (mean) and `quora` (siamese), trained for one step on a few rows."""
    import smoothtune

    tasks = {name: _task(SOURCES[name], folder, data_dir) for name in TASKS}
    return smoothtune.train({"tasks": tasks, "stages": [{"stop": {"max_steps": 1}}]}, run_dir=folder / "run").folder


def _task(source: Source, folder: Path, data_dir: Path | None) -> dict[str, Any]:
    for split in ("train", "dev"):
        write_rows(folder / f"{source.name}.{split}.tsv", sampled(read_rows(source, data_dir), 100))
    return {
        "kind": source.kind,
        "text": "text" if len(source.text) == 1 else ["text_a", "text_b"],
        "label": "label",
        "train": str(folder / f"{source.name}.train.tsv"),
        "dev": str(folder / f"{source.name}.dev.tsv"),
    }
