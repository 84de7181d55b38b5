"""One line of metrics.jsonl: what is written of an epoch. Knows nothing of files."""

from __future__ import annotations

import math
from typing import Any

from smoothtune.training.stage_events import StageEpoch


def metrics_line(event: StageEpoch) -> dict[str, Any]:
    """What is written of one epoch; numbers that JSON cannot hold are None."""
    report = event.report
    scores = report.dev
    line = {
        "stage": report.stage,
        "epoch": report.epoch + 1,
        "step": report.step,
        "train_seconds": round(report.train_seconds, 3),
        "losses": report.losses,
        "train": scores.train.tasks,
        "dev": scores.dev.tasks,
        "score": scores.score,
        "plain_mean": scores.plain_mean,
        "best": event.best,
        "finished": list(event.finished),
        "coverage": {
            task: {"once": seen.once, "repeated": seen.repeated, "unseen": seen.unseen}
            for task, seen in report.coverage.items()
        },
        "skipped": report.skipped,
    }
    if event.factors:
        line["weights"] = event.factors
    if event.probe:
        line["probe"] = event.probe
    found: dict[str, Any] = plain(line)
    return found


def plain(value: Any) -> Any:
    """`value` with plain values for JSON: numbers that it cannot hold become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
