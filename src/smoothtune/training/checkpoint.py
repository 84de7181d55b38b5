"""Checkpoints of a run: each a folder of two files and their sums, written whole or not at all; the last two are kept.

`checkpoints/NUMBER/` holds `state.json`, `tensors.safetensors` and `SHA256SUMS` (as `sha256sum` writes it). Knows nothing
of what a state means.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smoothtune.bounded import UnreadableError, check_plain, parse_json, read_text, reason_of
from smoothtune.errors import ModelFileError, Problem, UsageError
from smoothtune.files import folder_aside
from smoothtune.tensor_file import save_tensors
from smoothtune.training.state import State, put_together, shown, taken_apart

FORMAT = 1
KEPT = 2
_STATE, _TENSORS, _SUMS = "state.json", "tensors.safetensors", "SHA256SUMS"
_FILES = (_STATE, _TENSORS)
_MOST_SUMS = 4096  # bytes; two lines need fewer than 200
_MOST_STATE = 1 << 27


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read of one: where it was, its `format`, and the state."""

    folder: Path
    format: int
    state: State


class Checkpoints:
    """The checkpoints below one folder, numbered from 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbered(self) -> list[Path]:
        """The folders of all that were written to their end, oldest first. Raises `UsageError` where they may not be read."""
        try:
            if not self.folder.is_dir():
                return []
            found = [path for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir()]
        except PermissionError as error:
            raise _not_allowed(self.folder, error) from None
        return sorted(found, key=lambda path: int(path.name))

    def write(self, state: State) -> Path:
        """Write one more, then remove all but the last two. Raises `WriteError`: those before are untouched then."""
        before = self.numbered()
        number = int(before[-1].name) + 1 if before else 1
        target = self.folder / f"{number:06d}"
        with folder_aside(target) as aside:
            _write(aside, state)
        for old in before[: 1 - KEPT]:
            _remove(old)
        return target

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The last one that is whole, None where there is none, and what is wrong with those after it.

        Raises `UsageError` for one that may not be read: it may be whole.
        """
        wrong: list[str] = []
        for folder in reversed(self.numbered()):
            try:
                return read_checkpoint(folder), wrong
            except ModelFileError as error:
                wrong.append(str(error))
        return None, wrong

    def drop_after(self, kept: Path | None) -> None:
        """Remove what comes after `kept`, or everything: it is damaged, or of a run that begins again.

        What holds anything else than a checkpoint's files is not ours and stays, as does a link to another place.
        """
        for folder in self.numbered():
            if kept is None or int(folder.name) > int(kept.name):
                _remove(folder)
        if kept is None and self.folder.is_dir() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _remove(folder: Path) -> None:
    if not folder.is_symlink() and {file.name for file in folder.iterdir()} <= {*_FILES, _SUMS}:
        shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of a folder. Raises `ModelFileError` naming the file that is missing, damaged or of another format."""
    _compare_sums(folder)
    path = folder / _STATE
    try:
        found = parse_json(read_text(path, inside=folder, most=_MOST_STATE))
        state, written = found["state"], found["format"]
        if not isinstance(state, dict) or type(written) is not int:
            raise TypeError(f"got the format {shown(written)} and as state {shown(state)}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _no_state(path, error) from None
    try:
        whole = _with_tensors(folder, state)
    except ModelFileError:
        if written == FORMAT:
            raise
        whole = {}  # of another release: whoever reads on is told what is missing
    return Checkpoint(folder, written, whole)


def _with_tensors(folder: Path, plain: Any) -> State:
    path = folder / _TENSORS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelFileError(f"{path}: is not a whole safetensors file ({error})") from None
    try:
        state: State = put_together(plain, tensors)
    except KeyError as error:
        raise ModelFileError(f"{path}: has no tensor {error}") from None
    except ValueError as error:
        raise _no_state(folder / _STATE, error) from None
    unnamed = tensors.keys() - taken_apart(state)[1].keys()
    if unnamed:
        raise ModelFileError(f"{path}: has the tensor {min(unnamed)!r}, which {_STATE} does not name")
    return state


def _no_state(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(str(Problem(str(path), f"is no state of a run ({type(error).__name__}: {reason_of(error)})")))


def _write(folder: Path, state: State) -> None:
    plain, tensors = taken_apart(state)
    save_tensors(_apart(tensors), folder / _TENSORS)
    text = json.dumps({"format": FORMAT, "state": plain}, indent=1)
    (folder / _STATE).write_text(text + "\n", encoding="utf-8")
    (folder / _SUMS).write_text(_sums(folder), encoding="utf-8")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that share memory with one before copied: the format refuses such."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _sums(folder: Path) -> str:
    lines = []
    for name in _FILES:
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def _check_files(folder: Path) -> None:
    for name in (_SUMS, *_FILES):
        try:
            check_plain(folder / name, inside=folder)
            with (folder / name).open("rb"):
                pass
        except UnreadableError as error:
            raise ModelFileError(f"{folder / name}: {error}") from None
        except PermissionError as error:
            raise _not_allowed(folder / name, error) from None
        except OSError as error:
            raise ModelFileError(f"{folder / name}: cannot be read: {error.strerror}") from None


def _not_allowed(path: Path, error: PermissionError) -> UsageError:
    """It may be whole: to go on from the one before it, and remove it, is not ours to decide."""
    return UsageError(f"{path}: cannot be read: {error.strerror}; give the user of this process the right to read it")


def _compare_sums(folder: Path) -> None:
    _check_files(folder)
    try:
        kept, found = read_text(folder / _SUMS, most=_MOST_SUMS), _sums(folder)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder / _SUMS}: is damaged: {reason_of(error)}") from None
    if kept != found:
        wrong = [name for name, line in zip(_FILES, found.splitlines(), strict=True) if line not in kept.splitlines()]
        raise ModelFileError(f"{folder / (wrong or [_SUMS])[0]}: is damaged: its SHA-256 is not the one in {_SUMS}")
