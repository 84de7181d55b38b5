"""The three sides of `make bench-default`, and how one cell of a side is measured in a process of its own.

`ours` is `smoothtune.train` with the required keys; `frozen` and `words` are the baselines (workers/default_*.py say how).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from default_cells import Key
from default_data import read_set, rows_of, task_of
from environments import HERE
from harness import Side, checkpoint, progress, run_side
from rows import write_rows

CACHE = HERE / ".cache" / "default"
SIDES = {
    "ours": Side("ours", "default_ours.py"),
    "frozen": Side("frozen", "default_frozen.py"),
    "words": Side("words", "default_words.py"),
}
EMBEDDER = Side("embeddings", "embeddings.py")
TIMEOUT = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What all cells share: the data folder, threads of a process, whether rows of the training part are scored, overrides."""

    data: Path
    threads: int | None = None
    dev: bool = False
    overrides: tuple[str, ...] = ()
    locks: Mapping[str, Lock] = field(default_factory=dict)


def measure(side: str, key: Key, bench: Bench) -> dict[str, Any]:
    """What the worker of a side reports on a cell. Raises `RuntimeError` where it fails."""
    train, scored = rows_of(bench.data, key.set, key.rows, seed=key.seed, dev=bench.dev)
    options: dict[str, Any] = {}
    if side == "ours":
        options = {"overrides": list(bench.overrides)}
    if side == "frozen":
        options = {"embeddings": str(embeddings_file(key.set, bench))}
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name) / "train.tsv", train)
        write_rows(Path(name) / "scored.tsv", scored)
        spec = {"data": name, "task": task_of(key.set), "seed": key.seed, "checkpoint": checkpoint()}
        return run_side(replace(SIDES[side], options=options), spec, threads=bench.threads, timeout=TIMEOUT)


def embeddings_file(name: str, bench: Bench) -> Path:
    """The file of all embeddings of a set, which is written where there is none."""
    path = CACHE / f"{name}.npz"
    with bench.locks[name]:
        if not path.exists():
            began = time.perf_counter()
            _embed_set(name, path, bench)
            progress(f"default: embeddings of {name} in {time.perf_counter() - began:.0f} s")
    return path


def _embed_set(name: str, path: Path, bench: Bench) -> None:
    rows = (*read_set(bench.data, name, "train"), *read_set(bench.data, name, "test"))
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps([text for row, _ in rows for text in row]), encoding="utf-8")
        spec = {"texts": str(texts), "checkpoint": checkpoint(), "out": str(path)}
        run_side(EMBEDDER, spec, threads=bench.threads, timeout=TIMEOUT)
