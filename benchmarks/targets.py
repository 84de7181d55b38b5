"""What was aimed at, and whether the measured results reach it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from harness import read
from tables import ratio

WORKLOADS = {"sst": "SST, single texts", "siamese": "Quora, siamese", "joint": "Quora, joint"}


class Target(NamedTuple):
    """An aim, what was measured, and whether that reaches it."""

    aim: str
    measured: str
    reached: bool


def all_targets() -> list[Target]:
    """Every aim whose part was measured."""
    measured = (
        _training,
        _floor,
        _pwim,
        _prediction,
        _mixed,
        _quality,
        _memory,
        _three_tasks,
        _frozen,
        _checkpoints,
        _rows,
        _start,
    )
    return [target for part in measured for target in part()]


def side_row(rows: list[dict[str, Any]], side: str) -> dict[str, Any] | None:
    """The line of a side, None when it did not run."""
    return next((found for found in rows if found["side"] == side and "ratio" in found), None)


def _training() -> Iterator[Target]:
    result = read("training")
    if result is None:
        return
    for workload, rows in result["workloads"].items():
        for side, least in (("Trainer as it comes", 4.0), ("Trainer at its best", 2.0)):
            if (found := side_row(rows, side)) is not None:
                aim = f"{WORKLOADS[workload]}: at least {least:g} times as fast as {side}"
                yield Target(aim, ratio(found["ratio"]), found["ratio"]["value"] >= least)


def _floor() -> Iterator[Target]:
    for workload, found in (read("floor") or {"workloads": {}})["workloads"].items():
        if "ratio" in found:
            aim = f"{WORKLOADS[workload]}: a step takes at most 2 times its matrix products"
            yield Target(aim, ratio(found["ratio"]), found["ratio"]["value"] <= 2)


def _pwim() -> Iterator[Target]:
    result = read("pwim_resnet") or {"workloads": {}}
    for workload, rows in result["workloads"].items():
        for found in rows:
            if found["side"] != "smoothtune" and "ratio" in found:
                aim = f"`pwim_resnet` on {workload}: at least 2 times as fast as the reference"
                yield Target(aim, ratio(found["ratio"]), found["ratio"]["value"] >= 2)


def _mixed() -> Iterator[Target]:
    rows = [row for row in (read("mixed_batch") or {"rows": []})["rows"] if row["level"] == "pass"]
    for row in rows:
        if row["tokens"] == min(other["tokens"] for other in rows):
            what = f"{row['precision']}, {row['tokens']} tokens a text"
            aim = f"One batch of three adapted tasks at least 2 times as fast as three batches ({what})"
            yield Target(aim, ratio(row["times_as_fast"]), row["times_as_fast"]["value"] >= 2)


def _prediction() -> Iterator[Target]:
    rows = (read("prediction") or {"workloads": {"sst": []}})["workloads"].get("sst", [])
    plain = side_row(rows, "pipeline")
    if plain is not None:
        aim = "Prediction: at least 3 times as fast as the transformers pipeline in batches"
        yield Target(aim, ratio(plain["ratio"]), plain["ratio"]["value"] >= 3)
    encoders = [found for name in ("encode", "encode, bf16") if (found := side_row(rows, name)) is not None]
    if encoders:
        best = min((found["ratio"] for found in encoders), key=lambda found: float(found["value"]))
        aim = "Prediction: at least 1.5 times as fast as sentence-transformers `encode` at its best"
        yield Target(aim, ratio(best), best["value"] >= 1.5)


def _quality() -> Iterator[Target]:
    result = read("quality")
    if result is not None:
        value, bound = result["difference"], result["bound"]
        measured = f"{value['value']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"
        yield Target(f"Same accuracy as Trainer on SST: interval within ±{bound}", measured, result["within"])


def _memory() -> Iterator[Target]:
    for workload, rows in (read("training") or {"workloads": {}})["workloads"].items():
        ours, best = side_row(rows, "smoothtune"), side_row(rows, "Trainer at its best")
        if ours is not None and best is not None:
            mine, theirs = ours["peak_anonymous_mb"], best["peak_anonymous_mb"]
            aim = f"{WORKLOADS[workload]}: no more anonymous memory than Trainer at its best"
            yield Target(aim, f"{mine:,.0f} MiB against {theirs:,.0f} MiB", mine <= theirs)


def _three_tasks() -> Iterator[Target]:
    result = read("three_tasks")
    if result is not None:
        aim = "The three-task epoch: at most 150 s of training"
        yield Target(aim, f"{result['median']:.0f} s", result["median"] <= 150)


def _frozen() -> Iterator[Target]:
    printed = [json.loads(line) for line in (read("frozen") or {"lines": []})["lines"]]
    found = [line for line in printed if line["trunk"] == "wang/baseline"]
    if found:
        faster = statistics.median(line["ratio"] for line in found)
        aim = "A frozen encoder (`wang/baseline` on SST): later epochs at least 20 times as fast as the first"
        yield Target(aim, f"{faster:.0f}", faster >= 20)
        over = statistics.median(line["encoding"] / line["predicting"] for line in found)
        aim = "A frozen encoder (`wang/baseline` on SST): encoding takes at most 1.1 times as long as `predict`"
        yield Target(aim, f"{over:.2f}", over <= 1.1)


def _checkpoints() -> Iterator[Target]:
    found = (read("checkpoint_blocks") or {}).get("of_default")
    if found is not None:
        measured, low, high = (100 * found[key] for key in ("value", "low", "high"))
        aim = "Checkpoints as they are by default: training at most 3 % slower than without"
        yield Target(aim, f"{measured:.1f} % ({low:.1f} to {high:.1f} %)", found["high"] <= 0.03)


def _rows() -> Iterator[Target]:
    for line in (read("train_memory") or {"lines": []})["lines"]:
        if line.startswith("ratio "):
            value = float(line.removeprefix("ratio "))
            aim = "Peak anonymous memory with the most training rows within 10 % of that with 10,000"
            yield Target(aim, f"{value:.3f}", abs(value - 1) <= 0.1)


def _start() -> Iterator[Target]:
    lines = (read("start") or {"lines": []})["lines"]
    if lines:
        spent = statistics.median(json.loads(lines[-1])["milliseconds"]["--help"])
        yield Target("`smoothtune --help` in less than 0.3 s", f"{spent / 1000:.2f} s", spent < 300)
