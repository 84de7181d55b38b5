"""Calls of a model from one thread: this smoothtune against that of another folder, in turn.

Run: python benchmarks/shared_model.py --other FOLDER/src [--repetitions 200] [--rows 1 32]. FOLDER is a checkout of another
commit (`git worktree add FOLDER COMMIT`). The bundled encoder, our own and wrapped, bare and with LoRA, adapters or both,
answers `rows` short texts of one task in float32; each side in a process of its own, one call of each in turn. Times are
the processor's, which other processes disturb less than the clock. Prints and saves medians in milliseconds, and the median
over the turns of ours over the other's, with its interval. Writes results/shared_model.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import save, settings_of
from intervals import median_of_ratios
from options import parser_of

WORKER = Path(__file__).parent / "workers" / "shared_model_calls.py"
OURS = Path(__file__).parents[1] / "src"


class Side:
    """A process that answers with the smoothtune of `source`."""

    def __init__(self, source: Path, implementation: str, adaptation: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), implementation, adaptation],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._read() == "ready"

    def seconds(self, rows: int) -> float:
        """Of the processor, for one call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rows}\n")
        self._process.stdin.flush()
        return float(self._read())

    def end(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def measured(ours: Side, other: Side, rows: int, repetitions: int) -> dict[str, Any]:
    """Both in turn; who is first changes."""
    taken: dict[Side, list[float]] = {ours: [], other: []}
    for turn in range(repetitions):
        for side in (ours, other) if turn % 2 else (other, ours):
            taken[side].append(side.seconds(rows))
    return {
        "ours_ms": round(1e3 * statistics.median(taken[ours]), 3),
        "other_ms": round(1e3 * statistics.median(taken[other]), 3),
        "over_other": median_of_ratios(taken[ours], taken[other]).to_json(),
    }


def main() -> None:
    """Measure, print and save."""
    parser = parser_of(__doc__, repetitions=200)
    parser.add_argument("--other", type=Path, required=True, help="the src folder of another checkout")
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 32))
    given = parser.parse_args()
    found = []
    for implementation in ("native", "transformers"):
        for adaptation in ("bare", "lora", "adapters", "both"):
            ours, other = (Side(source, implementation, adaptation) for source in (OURS, given.other))
            for rows in given.rows:
                times = measured(ours, other, rows, given.repetitions)
                found.append({"implementation": implementation, "adaptation": adaptation, "rows": rows, **times})
                print(json.dumps(found[-1]), flush=True)
            ours.end()
            other.end()
    save("shared_model", {**settings_of(repetitions=given.repetitions), "rows": found})


if __name__ == "__main__":
    main()
