"""What every worker needs: its spec, its rows, a clock of passes, peak memory, the JSON line. Imports no framework.

A worker is one process of one side of a comparison: it reads a spec (JSON), does its work, and prints one JSON line as the
last line of stdout. A spec of training holds

    data        a folder with train.tsv and dev.tsv; columns `text` or `text_a`, `text_b`, and `label`
    kind        classification | binary | regression
    labels      number of classes
    reads       single | separate | joint
    checkpoint  a folder with config.json, model.safetensors and the tokenizer
    batch_size  rows of a batch
    passes      passes over the rows; all but the last are warm-up, so that every first-time cost is paid before the timing
    device      cpu | cuda
    options     settings of the side alone
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Spec = dict[str, Any]
Report = dict[str, Any]
PACKAGES = (
    "smoothtune", "torch", "transformers", "tokenizers", "accelerate", "sentence-transformers", "setfit", "onnxruntime",
)  # fmt: skip


def read_rows(spec: Spec, split: str = "train") -> list[dict[str, str]]:
    """The rows of a split, as text by column."""
    with (Path(spec["data"]) / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


class PeakMemory:
    """The largest anonymous memory (RssAnon) of this process, in MiB, sampled every 20 ms by a thread."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(0.02):
            self.peak = max(self.peak, anonymous_mb())


def anonymous_mb() -> float:
    """RssAnon of this process now, in MiB; 0 where the system does not tell it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


class PassClock:
    """Seconds of every optimiser step, by pass over the rows."""

    def __init__(self) -> None:
        self.passes: list[list[float]] = []
        self.losses: list[float] = []
        self._last = 0.0

    def begin_pass(self) -> None:
        """A pass begins now: fetching its first batch counts to its first step."""
        self.passes.append([])
        self._last = time.perf_counter()

    def end_step(self) -> None:
        """A step ended now."""
        now = time.perf_counter()
        self.passes[-1].append(now - self._last)
        self._last = now

    def report(self, examples: int) -> Report:
        """What a training worker prints: the steps of the last pass, and the seconds of the first one."""
        return {
            "seconds_per_step": [round(value, 6) for value in self.passes[-1]],
            "first_pass_seconds": sum(self.passes[0]),
            "examples": examples,
            "loss_first": self.losses[0] if self.losses else None,
            "loss_last": self.losses[-1] if self.losses else None,
        }


def versions() -> dict[str, str]:
    """Versions of the packages that matter, as installed here."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run_worker(work: Callable[[Spec], Report], needs: Sequence[str] = ()) -> None:
    """Read `--spec`, work, print the JSON line. `needs` names keys of the spec that must be there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", required=True, type=Path)
    spec: Spec = json.loads(parser.parse_args().spec.read_text())
    missing = [key for key in needs if key not in spec]
    if missing:
        raise SystemExit(f"the spec lacks {', '.join(missing)}")
    with PeakMemory() as memory:
        report = work(spec)
    print(json.dumps({**report, "peak_anonymous_mb": round(memory.peak, 1), "versions": versions()}), flush=True)
