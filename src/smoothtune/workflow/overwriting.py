"""Refuses an output that would take the place of a file that the command reads. Knows nothing of what the files hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from smoothtune.config.experiment import Experiment
from smoothtune.errors import UsageError
from smoothtune.workflow.run import OF_A_RUN

_ADVICE = "give another file"
_STDIN, _STDOUT = 0, 1


def check_outputs(
    outputs: Mapping[str, Path | None], source: Path | None, run: Path, data: Collection[Path] = ()
) -> None:
    """Raise `UsageError` where an output, by option, is the `source` (/dev/stdin: stdin), part of the `run`, or another output.

    Nor may it be one of the files of `data` that the run read, or something else than a plain file. Files are compared by
    identity, so that links count; without an `--out` the answers go to stdout.
    """
    files = {option: path for option, path in outputs.items() if path is not None}
    for option, path in files.items():
        if path.is_dir():
            raise UsageError(f"{option} {path}: is a folder; {_ADVICE}")
        if path.exists() and (not path.is_file() or _is_open(path, _STDOUT)):
            raise UsageError(
                f"{option} {path}: is a device, a pipe or stdout, not a plain file; leave out --out for stdout"
            )
        if _is_source(path, source):
            raise UsageError(
                f"{option} {path}: is the input, or lies inside it: the answers would destroy it; {_ADVICE}"
            )
        if _of_run(path, run):
            raise UsageError(f"{option} {path}: is a file of the run {run}, which would be overwritten; {_ADVICE}")
        if any(_same(path, file) for file in data):
            raise UsageError(f"{option} {path}: is a data file of the run {run}, which would be overwritten; {_ADVICE}")
    for option, other in _pairs(files):
        if _same(files[option], files[other]):
            raise UsageError(f"{other} {files[other]}: is the file of {option} too; {_ADVICE}")
    if outputs.get("--out") is None and source is not None and _is_open(source, _STDOUT):
        raise UsageError(f"stdout: goes into the input {source}, which would never end; {_ADVICE}")


def data_files(experiment: Experiment) -> list[Path]:
    """The files and folders that an experiment names as data."""
    named = [getattr(task, split) for task in experiment.tasks.values() for split in ("train", "dev", "test")]
    return [Path(name) for name in named if isinstance(name, str) and Path(name).exists()]


def check_run_folder(run_dir: Path, experiment: Experiment) -> None:
    """Raise `UsageError` where a new run would lie inside a folder of data, whose content it would change.

    Paths of `experiment` are absolute.
    """
    for name, task in experiment.tasks.items():
        for split in ("train", "dev", "test"):
            folder = _folder_of(getattr(task, split))
            if folder is not None and Path(os.path.realpath(run_dir)).is_relative_to(os.path.realpath(folder)):
                raise UsageError(
                    f"{run_dir}: lies inside the data of tasks.{name}.{split}, {folder}, which a run would change; "
                    "give another --run-dir"
                )


def _folder_of(source: object) -> Path | None:
    """The folder that a source text names, without its split; None for files and names of the Hub."""
    if not isinstance(source, str):
        return None
    path = source.removeprefix("hf:")
    places = (path, path.rpartition(":")[0]) if path.startswith("/") else ()
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


def _pairs(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    options = list(files)
    return ((one, other) for at, one in enumerate(options) for other in options[at + 1 :])


def _is_source(path: Path, source: Path | None) -> bool:
    if source is None:
        return False
    if source == Path("/dev/stdin"):
        return _is_open(path, _STDIN)
    if source.is_dir():
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(source))
    return _same(path, source)


def _of_run(path: Path, run: Path) -> bool:
    """Whether it is a file that a run, or a model folder, consists of; other files may lie beside them."""
    parts = [place for place in run.iterdir() if place.name in OF_A_RUN] if run.is_dir() else []
    if any(part.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(part)) for part in parts):
        return True
    files = [file for part in parts for file in ((part,) if part.is_file() else part.rglob("*"))]
    return any(_same(path, file) for file in files)


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there
        return os.path.realpath(path) == os.path.realpath(other)


def _is_open(path: Path, number: int) -> bool:
    """Whether the stream `number` is the plain file `path`."""
    try:
        found = os.fstat(number)
        return stat.S_ISREG(found.st_mode) and os.path.samestat(found, path.stat())
    except OSError:
        return False
