"""The model folder: config.toml, encoder.json, labels.json, model.safetensors, tokenizer.json, provenance.json.

Everything a model needs to answer, and nothing that runs. Knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from smoothtune.bounded import FOREIGN, UnreadableError, check_plain, parse_json, parse_toml, read_text, reason_of
from smoothtune.config.experiment import ModelConfig, trunk_options
from smoothtune.config.problems import problems_of
from smoothtune.errors import ConfigurationError, ModelFileError, UsageError
from smoothtune.files import folder_aside
from smoothtune.nn.building import build_model
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.pretrained import build_encoder
from smoothtune.nn.room import Room, Within
from smoothtune.nn.weights_file import tensors_of
from smoothtune.tensor_file import save_tensors

FORMAT = 1
_PROBLEMS_SHOWN = 20
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
            f"{folder}: the LoRA of task {model.merged!r} is merged into the encoder; write outside `merged`"
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
        save_tensors(model.state_dict(), aside / "model.safetensors", {"format": str(FORMAT)})


def read_model_folder(folder: Path) -> ModelFolder:
    """The model of a folder, in eval mode. Raises `ModelFileError` naming the file that is missing or does not fit."""
    if not folder.exists():
        raise ModelFileError(f"{folder}: there is no such folder; give a run folder or a model folder")
    if not (folder / "config.toml").is_file():
        raise ModelFileError(f"{folder}: is not a model folder (it has no config.toml); give RUN/model or a run folder")
    _check_tokenizer(folder / "tokenizer.json")
    config = _read_config(folder / "config.toml")
    labels = _read_labels(folder / "labels.json", config)
    provenance = read_json(folder / "provenance.json")
    weights = _read_weights(folder / "model.safetensors")
    model = _build_model(folder, config, labels, Room.for_weights(weights))
    _take(folder / "model.safetensors", weights, model)
    return ModelFolder(model.eval(), config, labels, provenance)


def read_json(path: Path, *, finite: bool = False) -> dict[str, Any]:
    """The JSON object of a file; NaN is a number unless `finite`.

    Raises `ModelFileError` naming the file when it is missing or is none.
    """
    try:
        found = parse_json(read_text(path, inside=path.parent), finite=finite)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: is missing; the folder is not complete") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: holds no JSON object")
    return found


def _check_tokenizer(path: Path) -> None:
    try:
        check_plain(path, inside=path.parent)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: is missing; the folder is not complete") from None
    except (OSError, UnreadableError) as error:
        raise ModelFileError(f"{path}: {error}") from None


_DRAWING = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of weights that a file is about to replace: it takes longer than reading them.

    The meta device would too, but its drawing functions load a second's worth of torch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _build_model(folder: Path, config: ModelConfig, labels: Labels, room: Room) -> MultiTaskModel:
    """The model before it has its weights, which leave so much `room`."""
    encoder = _build_encoder(folder / "encoder.json", config, room)
    try:
        with _Undrawn(), Within(room):
            return build_model(
                encoder, config.tasks, config.trunks, labels, seed=0, lora=config.lora, adapters=config.adapters
            )
    except (ConfigurationError, UsageError, *FOREIGN) as error:
        raise ModelFileError(f"{folder / 'config.toml'}: no model can be built from it: {reason_of(error)}") from None


def _build_encoder(path: Path, config: ModelConfig, room: Room) -> Encoder:
    architecture = read_json(path, finite=True)
    try:
        with _Undrawn():
            return build_encoder(architecture, config.encoder, room=room)
    except ModelFileError as error:
        reason = reason_of(error).removeprefix("config.json: ")
        raise ModelFileError(f"{path}: no encoder can be built from it: {reason}") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return tensors_of(path)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: is missing; the folder is not complete") from None
    except (OSError, UnreadableError) as error:
        raise ModelFileError(f"{path}: {error}; copy the folder again") from None


def _take(path: Path, weights: Mapping[str, Tensor], model: MultiTaskModel) -> None:
    """Give the model its weights."""
    misfit = f"{path}: does not fit config.toml, encoder.json and labels.json"
    for name, tensor in model.state_dict().items():
        if name in weights and weights[name].dtype != tensor.dtype:
            raise ModelFileError(f"{misfit}: {name} is {weights[name].dtype}, expected {tensor.dtype}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(reasons[1:2] or reasons)[:300]
        raise ModelFileError(f"{misfit}: {reason}") from None


def _read_config(path: Path) -> ModelConfig:
    try:
        table = parse_toml(read_text(path, inside=path.parent))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read as TOML: {error}") from None
    if table.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: is of format {repr(table.get('format'))[:80]}, this smoothtune reads format {FORMAT}; "
            "use the release that wrote it"
        )
    if isinstance(table.get("encoder"), dict):
        table["encoder"].setdefault("special_tokens", "tokens")  # a model without the key is older than it
    try:
        return _checked(path, ModelConfig.model_validate(table))
    except ValidationError as error:
        problems = "; ".join(str(problem) for problem in problems_of(error, ModelConfig)[:_PROBLEMS_SHOWN])
        raise ModelFileError(f"{path}: {problems}") from None


def _checked(path: Path, config: ModelConfig) -> ModelConfig:
    """`config`, if there are tasks, their trunks are there and read as many texts, and adaptations are theirs."""
    if not config.tasks:
        raise ModelFileError(f"{path}: has no tasks; copy the folder again")
    for name, task in config.tasks.items():
        if task.trunk is not None and task.trunk not in config.trunks:
            raise ModelFileError(f"{path}: a task names the trunk {task.trunk!r}, which is not there")
        reads = trunk_options(name, task, config.trunks).input
        if (reads == "single") != (len(task.text) == 1):
            raise ModelFileError(f"{path}: task {name} has {len(task.text)} texts, but its trunk is for {reads} input")
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
            raise ModelFileError(
                f"{path}: task {name} needs a list of {number} different labels, got {repr(entry)[:200]}"
            )
        labels[name] = tuple(entry or ())
    return labels


def _are_labels(entry: Any, *, exactly: int | None) -> bool:
    if not isinstance(entry, list) or not all(isinstance(label, str) for label in entry):
        return False
    return len(set(entry)) == len(entry) and (len(entry) >= 2 if exactly is None else len(entry) == exactly)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
