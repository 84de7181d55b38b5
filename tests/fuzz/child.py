"""The process in which targets are tried: with bounded memory, so that a demand for too much of it shows."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from pathlib import Path

from tests.fuzz.trial import line_of, run_target
from tests.fuzz.watch import Watch

CALL = (sys.executable, "-m", "tests.fuzz.child")
_MOST = 12 << 30  # bytes of addresses; libraries map several GB that they never use


def main() -> None:
    """Read what is asked, try it, and print a line for each target."""
    counts, seed, place = json.loads(sys.argv[1])
    root = Path(place)
    _begin()
    resource.setrlimit(resource.RLIMIT_AS, (_MOST, resource.RLIM_INFINITY))
    watch = Watch(root / "cache")
    for name, inputs in counts.items():
        outcome = run_target(name, inputs, seed, root, watch)
        print(line_of(outcome), flush=True)
        for part in ("seeds", "case", "outside"):
            shutil.rmtree(root / part, ignore_errors=True)


def _begin() -> None:
    """What readers load or build at their first use, so that it is not taken for something that a file did."""
    import torch
    from transformers import AutoModel, AutoTokenizer  # noqa: F401 - loaded lazily

    torch.set_num_threads(1)
    torch.nn.functional.gelu(torch.ones(1))


if __name__ == "__main__":
    main()
