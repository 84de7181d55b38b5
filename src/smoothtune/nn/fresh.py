"""Fresh LoRA and adapters for the tasks that have them; every part is drawn from a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from smoothtune.config.adaptations import AdapterOptions, LoraOptions, Target
from smoothtune.nn.adapters import Adapters
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.lora import Lora
from smoothtune.runtime.random import GLOBAL_GENERATORS, torch_stream


def fresh_lora(encoder: Encoder, options: Mapping[str, LoraOptions], *, seed: int) -> dict[str, Lora]:
    """LoRA by task. Raises `UsageError` where the encoder has no products to change."""
    return {
        task: Lora(
            {target: _shape(encoder, target) for target in chosen.targets},
            encoder.depth,
            chosen,
            partial(torch_stream, seed, "initial", "lora", task),
        )
        for task, chosen in options.items()
    }


def fresh_adapters(encoder: Encoder, options: Mapping[str, AdapterOptions], *, seed: int) -> dict[str, Adapters]:
    """Adapters by task. Raises `UsageError` where the encoder has no sub-layers to put them after."""
    if not options:
        return {}
    encoder.hub_path(0, "output")
    # Linear layers draw, before they are drawn again from their streams.
    with GLOBAL_GENERATORS, torch.random.fork_rng(devices=[]):
        return {
            task: Adapters(
                encoder.width, encoder.depth, chosen, partial(torch_stream, seed, "initial", "adapters", task)
            )
            for task, chosen in options.items()
        }


def _shape(encoder: Encoder, target: Target) -> tuple[int, int]:
    features, inputs = encoder.weight_of(0, target).shape
    return features, inputs
