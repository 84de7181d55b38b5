"""Builds the C++ kernels of this folder for the processor at hand and loads them. Knows nothing of what they compute.

Each `NAME.cpp` becomes one library, an entry of the cache (or of the folder `SMOOTHTUNE_KERNELS_CACHE`). Whoever first needs
one of them compiles all that are not there (seconds; logged at INFO) with the system's C++ compiler, and loads all; without
a compiler, torch alone computes. They share torch's OpenMP threads.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from smoothtune.cache import aside, gone, opened, settle
from smoothtune.errors import UsageError
from smoothtune.files import NoCacheError, WriteError, cache_folder

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
_LIBRARY = "kernels.so"
_TIMEOUT = 300
_AT_ONCE = 4  # compilers side by side, each of which takes memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library, or None and why."""

    loaded: ctypes.CDLL | None
    reason: str = ""


class _CompilerError(Exception):
    """Why a compiler built nothing, on one line."""


def build(name: str) -> Kernels:
    """The kernels of `NAME.cpp` for this machine. Raises `UsageError` for an unknown value of `SMOOTHTUNE_KERNELS`."""
    return _libraries()[name]


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
def _libraries() -> dict[str, Kernels]:
    """Every library, loaded at once, so that none can go between the first use of one and that of another."""
    if _plain():
        return _none(NAMES, f"{SWITCH}=plain")
    threads = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if platform.system() != "Linux" or not threads.is_file():
        return _none(NAMES, "they are built on Linux with torch's own OpenMP library only")
    try:
        folder = Path(os.environ.get(PLACE) or cache_folder())
        entries = {name: folder / f"kernels-{name}-{_key(name)}" for name in NAMES}
        found = {name: opened(entry, _loaded) for name, entry in entries.items()}
    except (NoCacheError, WriteError) as error:
        return _none(NAMES, f"{error} or {PLACE}")
    built = _built({name: entries[name] for name, library in found.items() if library is None}, threads)
    return {name: library or built[name] for name, library in found.items()}


def _none(names: Iterable[str], reason: str) -> dict[str, Kernels]:
    return {name: Kernels(None, reason) for name in names}


def _loaded(entry: Path) -> Kernels:
    path = entry / _LIBRARY
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        return Kernels(ctypes.CDLL(str(path)))
    except OSError as error:
        return Kernels(None, f"{path} cannot be loaded ({error}); choose a folder that may hold programs with {PLACE}")


def _built(entries: dict[str, Path], threads: Path) -> dict[str, Kernels]:
    """The libraries of `entries`, which are made."""
    if not entries:
        return {}
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return _none(entries, "no C++ compiler (c++, g++ or $CXX) was found; install one")
    _log.info("building kernels for this processor (once)")
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        built = pool.map(lambda name: _compiled(name, entries[name], compiler, threads), entries)
        return dict(zip(entries, built, strict=True))


def _compiled(name: str, entry: Path, compiler: str, threads: Path) -> Kernels:
    """The library of `entry`, which is made, or why it could not be. Other processes may be making it too."""
    try:
        with aside(entry.parent, variables=f"XDG_CACHE_HOME or {PLACE}") as folder:
            compiled, linked = folder / f"{name}.o", folder / _LIBRARY
            _call([compiler, *FLAGS, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(compiled)], folder)
            _call([compiler, "-shared", "-o", str(linked), str(compiled), str(threads), "-lm"], folder)
            compiled.unlink()
            settle(folder, entry)
        library = opened(entry, _loaded)
        return Kernels(None, str(gone(entry))) if library is None else library
    except WriteError as error:
        return Kernels(None, str(error))
    except _CompilerError as error:
        return Kernels(
            None, f"{compiler} could not build into {entry.parent} ({error}); mend that or set CXX to another compiler"
        )


def _call(command: list[str], folder: Path) -> None:
    """Run a compiler, whose own scratch files go into `folder` too. Raises `_CompilerError`, and `OSError` for a full disk."""
    try:
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT,
            env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if os.strerror(code) in str(getattr(error, "stderr", "")):
                raise OSError(code, os.strerror(code)) from None
        raise _CompilerError(_why(error)) from None


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
