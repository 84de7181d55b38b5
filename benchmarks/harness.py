"""Runs the sides of a comparison as separate processes, one after the other and again, and keeps what they report.

It knows nothing of what a worker does: a side is a worker's file, an environment, settings of the process and options.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import HERE, OURS, python_of, why_missing

RESULTS = HERE / "results"
# What a shell may have set for one side must not leak into another.
_CLEARED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, slots=True)
class Side:
    """One side: `environment` of `.envs` (or `ours`), `variables` of the process, `options` of its spec, `note` for the page."""

    name: str
    worker: str
    environment: str = OURS
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(slots=True)
class Measured:
    """What a side reported, one report per repetition; or why it did not run."""

    side: Side
    reports: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None

    def values(self, key: str) -> list[float]:
        """One number of every report."""
        return [float(report[key]) for report in self.reports]


def run_side(
    side: Side, spec: Mapping[str, Any], *, threads: int | None = None, timeout: float = 1800
) -> dict[str, Any]:
    """One process of a side. Raises `RuntimeError` with the last line of its stderr when it fails."""
    python = python_of(side.environment)
    if python is None:
        raise RuntimeError(why_missing(side.environment))
    kept = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    one_for_all = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps({**spec, "options": {**spec.get("options", {}), **side.options}}))
        done = subprocess.run(
            [python, str(HERE / "workers" / side.worker), "--spec", str(path)],
            env={**kept, **_OFFLINE, **side.variables, **one_for_all},
            cwd=folder, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise RuntimeError(f"ended with status {done.returncode}: {lines[-1]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def alternate(
    sides: Sequence[Side], spec: Mapping[str, Any], repetitions: int, *, threads: int | None = None, label: str = ""
) -> list[Measured]:
    """Every side once, then every side again, `repetitions` times. One that fails is left out from then on."""
    found = [Measured(side) for side in sides]
    for repetition in range(repetitions):
        for measured in found:
            if measured.failure is not None:
                continue
            began = time.perf_counter()
            try:
                measured.reports.append(run_side(measured.side, spec, threads=threads))
                outcome = f"{time.perf_counter() - began:.0f} s"
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                measured.failure = outcome = str(error)
            progress(f"{label}: {measured.side.name}, repetition {repetition + 1} of {repetitions}: {outcome}")
    return found


def progress(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def settings_of(**given: Any) -> dict[str, Any]:
    """Where, when and with what a part was measured; the GPU too where `device` is one."""
    from smoothtune.workflow.run import machine

    device = str(given.get("device", "cpu"))
    gpu = {"gpu": _gpu()} if device == "cuda" else {}
    return {"machine": {**machine(device), **gpu}, "load_before": round(os.getloadavg()[0], 2), **given}


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name(0))


def part_name(part: str, device: str) -> str:
    """What the results of a part are called: those of another device than the CPU have a name of their own."""
    return part if device == "cpu" else f"{part}-{device}"


def save(part: str, value: Mapping[str, Any]) -> Path:
    """Write `results/PART.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part}.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    progress(f"wrote {path.relative_to(HERE.parent)}")
    return path


def read(part: str) -> dict[str, Any] | None:
    """`results/PART.json`, None when the part was never measured."""
    path = RESULTS / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else None


def checkpoint() -> str:
    """The folder of the bundled encoder: real weights, no network."""
    from smoothtune.config.encoder import EncoderOptions
    from smoothtune.nn.pretrained import find_checkpoint

    return str(find_checkpoint(EncoderOptions()))


def seconds_per_step(report: Mapping[str, Any]) -> float:
    """Mean seconds of the steps of a report: a whole pass, so that every batch counts once."""
    return statistics.fmean(report["seconds_per_step"])
