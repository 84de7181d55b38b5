"""The same targets, guided by the lines of ours that an input reaches: `python -m tests.fuzz.guided TARGET [-runs=N ...]`.

Needs `atheris`, which is no part of the environment of development; what follows the target are options of libFuzzer. An
input is a number, which chooses a seed and one of its files, and what this file holds instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["smoothtune"]):
    from tests.fuzz.targets import TARGETS

from smoothtune.errors import SmoothtuneError
from tests.fuzz.files import Files, write_files


def main() -> None:
    """Begin from the seeds' own files and go on until libFuzzer has enough."""
    name, root = sys.argv[1], Path(tempfile.mkdtemp(prefix="smoothtune-guided-"))
    os.environ["XDG_CACHE_HOME"], os.environ["HF_HUB_OFFLINE"] = str(root / "cache"), "1"
    (root / "seeds").mkdir()
    (root / "corpus").mkdir()
    files = places(TARGETS[name].seeds(root / "seeds"))
    for number, (seed, file) in enumerate(files):
        entry = seed[file]
        assert isinstance(entry, bytes)
        (root / "corpus" / str(number)).write_bytes(bytes([number]) + entry)

    def one(data: bytes) -> None:
        seed, file = files[data[0] % len(files)] if data else files[0]
        write_files({**seed, file: data[1:]}, root / "case")
        try:
            TARGETS[name].read(root / "case")
        except SmoothtuneError:
            return

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(root / "corpus")], one)
    atheris.Fuzz()


def places(seeds: list[Files]) -> list[tuple[Files, str]]:
    """Every file of every seed, at most as many as one byte can number."""
    return [(seed, file) for seed in seeds for file in sorted(seed)][:256]


if __name__ == "__main__":
    main()
