"""What was aimed at, and whether the measured results reach it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from harness import read
from tables import milliseconds, ratio

WORKLOADS = {"sst": "SST, single texts", "siamese": "Quora, siamese", "joint": "Quora, joint"}


class Target(NamedTuple):
    """An aim, what was measured, and whether that reaches it."""

    aim: str
    measured: str
    reached: bool


def all_targets() -> list[Target]:
    """Every aim whose part was measured."""
    return [*_training(), *_pwim(), *_prediction(), *_quality(), *_memory(), *_three_tasks()]


def row(rows: list[dict[str, Any]], side: str) -> dict[str, Any] | None:
    """The line of a side, None when it did not run."""
    return next((found for found in rows if found["side"] == side and "ratio" in found), None)


def _training() -> Iterator[Target]:
    result, floor = read("training") or {"workloads": {}}, read("floor") or {"workloads": {}}
    for workload, rows in result["workloads"].items():
        for side, least in (("Trainer as it comes", 4.0), ("Trainer at its best", 2.0)):
            if (found := row(rows, side)) is not None:
                aim = f"{WORKLOADS[workload]}: at least {least:g} times as fast as {side}"
                yield Target(aim, ratio(found["ratio"]), found["ratio"]["value"] >= least)
        ours = row(rows, "smoothtune")
        if ours is not None and workload in floor["workloads"]:
            factor = ours["median"] / floor["workloads"][workload]["products_seconds"]
            aim = f"{WORKLOADS[workload]}: a step takes at most 2 times its matrix products"
            yield Target(aim, f"{factor:.2f}", factor <= 2)


def _pwim() -> Iterator[Target]:
    result = read("pwim_resnet") or {"workloads": {}}
    for workload, rows in result["workloads"].items():
        for found in rows:
            if found["side"] != "smoothtune" and "ratio" in found:
                aim = f"`pwim_resnet` on {workload}: at least 2 times as fast as the reference"
                yield Target(aim, ratio(found["ratio"]), found["ratio"]["value"] >= 2)


def _prediction() -> Iterator[Target]:
    rows = (read("prediction") or {"workloads": {"sst": []}})["workloads"].get("sst", [])
    plain = row(rows, "pipeline")
    if plain is not None:
        aim = "Prediction: at least 3 times as fast as the transformers pipeline in batches"
        yield Target(aim, ratio(plain["ratio"]), plain["ratio"]["value"] >= 3)
    encoders = [found for name in ("encode", "encode, bf16") if (found := row(rows, name)) is not None]
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
        ours, best = row(rows, "smoothtune"), row(rows, "Trainer at its best")
        if ours is not None and best is not None:
            mine, theirs = ours["peak_anonymous_mb"], best["peak_anonymous_mb"]
            aim = f"{WORKLOADS[workload]}: no more anonymous memory than Trainer at its best"
            yield Target(aim, f"{mine:,.0f} MiB against {theirs:,.0f} MiB", mine <= theirs)


def _three_tasks() -> Iterator[Target]:
    result = read("three_tasks")
    if result is not None:
        aim = "The three-task epoch: at most 150 s of training"
        yield Target(aim, f"{result['median']:.0f} s", result["median"] <= 150)


def shares_of_peak() -> Iterator[tuple[str, str, str]]:
    """On CUDA: workload, time of a step, its share of the best bf16 rate that was measured on the card."""
    training, floor = read("training-cuda"), read("floor-cuda")
    if training is None or floor is None:
        return
    for workload, rows in training["workloads"].items():
        ours = row(rows, "smoothtune")
        if ours is not None and workload in floor["workloads"]:
            share = floor["workloads"][workload]["flops"] / ours["median"] / floor["best_rate"]
            yield WORKLOADS[workload], milliseconds(ours["median"]), f"{100 * share:.1f} %"
