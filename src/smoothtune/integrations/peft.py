"""A task's LoRA as a folder of `peft`, beside its encoder as a folder of `transformers`.

Files alone: it knows the layout that `peft.PeftModel.from_pretrained` reads, and needs no `peft`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smoothtune.errors import UsageError
from smoothtune.files import folder_aside
from smoothtune.inference.model import Model
from smoothtune.integrations.tokenizer_config import tokenizer_config
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.lora import Lora
from smoothtune.tensor_file import save_tensors

_PREFIX = "base_model.model"
_SEGMENTS = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Exported:
    """Where an export is: `encoder` for `AutoModel.from_pretrained`, `lora` for `PeftModel.from_pretrained`.

    `without_adapters`: the task has bottleneck adapters too, which that layout has no place for, so the two folders alone do
    not answer as the model does.
    """

    encoder: Path
    lora: Path
    without_adapters: bool


def export(model: Model, task: str, folder: str | Path) -> Exported:
    """Write `folder`/encoder and `folder`/lora, which gives the token states of the task's pass without adapters.

    Weights keep transformers' names; `AutoTokenizer` reads texts as the model does. The LoRA names its encoder by an
    absolute path: where the folders were moved, give the encoder to `PeftModel.from_pretrained`. Raises `UsageError` for
    a task that has no LoRA or is unknown, while a LoRA is merged, and for a folder that exists.
    """
    network, target = model.network, Path(folder)
    model.kind(task)
    if network.merged is not None:
        raise UsageError(
            f"export: the LoRA of task {network.merged!r} is merged into the encoder; export outside `merged`"
        )
    if task not in network.lora:
        raise UsageError(f"export: task {task!r} has no LoRA; tasks that have: {', '.join(network.lora) or 'none'}")
    if target.exists():
        raise UsageError(f"{target}: exists already; an export never overwrites: remove it or give another folder")
    with folder_aside(target) as aside:
        _write_encoder(aside / "encoder", network.encoder, model)
        _write_lora(aside / "lora", network.encoder, network.lora[task], base=(target / "encoder").absolute())
    return Exported(target / "encoder", target / "lora", task in network.adapters)


def _write_encoder(folder: Path, encoder: Encoder, model: Model) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", {"model_type": "bert", **encoder.architecture})
    state = encoder.hub_state()
    _write_state(folder / "model.safetensors", state)
    model.tokenizer.save(str(folder / "tokenizer.json"))
    described = tokenizer_config(
        model.tokenizer,
        pad_id=model.pad_id,
        max_length=model.config.encoder.max_length,
        segments=_SEGMENTS in state and len(state[_SEGMENTS]) > 1,
    )
    _write_json(folder / "tokenizer_config.json", described)


def _write_lora(folder: Path, encoder: Encoder, lora: Lora, *, base: Path) -> None:
    folder.mkdir()
    paths, state = [], {}
    for layer in range(encoder.depth):
        for target in lora.options.targets:
            path, part = encoder.hub_path(layer, target), lora.at(layer, target)
            assert part is not None
            paths.append(path)
            state[f"{_PREFIX}.{path}.lora_A.weight"] = part.a.detach()
            state[f"{_PREFIX}.{path}.lora_B.weight"] = part.b.detach()
    _write_json(folder / "adapter_config.json", _configuration(lora, paths, base))
    _write_state(folder / "adapter_model.safetensors", state)


def _configuration(lora: Lora, paths: list[str], base: Path) -> dict[str, Any]:
    """Whole paths as targets: `output.dense` alone would also mean `attention.output.dense`."""
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": str(base),
        "r": lora.options.rank,
        "lora_alpha": lora.options.alpha,
        "lora_dropout": lora.options.dropout,
        "target_modules": paths,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _write_state(path: Path, state: dict[str, Tensor]) -> None:
    save_tensors(state, path, {"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
