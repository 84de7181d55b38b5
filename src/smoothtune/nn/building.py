"""A model with fresh trunks, outputs and adaptations, as a configuration describes it. Knows nothing of what a pass computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.experiment import kind_of, trunk_name, trunk_options
from smoothtune.config.tasks import AnyShape
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.fresh import fresh_adapters, fresh_lora
from smoothtune.nn.model import MultiTaskModel, TaskNode
from smoothtune.registry import resolve
from smoothtune.runtime.random import GLOBAL_GENERATORS, stream_number


def describe_tasks(
    shapes: Mapping[str, AnyShape], trunks: Mapping[str, Any], labels: Mapping[str, tuple[str, ...] | None]
) -> dict[str, TaskNode]:
    """The model's view of every task; `labels` are the fitted or given label sets, None for regression."""
    return {
        name: TaskNode(
            kind=shape.kind,
            trunk=trunk_name(name, shape),
            reads=trunk_options(name, shape, dict(trunks)).input,
            classes=len(labels[name] or ()),
            value_range=shape.range if shape.kind == "regression" else None,
        )
        for name, shape in shapes.items()
    }


def build_model(
    encoder: Encoder,
    shapes: Mapping[str, AnyShape],
    trunks: Mapping[str, Any],
    labels: Mapping[str, tuple[str, ...] | None],
    *,
    seed: int,
    lora: Mapping[str, LoraOptions] = MappingProxyType({}),
    adapters: Mapping[str, AdapterOptions] = MappingProxyType({}),
) -> MultiTaskModel:
    """A model with fresh trunks and outputs; each part is drawn from a stream named by (seed, part).

    `lora` and `adapters` are those of the tasks that have them. Raises `UsageError` where the encoder cannot have them.
    """
    nodes = describe_tasks(shapes, trunks, labels)
    options = {node.trunk: trunk_options(name, shapes[name], dict(trunks)) for name, node in nodes.items()}
    built: dict[str, nn.Module] = {}
    for name, option in options.items():
        with _fresh(seed, "trunks", name):
            built[name] = resolve("trunks", kind_of(option))(option, encoder.width)
    outputs: dict[str, nn.Module] = {}
    for name, node in nodes.items():
        with _fresh(seed, "outputs", name):
            outputs[name] = resolve("outputs", options[node.trunk].output)(
                built[node.trunk].features,
                node.classes if node.kind == "classification" else 1,
                kind=node.kind,
                value_range=node.value_range,
                squash=bool(getattr(shapes[name], "squash", False)),
            )
    return MultiTaskModel(
        encoder,
        built,
        outputs,
        nodes,
        lora=fresh_lora(encoder, lora, seed=seed),
        adapters=fresh_adapters(encoder, adapters, seed=seed),
    )


@contextmanager
def _fresh(seed: int, *part: str) -> Iterator[None]:
    """Initialisation draws inside come from the stream of a part; the global generator is put back."""
    with GLOBAL_GENERATORS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_number(seed, "initial", *part))
        yield
