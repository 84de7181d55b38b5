"""The section of docs/defaults.md on several tasks at once, from results/several_tasks.json. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tables import table, where


def section(result: dict[str, Any] | None) -> str:
    """The whole section."""
    head = "## Several tasks at once\n\n`make bench-several`\n\n"
    return head + ("Not measured." if result is None else _body(result))


def _body(result: dict[str, Any]) -> str:
    runs, rows = result["runs"], result["rows"]
    sizes = ", ".join(f"{count} rows of {name}" for name, count in rows.values())
    introduction = (
        f"{sizes} train, a tenth of them as the dev part: together by default, and each task alone by default. Main metric, "
        f"times 100; means of {len(runs)} seeds, in brackets the seeds."
    )
    header = ("task", "dev, probe", "dev, together", "test, probe", "test, together", "test, alone")
    lines = [[name, *_columns(runs, name)] for name in rows]
    lowest = min(
        run["together"]["tasks"][name]["dev"]["model"] - run["together"]["tasks"][name]["dev"]["probe"]
        for run in runs
        for name in rows
    )
    floor = f"The least difference on dev between a task and its probe, over tasks and seeds: {100 * lowest:+.1f}."
    return "\n\n".join([introduction, table(header, lines), floor, where(result)])


def _columns(runs: Sequence[dict[str, Any]], name: str) -> list[str]:
    places = (("together", "dev", "probe"), ("together", "dev", "model"), ("together", "test", "probe"),
              ("together", "test", "model"), (name, "test", "model"))  # fmt: skip
    return [_seeds([100 * run[label]["tasks"][name][part][side] for run in runs]) for label, part, side in places]


def _seeds(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"
