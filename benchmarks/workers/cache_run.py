"""Trains an experiment of ours and tells how much of the whole run went into the sums of the cache, and into syncing its entries.

A spec holds `experiment`, a table as `smoothtune.train` takes it. The clock runs from the call to its return: preparing the data,
training, evaluation, writing the model.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from worker import Report, Spec, run_worker


class Clock:
    """Adds up the seconds and the bytes of the files that a function of one path is called with."""

    def __init__(self, function: Callable[[Path], Any]) -> None:
        self.seconds, self.bytes = 0.0, 0
        self._function = function

    def __call__(self, path: Path) -> Any:
        """Call the function, and count."""
        began = time.perf_counter()
        result = self._function(path)
        self.seconds += time.perf_counter() - began
        self.bytes += path.stat().st_size if path.is_file() else 0
        return result


def train(spec: Spec) -> Report:
    """Train once."""
    import smoothtune
    from smoothtune import cache

    cache._checksum = sums = Clock(cache._checksum)  # type: ignore[assignment]
    cache.sync = syncs = Clock(cache.sync)
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        smoothtune.train(spec["experiment"], run_dir=Path(name) / "run")
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "sum_seconds": sums.seconds,
        "rest_seconds": seconds - sums.seconds,
        "sync_seconds": syncs.seconds,
        "summed_megabytes": sums.bytes / 1e6,
    }


if __name__ == "__main__":
    run_worker(train, ("experiment",))
