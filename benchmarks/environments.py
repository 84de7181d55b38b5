"""The virtual environments of the peers: made once, found, or said to be missing and why.

Run: python benchmarks/environments.py [NAME ...]. `environments/NAME.txt` are the requirements, `.envs/NAME` the result.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS, ENVIRONMENTS = HERE / "environments", HERE / ".envs"
OURS = "ours"


def names() -> tuple[str, ...]:
    """Every environment there are requirements for."""
    return tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


def python_of(name: str) -> str | None:
    """The interpreter of an environment, None when it is not there; `ours` is the one that runs this."""
    if name == OURS:
        return sys.executable
    path = ENVIRONMENTS / name / "bin" / "python"
    return str(path) if path.exists() and not (ENVIRONMENTS / f"{name}.failed").exists() else None


def why_missing(name: str) -> str:
    """What stopped the installation of an environment, in a line."""
    failed = ENVIRONMENTS / f"{name}.failed"
    return failed.read_text().strip() if failed.exists() else "not installed (`make bench-envs`)"


def install(name: str) -> bool:
    """Make one environment anew; whether that worked. What went wrong is kept in `.envs/NAME.failed`."""
    folder, failed = ENVIRONMENTS / name, ENVIRONMENTS / f"{name}.failed"
    shutil.rmtree(folder, ignore_errors=True)
    failed.unlink(missing_ok=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "pip"), "install", "--quiet", "--requirement", str(REQUIREMENTS / f"{name}.txt")],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failed.write_text((errors or [f"{command[0]} ended with status {done.returncode}"])[-1] + "\n")
            return False
    return True


def main() -> None:
    """Install what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(names()))
    for name in parser.parse_args().names:
        if python_of(name) is None:
            print(f"{name}: {'installed' if install(name) else why_missing(name)}", flush=True)
        else:
            print(f"{name}: is there", flush=True)


if __name__ == "__main__":
    main()
