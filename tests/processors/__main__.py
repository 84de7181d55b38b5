"""Runs the tests of the kernels as they are built for other processors: `python -m tests.processors avx2|tiles [PYTEST ...]`.

`avx2` is a processor without AVX-512; `tiles` one with AMX, whose tile unit is emulated (it needs AVX-512 with bf16). The
kernels are built by a compiler of ours that adds its flags to those that they are always built with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from smoothtune.runtime.kernels.building import PLACE

HERE = Path(__file__).parent
FLAGS = {"avx2": "-march=x86-64-v3", "tiles": f"-include {HERE / 'emulated_tiles.h'}"}
TESTS = [
    "test_fast_encoder.py",
    "test_encoder_extremes.py",
    *(path.name for path in HERE.parent.glob("test_kernels_*.py")),
]
BUILDING = "test_kernels_building.py"  # what it builds is its own


def compiler(folder: Path, flags: str) -> Path:
    """A compiler in `folder` that adds `flags`."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" {flags}\n')
    path.chmod(0o755)
    return path


def main(processor: str, *options: str) -> int:
    """The exit status of pytest."""
    tests = [str(HERE.parent / name) for name in sorted(TESTS) if name != BUILDING]
    with tempfile.TemporaryDirectory() as folder:
        variables = {"CXX": str(compiler(Path(folder), FLAGS[processor])), PLACE: str(Path(folder) / "kernels")}
        command = [sys.executable, "-m", "pytest", *(options or ("-q",)), *tests]
        return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in FLAGS:
        sys.exit(f"usage: python -m tests.processors {'|'.join(FLAGS)} [PYTEST ...]")
    sys.exit(main(*sys.argv[1:]))
