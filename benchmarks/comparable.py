"""Whether a time of one result may be divided by a time of another: the same data, steps, threads, device and processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAME = ("data", "batch", "steps", "device", "threads", "processor")


def why_not(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What differs and forbids the division, in a line; empty where nothing does."""
    mine, theirs = _settings(one), _settings(other)
    told = [f"{name} {mine[name]} and {theirs[name]}" for name in SAME if mine[name] != theirs[name]]
    return f"not comparable: {'; '.join(told)}" if told else ""


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    machine, threads = result["machine"], result["threads"]
    # Without a number our side takes one thread per core.
    taken = machine["cores"] if threads is None else threads
    return {**{name: result[name] for name in SAME[:4]}, "threads": taken, "processor": machine["processor"]}
