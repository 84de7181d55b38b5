"""Do the packaged experiments of the papers learn? 200 steps of every stage, the mean loss of each task's first and last 50.

Run: python benchmarks/packaged_learn.py --data-dir FOLDER [NAME ...], by default those with smoothness. Quora is cut to 5,000
training rows and every dev set to a fiftieth, for only losses matter. Each experiment is a process of its own. Writes
results/packaged_learn/NAME.json, which `results_page.py` shows. Exits 1 when a task's loss did not fall.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from harness import RESULTS, Side, run_side, settings_of
from options import parser_of
from rows import what_data

SIDE = Side("smoothtune", "packaged_run.py")
OVERRIDES = (
    "tasks.quora.max_train_rows=5000",
    *(f"tasks.{task}.dev=0.02" for task in ("sst", "quora", "sts")),
)
WIDTH = 50
TIMEOUT = 7200


def file_of(name: str) -> Path:
    """Where the result of an experiment is kept."""
    return RESULTS / "packaged_learn" / f"{name.replace('/', '-')}.json"


def ends(losses: list[float]) -> dict[str, Any]:
    """Mean loss at the beginning and at the end: of 50 steps each, or of halves where there are fewer than 100."""
    width = min(WIDTH, len(losses) // 2)
    return {
        "steps": len(losses),
        "width": width,
        "first": statistics.fmean(losses[:width]),
        "last": statistics.fmean(losses[-width:]),
    }


def main() -> None:
    """Train, print, save, judge."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.data_dir is None:
        parser.error("--data-dir: give the folder with sst/, quora/ and sts/")
    from smoothtune.config.loading import packaged_names

    worse = []
    for name in options.names or [name for name in packaged_names() if "/" in name and "smart" in name]:
        spec = {
            "name": name, "data_dir": str(options.data_dir.resolve()), "overrides": OVERRIDES, "steps": options.steps,
        }  # fmt: skip
        report = run_side(SIDE, spec, threads=options.threads, timeout=TIMEOUT)
        parts = {part: ends(losses) for part, losses in report["losses"].items()}
        settings = settings_of(
            data=what_data(options.data_dir), threads=options.threads, steps=options.steps, overrides=OVERRIDES
        )
        found = {**settings, "name": name, "parts": parts, "peak_anonymous_mb": report["peak_anonymous_mb"]}
        file_of(name).parent.mkdir(parents=True, exist_ok=True)
        file_of(name).write_text(json.dumps(found, indent=1) + "\n")
        for part, end in parts.items():
            print(
                f"{name:28} {part:16} {end['steps']:4} steps  first {end['width']} {end['first']:.4f}  "
                f"last {end['width']} {end['last']:.4f}  peak {report['peak_anonymous_mb']:,.0f} MiB",
                flush=True,
            )
        worse += [f"{name} {part}" for part, end in parts.items() if end["last"] >= end["first"]]
    if worse:
        sys.exit(f"did not fall: {', '.join(worse)}")


if __name__ == "__main__":
    main()
