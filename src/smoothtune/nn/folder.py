"""The model folder: config.toml, encoder.json, labels.json, model.safetensors, tokenizer.json, provenance.json.

Everything a model needs to answer, and nothing that runs. Knows nothing of training.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from smoothtune.config.experiment import ModelConfig
from smoothtune.config.problems import problems_of
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.files import folder_aside
from smoothtune.nn.building import build_model
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.pretrained import build_encoder

FORMAT = 1
Labels = Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model folder holds, read."""

    model: MultiTaskModel
    config: ModelConfig
    labels: dict[str, tuple[str, ...] | None]
    provenance: dict[str, Any]


def write_model_folder(
    folder: Path,
    model: MultiTaskModel,
    config: ModelConfig,
    labels: Labels,
    *,
    tokenizer: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write the folder whole or not at all, replacing an older one. `tokenizer` is the text of tokenizer.json.

    Raises `UsageError` while a LoRA is merged: the encoder's weights are not its own then.
    """
    if model.merged is not None:
        raise UsageError(
            f"{folder}: the LoRA of task {model.merged!r} is merged into the encoder; unmerge it, then write"
        )
    with folder_aside(folder) as aside:
        table = config.model_dump(mode="json", exclude_none=True)
        for part in ("lora", "adapters"):  # models without any stay readable for releases that know of none
            if not table[part]:
                del table[part]
        (aside / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
        _write_json(aside / "encoder.json", model.encoder.architecture)
        _write_json(aside / "labels.json", labels)
        _write_json(aside / "provenance.json", provenance)
        (aside / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
        save_file(state, aside / "model.safetensors", metadata={"format": str(FORMAT)})


def read_model_folder(folder: Path) -> ModelFolder:
    """The model of a folder, in eval mode. Raises `ModelFileError` naming the file that is missing or does not fit."""
    if not (folder / "config.toml").is_file():
        raise ModelFileError(f"{folder}: is not a model folder (it has no config.toml); give RUN/model or a run folder")
    if not (folder / "tokenizer.json").is_file():
        raise ModelFileError(f"{folder / 'tokenizer.json'}: is missing; the folder is not complete")
    config = _read_config(folder / "config.toml")
    labels = _read_labels(folder / "labels.json", config)
    model = _build_model(folder, config, labels)
    _load_weights(folder / "model.safetensors", model)
    return ModelFolder(model.eval(), config, labels, read_json(folder / "provenance.json"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises `ModelFileError` naming the file when it is missing or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path}: is missing; the folder is not complete") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: holds no JSON object")
    return found


_DRAWING = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of weights that a file is about to replace: it takes longer than reading them.

    The meta device would too, but its drawing functions load a second's worth of torch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _build_model(folder: Path, config: ModelConfig, labels: Labels) -> MultiTaskModel:
    """The model before its weights are read."""
    encoder = _build_encoder(folder / "encoder.json", config)
    try:
        with _Undrawn():
            return build_model(
                encoder, config.tasks, config.trunks, labels, seed=0, lora=config.lora, adapters=config.adapters
            )
    except KeyError as error:
        raise ModelFileError(f"{folder / 'config.toml'}: a task names the trunk {error}, which is not there") from None


def _build_encoder(path: Path, config: ModelConfig) -> Encoder:
    architecture = read_json(path)
    try:
        with _Undrawn():
            return build_encoder(architecture, config.encoder)
    except (ModelFileError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: no encoder can be built from it: {error}") from None


def _load_weights(path: Path, model: MultiTaskModel) -> None:
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ModelFileError(f"{path}: is missing; the folder is not complete") from None
    except SafetensorError as error:
        raise ModelFileError(f"{path}: is not a whole safetensors file ({error}); copy the folder again") from None
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(reasons[1:2] or reasons)[:300]
        raise ModelFileError(f"{path}: does not fit config.toml, encoder.json and labels.json: {reason}") from None


def _read_config(path: Path) -> ModelConfig:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read as TOML: {error}") from None
    if table.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: is of format {table.get('format')!r}, this smoothtune reads format {FORMAT}; "
            "use the release that wrote it"
        )
    try:
        return _checked(path, ModelConfig.model_validate(table))
    except ValidationError as error:
        problems = "; ".join(str(problem) for problem in problems_of(error, ModelConfig))
        raise ModelFileError(f"{path}: {problems}") from None


def _checked(path: Path, config: ModelConfig) -> ModelConfig:
    """`config`, if adaptations are those of its tasks."""
    for part, named in (("lora", config.lora), ("adapters", config.adapters)):
        strange = [task for task in named if task not in config.tasks]
        if strange:
            tasks = ", ".join(config.tasks)
            raise ModelFileError(f"{path}: {part} names {strange[0]!r}, which is none of its tasks ({tasks})")
    return config


def _read_labels(path: Path, config: ModelConfig) -> dict[str, tuple[str, ...] | None]:
    found = read_json(path)
    labels: dict[str, tuple[str, ...] | None] = {}
    for name, task in config.tasks.items():
        entry: list[str] | None = found.get(name)
        if task.kind == "regression":
            labels[name] = None
            continue
        if not _are_labels(entry, exactly=2 if task.kind == "binary" else None):
            number = "two" if task.kind == "binary" else "at least two"
            raise ModelFileError(f"{path}: task {name} needs a list of {number} different labels, got {entry!r}")
        labels[name] = tuple(entry or ())
    return labels


def _are_labels(entry: Any, *, exactly: int | None) -> bool:
    if not isinstance(entry, list) or not all(isinstance(label, str) for label in entry):
        return False
    return len(set(entry)) == len(entry) and (len(entry) >= 2 if exactly is None else len(entry) == exactly)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
