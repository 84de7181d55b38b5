"""Checks a release: `python tests/release.py FOLDER`, with `dist/` and `venv/` in it, as `make release-check` has them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import smoothtune

NEEDED = (
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "Makefile",
    "constraints.txt",
    "tests/test_readme.py",
    "docs/recipe.md",
)


def names_of(release: Path) -> tuple[set[str], set[str]]:
    """The files of the sdist, below its folder, and of the wheel."""
    (sdist,), (wheel,) = (release / "dist").glob("*.tar.gz"), (release / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        return packed, set(archive.namelist())


def check_files(release: Path) -> None:
    """Every file of the package is in both, and what builds and tests it is in the sdist."""
    sdist, wheel = names_of(release)
    source = Path(smoothtune.__file__).parent
    files = {
        str(path.relative_to(source.parent))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    missing = [f"sdist: {name}" for name in NEEDED if name not in sdist]
    missing += [f"sdist: src/{name}" for name in sorted(files) if f"src/{name}" not in sdist]
    missing += [f"wheel: {name}" for name in sorted(files) if name not in wheel]
    if missing:
        raise SystemExit("missing in " + "; ".join(missing[:20]))
    print(f"{len(files)} files of the package are in the sdist and in the wheel")


def run(release: Path, *arguments: str, folder: Path, text: str | None = None) -> str:
    """The output of the installed program, away from the sources."""
    program = release.resolve() / "venv" / "bin" / "smoothtune"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(program), *arguments], cwd=folder, env=environment, input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"smoothtune {' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """All checks."""
    release = Path(sys.argv[1])
    check_files(release)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version = run(release, "--version", folder=folder).split()[-1]
        if version != smoothtune.__version__:
            raise SystemExit(f"the installed version is {version}, that of the sources {smoothtune.__version__}")
        run(release, "train", "demo", "--run-dir", "run", "--set", "stages.0.stop.max_steps=5", folder=folder)
        answers = run(
            release, "predict", "run", "--task", "reviews", folder=folder, text="text\nIt broke on day one.\n"
        )
        if len(answers.splitlines()) != 2:
            raise SystemExit(f"predict gave {answers!r}, expected a header and one answer")
    print(f"smoothtune {version} installs, trains and predicts")


if __name__ == "__main__":
    main()
