"""Runs a benchmark that prints its own lines and keeps them as a result, so that the page can show them.

Run: python benchmarks/captured.py NAME [arguments of benchmarks/NAME.py]. Writes results/NAME.json.
"""

from __future__ import annotations

import os
import subprocess
import sys

from environments import HERE
from harness import progress, save, settings_of


def run(name: str, arguments: list[str]) -> list[str]:
    """The lines of stdout, shown as they come. Exits with the script's status when it fails."""
    path = HERE / f"{name}.py"
    if not path.exists():
        raise SystemExit(f"{path}: there is no such benchmark")
    lines = []
    command = [sys.executable, str(path), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            progress(f"{name}: {line.rstrip()}")
            lines.append(line.rstrip())
    if process.returncode:
        raise SystemExit(process.returncode)
    return lines


def main() -> None:
    """Run and save."""
    name, arguments = sys.argv[1], sys.argv[2:]
    save(name, {**settings_of(arguments=arguments), "lines": run(name, arguments)})


if __name__ == "__main__":
    main()
