"""A small model whose tasks have LoRA and adapters of their own, shared by the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.experiment import ModelConfig
from smoothtune.config.tasks import shape_of
from smoothtune.nn.building import build_model
from smoothtune.nn.folder import write_model_folder
from smoothtune.nn.model import MultiTaskModel
from tests.small_data import TASKS, Prepared, prepare, table

LORA = LoraOptions(rank=2, alpha=3.0)
ADAPTERS = AdapterOptions(size=4)
# mood has both, same LoRA alone, near adapters alone
MIXED_LORA = {"mood": LORA, "same": LoraOptions(rank=3, alpha=3.0, targets=("key", "up", "down", "output"))}
MIXED_ADAPTERS = {"mood": ADAPTERS, "near": AdapterOptions(size=3)}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": dict.fromkeys(TASKS, LORA)},
    "adapters": {"adapters": dict.fromkeys(TASKS, ADAPTERS)},
    "both": {"lora": dict.fromkeys(TASKS, LORA), "adapters": dict.fromkeys(TASKS, ADAPTERS)},
}


def adapted(
    encoder: Path,
    data: Path,
    cache: Path,
    *,
    implementation: str = "native",
    lora: Mapping[str, LoraOptions] | None = None,
    adapters: Mapping[str, AdapterOptions] | None = None,
    dropout: float = 0.0,
    **stage: Any,
) -> Prepared:
    """The three tasks with these adaptations; `dropout` is that of the encoder."""
    wanted = table(encoder, **stage)
    wanted["encoder"] |= {"implementation": implementation, "dropout": dropout, "attention_dropout": dropout}
    prepared = prepare(wanted, data, cache)
    experiment = prepared.experiment
    prepared.model = build_model(
        prepared.model.encoder,
        {name: shape_of(task) for name, task in experiment.tasks.items()},
        experiment.trunks,
        prepared.labels,
        seed=experiment.seed,
        lora=lora or {},
        adapters=adapters or {},
    )
    return prepared


@torch.no_grad()
def stir(model: MultiTaskModel, seed: int = 5) -> None:
    """Adaptations as if they had been trained: fresh ones change next to nothing."""
    draws = torch.Generator().manual_seed(seed)
    for part in (*model.lora.parameters(), *model.adapters.parameters()):
        part.add_(0.3 * torch.randn(part.shape, generator=draws))


def write(prepared: Prepared, folder: Path, **adaptations: Any) -> Path:
    """The model folder of a prepared model with these adaptations."""
    experiment = prepared.experiment
    config = ModelConfig(
        encoder=experiment.encoder,
        tasks={name: shape_of(task) for name, task in experiment.tasks.items()},
        trunks=experiment.trunks,
        **adaptations,
    )
    write_model_folder(
        folder,
        prepared.model,
        config,
        prepared.labels,
        tokenizer=prepared.tokenizer,
        provenance={"precision": "float32"},
    )
    return folder
