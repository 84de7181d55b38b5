"""A run: the folder an experiment leaves, and how its files are written and read."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoothtune.bounded import parse_toml, read_text, reason_of
from smoothtune.config.experiment import Experiment
from smoothtune.config.loading import to_toml, validated_run
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.files import WriteError, sync, write_text
from smoothtune.nn.folder import read_json
from smoothtune.system import NO_LINK, cores
from smoothtune.workflow.run_lock import LOCK

if TYPE_CHECKING:
    from smoothtune.inference.model import Model

EXPERIMENT, METRICS, EVALUATION, STATE, CHECK, RECIPE, PROBE, MODEL, CHECKPOINTS, STAGES = (
    "experiment.toml",
    "metrics.jsonl",
    "evaluation.json",
    "run.json",
    "check.json",
    "recipe.json",
    "probe",
    "model",
    "checkpoints",
    "stages",
)

OF_A_RUN = frozenset({
    *(EXPERIMENT, METRICS, EVALUATION, STATE, CHECK, RECIPE, PROBE, MODEL, CHECKPOINTS, STAGES, LOCK),
    *("config.toml", "encoder.json", "labels.json", "model.safetensors", "tokenizer.json", "provenance.json"),
})  # fmt: skip
"""What a run folder, or a model folder, consists of; whatever else lies there is the user's."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished or interrupted run.

    `evaluation` is what `smoothtune evaluate --json` prints for the dev data; None when the run was interrupted.
    """

    folder: Path
    experiment: Experiment
    evaluation: dict[str, Any] | None
    interrupted: bool = False

    def model(self) -> Model:
        """The trained model."""
        from smoothtune.inference.model import Model

        return Model.load(self.folder)


def new_run_folder(run_dir: str | Path | None, name: str, *, empty: bool = False) -> Path:
    """Create the folder of a new run, by default `runs/NAME-DATE`. Raises `UsageError` when it exists.

    With `empty` one that holds no more than a lock, and what comes before `experiment.toml`, is taken: a process was ended
    before the run began.
    """
    if run_dir is not None:
        check_free(Path(run_dir), empty=empty)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{name.replace('/', '-').strip('.')}-{stamp}" if run_dir is None else Path(run_dir)
    try:
        folder.mkdir(parents=True)
        sync(folder.parent)
    except FileExistsError:
        if run_dir is None or not empty:
            raise _already_there(folder) from None
    except OSError as error:
        raise WriteError(f"{folder}: cannot be created: {error.strerror}") from None
    return folder


def check_free(folder: Path, *, empty: bool) -> None:
    """Raise `UsageError` where a new run cannot have the folder; see `new_run_folder`."""
    if not (folder.exists() or folder.is_symlink()):
        return
    if not empty:
        raise _already_there(folder)
    if not folder.is_dir() or not all(_before_all(path.name) for path in folder.iterdir()):
        raise UsageError(f"{folder}: is there and is not a run folder (it has no {EXPERIMENT}); give another --run-dir")


def _already_there(folder: Path) -> UsageError:
    return UsageError(
        f"{folder}: exists already; a run never overwrites one: give another --run-dir, or --resume to go on with it"
    )


def _before_all(name: str) -> bool:
    return name in (LOCK, CHECK, RECIPE) or (name.startswith(".") and name.endswith(".part"))


def finished_run(folder: Path, experiment: Experiment) -> Run | None:
    """The run of a folder if it came to its end, else None: its state, its evaluation and its model are there."""
    if not (folder / STATE).is_file() or not (folder / EVALUATION).is_file():
        return None
    state = read_json(folder / STATE)
    if state.get("interrupted") is not False or state.get("failure") is not None:
        return None
    return Run(folder, experiment, read_json(folder / EVALUATION))


def check_own(folder: Path) -> None:
    """Raise `ModelFileError` where something that a run writes in its folder is a link: it would write elsewhere."""
    for name in (METRICS, CHECKPOINTS, STAGES, PROBE, RECIPE, LOCK):
        if (folder / name).is_symlink():
            raise ModelFileError(
                f"{folder / name}: is a link; a run writes inside its own folder alone: put what it leads to in its place"
            )


def _no_link(name: str, flags: int) -> int:
    return os.open(name, flags | NO_LINK, 0o666)


class RunFiles:
    """Writes the files of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_experiment(self, experiment: Experiment) -> None:
        """The resolved experiment."""
        write_text(self.folder / EXPERIMENT, to_toml(experiment))

    def add_metrics(self, line: dict[str, Any]) -> None:
        """One more line of metrics.jsonl, on disk when this returns."""
        new = not (self.folder / METRICS).exists()
        try:
            with open(self.folder / METRICS, "a", encoding="utf-8", opener=_no_link) as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.folder)
        except OSError as error:
            raise WriteError(f"{self.folder / METRICS}: cannot be written: {error.strerror}") from None

    def remove_leftovers(self) -> None:
        """Take away what a process was writing when it was ended: such files and folders never got their names."""
        for place in (
            self.folder,
            *(path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink()),
        ):
            for path in (*place.glob(".*.part"), *place.glob(".*.old")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def remove_results(self) -> None:
        """Take away what only a run that begins again would write anew: metrics, state and evaluation."""
        for name in (METRICS, STATE, EVALUATION):
            (self.folder / name).unlink(missing_ok=True)

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.folder / METRICS
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Leave the first `size` bytes of metrics.jsonl. Raises `ModelFileError` where there are fewer, or no line ends there."""
        path = self.folder / METRICS
        kept = path.read_bytes() if path.exists() else b""
        if len(kept) < size:
            raise ModelFileError(f"{path}: has {len(kept)} bytes, the checkpoint was written after {size}; put it back")
        if size and kept[size - 1 : size] != b"\n":
            raise ModelFileError(
                f"{path}: no line ends at byte {size}, after which the checkpoint was written; put it back"
            )
        if len(kept) > size:
            write_text(path, kept[:size].decode("utf-8", errors="replace"))

    def write_json(self, name: str, value: object) -> None:
        """A JSON file of the run."""
        write_text(self.folder / name, json.dumps(value, indent=2) + "\n")


def read_experiment(folder: Path) -> Experiment:
    """The resolved experiment of a run. Raises `ModelFileError` when the folder is no run."""
    if not folder.exists():
        raise ModelFileError(f"{folder}: there is no such folder; give the folder of a run")
    path = folder / EXPERIMENT
    try:
        table = parse_toml(read_text(path, inside=folder))
    except FileNotFoundError:
        raise ModelFileError(f"{folder}: is not a run folder (it has no {EXPERIMENT})") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read: {reason_of(error)}") from None
    return validated_run(table, f"{path}: is damaged or of another release:")


def machine(device: str) -> dict[str, Any]:
    """Where and with what a run was made on a kind of `device`, cpu or cuda."""
    from smoothtune.runtime.kernels.building import told

    packages = ("smoothtune", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "kernels": told(device),
        "packages": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
