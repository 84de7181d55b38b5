"""Runs all targets, one after another, each in a process of its own with a home of its own, and prints what came of them.

Exit 1 where anything else came of an input than that it was read or refused. Findings stay in the folder that is named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smoothtune.files import cache_folder
from smoothtune.runtime.kernels.building import PLACE
from tests.fuzz.child import CALL
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Parse, run, print; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Damaged and hostile files for all readers."
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="in all, split over the targets")
    parser.add_argument("--seed", type=int, default=1, help="another number gives other inputs")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--together", action="store_true", help="all targets in one process, which starts once")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="smoothtune-fuzz-"))
    counts = split(given.inputs, given.target or list(TARGETS))
    groups = [counts] if given.together else [{name: count} for name, count in counts.items()]
    lines = [line for group in groups for line in run(group, given.seed, root)]
    wrong = sum(sum(line["findings"].values()) for line in lines)
    total = sum(line["inputs"] for line in lines)
    print(f"{total:,} inputs to {len(lines)} targets, findings: {wrong}" + (f"; see {root}" if wrong else ""))
    if not wrong:
        shutil.rmtree(root)
    return 1 if wrong else 0


def split(inputs: int, names: list[str]) -> dict[str, int]:
    """How many inputs each target gets, by its share."""
    whole = sum(TARGETS[name].share for name in names)
    counts = {name: int(inputs * TARGETS[name].share / whole) for name in names}
    counts[names[0]] += inputs - sum(counts.values())
    return counts


def run(counts: dict[str, int], seed: int, root: Path) -> list[dict[str, Any]]:
    """The outcomes of some targets in one process; of a target in which the process ended, that it did."""
    place = root / "-".join(counts)[:60]
    (place / "home").mkdir(parents=True)
    (place / "cache" / "tmp").mkdir(parents=True)
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "cache"), "TMPDIR": str(place / "cache" / "tmp")}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "cache" / "hf"), "RUST_BACKTRACE": "0", "TQDM_DISABLE": "1"}
    asked = json.dumps([counts, seed, str(place)])
    environment = {**os.environ, PLACE: str(cache_folder()), **home, **quiet, "OMP_NUM_THREADS": "1"}
    with (place / "stderr.txt").open("wb") as errors:
        ended = subprocess.run([*CALL, asked], stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"target"')]
    if ended.returncode:
        missing = [name for name in counts if name not in {line["target"] for line in lines}]
        what = f"the process ended with {ended.returncode}; see {place / 'stderr.txt'}, input in {place / 'case'}"
        lines += [{"target": name, "inputs": 0, "read": 0, "refused": 0, "findings": {what: 1}} for name in missing[:1]]
    for line in lines:
        print(f"{line['target']:12} {line['inputs']:6,} inputs: {line['read']:6,} read, {line['refused']:6,} refused")
        for what, count in line["findings"].items():
            print(f"{'':12} {count:6,} x {what}")
        sys.stdout.flush()
    return lines


if __name__ == "__main__":
    sys.exit(main())
