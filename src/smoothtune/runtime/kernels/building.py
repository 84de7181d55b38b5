"""Builds the C++ kernels of this folder for the processor at hand and loads them. Knows nothing of what they compute.

Each `NAME.cpp` becomes one library in the cache (or the folder `SMOOTHTUNE_KERNELS_CACHE`). Whoever first needs one of them
compiles all that are not there (seconds; logged at INFO) with the system's C++ compiler; without one, torch alone
computes. They share torch's OpenMP threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from smoothtune.errors import UsageError
from smoothtune.files import cache_folder

SOURCES = Path(__file__).parent
NAMES = (
    "adamw",
    "attention",
    "bottleneck",
    "gemm",
    "gemm_gradient",
    "grid",
    "grid_convolution",
    "grid_float",
    "layers",
)
SWITCH = "SMOOTHTUNE_KERNELS"
PLACE = "SMOOTHTUNE_KERNELS_CACHE"
# Nothing of -ffast-math: what is not finite stays so, and an element's bits do not depend on where it stands in memory.
FLAGS = (
    "-std=c++17 -O3 -march=native -fPIC -fopenmp -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall".split()
)
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")
_TIMEOUT = 300
_AT_ONCE = 4  # compilers side by side, each of which takes memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library, or None and why."""

    loaded: ctypes.CDLL | None
    reason: str = ""


@cache
def build(name: str) -> Kernels:
    """The kernels of `NAME.cpp` for this machine. Raises `UsageError` for an unknown value of `SMOOTHTUNE_KERNELS`."""
    found = _files()[name]
    if isinstance(found, str):
        return Kernels(None, found)
    try:
        return Kernels(ctypes.CDLL(str(found)))
    except OSError as error:
        return Kernels(None, f"{found} cannot be loaded ({error}); remove it, and it will be built anew")


def kernels(name: str) -> ctypes.CDLL | None:
    """The library of `NAME.cpp`, or None where torch alone must do."""
    return build(name).loaded


def told(device: str = "cpu") -> str:
    """Which kernels there are for a kind of device, for records and keys: `on`, `on, but not NAME: WHY` or `off: WHY`."""
    _plain()  # a wrong value is refused on every device
    if device != "cpu":
        return f"not used: {device}"
    lacking = _lacking()
    if not lacking:
        return "on"
    none = sum(map(len, lacking.values())) == len(NAMES)
    return f"off: {_listed(lacking)}" if none else f"on, but not {_listed(lacking)}"


def notes(device: str) -> tuple[str, ...]:
    """A line for the user where kernels should serve and do not: why, and what to do. None where `plain` was asked for."""
    if _plain() or device != "cpu" or not _lacking():
        return ()
    return (
        f"note: kernels are {told()}; torch computes in their stead, more slowly ({SWITCH}=plain asks for torch alone, "
        "without this line)",
    )


def _lacking() -> dict[str, list[str]]:
    """The names of the libraries that are not there, by reason."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        if build(name).loaded is None:
            found.setdefault(build(name).reason, []).append(name)
    return found


def _listed(lacking: dict[str, list[str]]) -> str:
    if len(lacking) == 1 and len(*lacking.values()) == len(NAMES):
        return next(iter(lacking))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in lacking.items())


def _plain() -> bool:
    asked = os.environ.get(SWITCH) or "auto"
    if asked not in ("auto", "plain"):
        raise UsageError(
            f"the environment's {SWITCH}: got {asked!r}, expected auto (kernels where they can be built) or plain (torch alone)"
        )
    return asked == "plain"


@cache
def _files() -> dict[str, Path | str]:
    """The file of every library, or why there is none. Builds what the cache lacks."""
    if _plain():
        return dict.fromkeys(NAMES, f"{SWITCH}=plain")
    threads = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if platform.system() != "Linux" or not threads.is_file():
        return dict.fromkeys(NAMES, "they are built on Linux with torch's own OpenMP library only")
    folder = Path(os.environ.get(PLACE) or cache_folder())
    found: dict[str, Path | str] = {name: folder / f"kernels-{name}-{_key(name)}.so" for name in NAMES}
    missing = {name: path for name, path in found.items() if isinstance(path, Path) and not path.is_file()}
    if missing:
        found.update(_built(missing, threads))
    return found


def _built(targets: dict[str, Path], threads: Path) -> dict[str, Path | str]:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return dict.fromkeys(targets, "no C++ compiler (c++, g++ or $CXX) was found; install one")
    _log.info("building kernels for this processor (once)")
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        built = pool.map(lambda name: _compile(name, targets[name], compiler, threads), targets)
        return dict(zip(targets, built, strict=True))


def _compile(name: str, target: Path, compiler: str, threads: Path) -> Path | str:
    """`target`, renamed to when whole, since other processes may be building it too; or why it could not be made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kernels-", suffix=".part", dir=target.parent) as aside:
            compiled, built = Path(aside) / f"{name}.o", Path(aside) / f"{name}.so"
            _call([compiler, *FLAGS, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(compiled)])
            _call([compiler, "-shared", "-o", str(built), str(compiled), str(threads), "-lm"])
            os.replace(built, target)
    except (OSError, subprocess.SubprocessError) as error:
        return (
            f"{compiler} could not build into {target.parent} ({_why(error)}); mend that or set CXX to another compiler"
        )
    return target


def _call(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT)


def _why(error: OSError | subprocess.SubprocessError) -> str:
    """One line: the compiler's first error, or what it said first, or how it ended."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line] or lines
        return errors[0] if errors else f"exit status {error.returncode}"
    return f"no end after {_TIMEOUT} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)


def _key(name: str) -> str:
    """Names sources and processor, since machines may share a cache; not the compiler, which need not be there any more."""
    digest = hashlib.sha256()
    for part in (*FLAGS, _processor(), *platform.libc_ver(), torch.__version__):
        digest.update(part.encode() + b"\0")
    for path in (SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
