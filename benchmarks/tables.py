"""Markdown of measured values. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers or text."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def milliseconds(seconds: float) -> str:
    """With one decimal below 100 ms."""
    value = 1e3 * seconds
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def ratio(value: Mapping[str, float]) -> str:
    """`4.2 (4.0 to 4.5)`."""
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def runs(count: int) -> str:
    """What a time is: of one run, or the median of several."""
    return "one run" if count == 1 else f"median of {count} runs"


def where(result: Mapping[str, Any]) -> str:
    """When and on what a part was measured, in a line."""
    machine = result["machine"]
    packages = machine["packages"]
    threads = result.get("threads")
    told = [
        machine["date"][:10],
        *([machine["gpu"]] if "gpu" in machine else []),
        f"{machine['processor']}, {machine['cores']} core{'s' * (machine['cores'] > 1)}",
        "threads as each side takes them" if threads is None else f"{threads} thread{'s' * (threads > 1)}",
        f"Python {machine['python']}",
        f"torch {packages['torch']}",
        f"transformers {packages['transformers']}",
    ]
    if "repetitions" in result:
        told.append(runs(result["repetitions"]))
    if "data" in result:
        told.append(f"data: {result['data']}")
    return f"*{'; '.join(told)}; load before {result['load_before']:.1f}.*"


def versions_note(rows: Iterable[Mapping[str, Any]]) -> str:
    """The versions of every side that ran, where they differ from one to the other."""
    told = [
        f"{row['side']}: {', '.join(f'{name} {value}' for name, value in row['versions'].items())}"
        for row in rows
        if "versions" in row
    ]
    return "\n".join(f"- {line}" for line in told)


def quoted(lines: Iterable[str]) -> str:
    """Lines as they were printed."""
    return "\n".join(["```", *lines, "```"])
