"""The models that a run keeps of its stages, and whether they still are what it wrote. Knows nothing of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smoothtune.bounded import UnreadableError, check_plain
from smoothtune.config.experiment import Experiment
from smoothtune.errors import ModelFileError
from smoothtune.workflow.run import CHECKPOINTS
from smoothtune.workflow.stage_folders import stage_folder

# All that makes the model; provenance.json tells of times as well.
_FILES = ("config.toml", "encoder.json", "labels.json", "model.safetensors", "tokenizer.json")


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 in hexadecimal, by file, of what makes the model in `folder`. Raises `ModelFileError` naming one not to be read."""
    return {name: _sum_of(folder / name) for name in _FILES}


def check_kept(run: Path, experiment: Experiment, told: Sequence[Mapping[str, Any]]) -> None:
    """Compare the stages that a checkpoint has `told` of, all those before its own, with their folders in `run`.

    Later stages may begin from them, and they are results. Raises `ModelFileError` naming the file that is another one.
    """
    for record, stage in zip(told, experiment.stages, strict=False):
        try:
            _compare(stage_folder(run, stage.name), record.get("files"))
        except ModelFileError as error:
            advice = f"put it back, or remove {run / CHECKPOINTS} to start over"
            raise ModelFileError(f"{error}; the run needs its model after stage {stage.name}: {advice}") from None


def _compare(folder: Path, kept: object) -> None:
    found = sums_of(folder)
    if kept == found:
        return
    wrong = [name for name in _FILES if not isinstance(kept, Mapping) or kept.get(name) != found[name]]
    raise ModelFileError(
        f"{folder / (wrong or _FILES)[0]}: is not as the run wrote it: its SHA-256 is not the one in the checkpoint"
    )


def _sum_of(path: Path) -> str:
    try:
        check_plain(path, inside=path.parent)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnreadableError as error:
        raise ModelFileError(f"{path}: {error}") from None
