"""Builds the C++ kernels of this folder for the processor at hand and loads them. Knows nothing of what they compute.

Each `NAME.cpp` becomes one library, compiled at its first use (seconds, with the system's C++ compiler) into the cache
(or the folder `SMOOTHTUNE_KERNELS_CACHE`); without a compiler everything runs on torch alone. They share torch's OpenMP threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from smoothtune.files import cache_folder

SOURCES = Path(__file__).parent
SWITCH = "SMOOTHTUNE_KERNELS"
PLACE = "SMOOTHTUNE_KERNELS_CACHE"
# Nothing of -ffast-math: what is not finite stays so, and an element's bits do not depend on where it stands in memory.
FLAGS = (
    "-std=c++17 -O3 -march=native -fPIC -fopenmp -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall".split()
)
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")
_TIMEOUT = 300


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library, or None and why."""

    library: ctypes.CDLL | None
    reason: str


@cache
def build(name: str) -> Kernels:
    """The kernels of `NAME.cpp` for this machine, built if need be; `SMOOTHTUNE_KERNELS=plain` leaves all out."""
    if os.environ.get(SWITCH, "auto") == "plain":
        return Kernels(None, f"{SWITCH}=plain")
    threads = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if platform.system() != "Linux" or not threads.is_file():
        return Kernels(None, "the kernels are built on Linux with torch's own OpenMP library only")
    if compiler is None:
        return Kernels(None, "no C++ compiler (c++, g++ or $CXX) was found")
    try:
        return Kernels(ctypes.CDLL(str(_built(name, compiler, threads))), f"built by {compiler}")
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return Kernels(None, f"{compiler} could not build them: {str(detail).strip().splitlines()[0]}")


def kernels(name: str) -> ctypes.CDLL | None:
    """The library of `NAME.cpp`, or None where torch alone must do."""
    return build(name).library


def told() -> str:
    """Whether this process computes with the kernels, for the records of a run."""
    found = build("layers")
    return f"on, {found.reason}" if found.library is not None else f"off: {found.reason}"


def _built(name: str, compiler: str, threads: Path) -> Path:
    source = SOURCES / f"{name}.cpp"
    key = _key(compiler, [source, *sorted(SOURCES.glob("*.h"))])
    target = Path(os.environ.get(PLACE) or cache_folder()) / f"kernels-{name}-{key}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kernels-", suffix=".part", dir=target.parent) as aside:
        compiled, built = Path(aside) / f"{name}.o", Path(aside) / f"{name}.so"
        _call([compiler, *FLAGS, "-c", str(source), "-o", str(compiled)])
        _call([compiler, "-shared", "-o", str(built), str(compiled), str(threads), "-lm"])
        os.replace(built, target)
    return target


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT)
    return done.stdout


def _key(compiler: str, files: list[Path]) -> str:
    """Names sources, compiler and processor: the cache may be shared between machines."""
    digest = hashlib.sha256()
    for part in (*FLAGS, _version(compiler), _processor(), torch.__version__):
        digest.update(part.encode() + b"\0")
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


@cache
def _version(compiler: str) -> str:
    return _call([compiler, "--version"])


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
