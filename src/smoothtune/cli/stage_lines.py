"""What a stage trains and what came of it, as texts for people. Knows nothing of where they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def percent(share: float) -> str:
    """Two significant digits of a small share, else one decimal."""
    digits = 1 - math.floor(math.log10(100 * share))
    return f"{share:.{max(digits, 1)}%}"


def changed_tasks(others: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """One line for the tasks that are not in the stage and go through what it trains."""
    through: dict[tuple[str, ...], list[str]] = {}
    for task, parts in others.items():
        if parts:
            through.setdefault(parts, []).append(task)
    for parts, tasks in through.items():
        names = " and ".join("the encoder" if part == "encoder" else part for part in parts)
        if len(tasks) == 1:
            yield f"{tasks[0]} also goes through {names}, and is not in this stage: its answers change"
        else:
            yield f"{', '.join(tasks)} also go through {names}, and are not in this stage: their answers change"


def change_text(event: Any, score: str) -> str:
    """The dev metrics of the stage's tasks before and after it; before there may have been no result."""
    after = event.after.main
    if event.before is None:
        values = "  ".join(f"{task} {value:.3f}" for task, value in after.items())
        return f"dev after it: {values} | {score} {event.after.score:.4f} (it began with untrained parts)"
    before = event.before.main
    values = "  ".join(f"{task} {before[task]:.3f} -> {value:.3f}" for task, value in after.items())
    return f"dev before -> after: {values} | {score} {event.before.score:.4f} -> {event.after.score:.4f}"
