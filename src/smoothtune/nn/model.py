"""One encoder, trunks shared by name, one output per task. Knows nothing of files of data or of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.config.experiment import kind_of, trunk_name, trunk_options
from smoothtune.config.tasks import AnyShape
from smoothtune.nn.dropout import name_places
from smoothtune.nn.encoder import Encoder
from smoothtune.registry import resolve
from smoothtune.runtime.random import stream_number
from smoothtune.types import Batch, Input, Kind


class Named(nn.Module):
    """Modules by name; unlike `nn.ModuleDict` it takes any name, also `items` or `type`."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self._modules[name] = module

    def __getitem__(self, name: str) -> Any:
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)


@dataclass(frozen=True, slots=True)
class TaskNode:
    """What the model knows of a task."""

    kind: Kind
    trunk: str
    reads: Input
    classes: int
    value_range: tuple[float, float] | None

    @property
    def span(self) -> float:
        """Width of the range of a regression, else 1."""
        return 1.0 if self.value_range is None else self.value_range[1] - self.value_range[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """Logits of a batch, (B, C) or (B,), and the encoder's layer inputs (R, T, D) when they were asked for."""

    logits: Tensor
    inputs: tuple[Tensor, ...]


class MultiTaskModel(nn.Module):
    """The shared encoder with a trunk and an output for every task (Liu et al., 2019, MT-DNN; Wang, section 3)."""

    def __init__(
        self,
        encoder: Encoder,
        trunks: Mapping[str, nn.Module],
        outputs: Mapping[str, nn.Module],
        tasks: Mapping[str, TaskNode],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunks = Named(trunks)
        self.outputs = Named(outputs)
        self.tasks = dict(tasks)
        name_places(self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self, batch: Batch, *, perturbation: Tensor | None = None, layer: int = 0, keep_inputs: bool = False
    ) -> Answer:
        """The answers to a batch of one task.

        `perturbation` (R, T, D) is added to the input of encoder layer `layer` (0: the embedding output). A batch that
        carries states skips the encoder, so it can be neither perturbed nor asked for layer inputs: `ValueError`.
        """
        if batch.states is not None:
            if perturbation is not None or keep_inputs:
                raise ValueError(f"task {batch.task}: kept states have no layer inputs; make the batch without states")
            return Answer(self.answer(batch.task, batch.states, batch.tokens.mask), ())
        encoded = self.encoder(batch.tokens, perturbation=perturbation, layer=layer, keep_inputs=keep_inputs)
        return Answer(self.answer(batch.task, encoded.states, batch.tokens.mask), encoded.inputs)

    def answers(self, batch: Batch, tasks: Iterable[str]) -> dict[str, Tensor]:
        """Logits of several tasks that read the same input, from one pass of the encoder, by task."""
        states = self.encoder(batch.tokens).states if batch.states is None else batch.states
        return {task: self.answer(task, states, batch.tokens.mask) for task in tasks}

    def answer(self, task: str, states: Tensor, mask: Tensor) -> Tensor:
        """Logits from token states (R, T, D) and mask (R, T); the two texts of pairs lie stacked."""
        node = self.tasks[task]
        trunk = self.trunks[node.trunk]
        if node.reads == "separate":
            half = len(states) // 2
            sides = [_trimmed(states[:half], mask[:half]), _trimmed(states[half:], mask[half:])]
            features = trunk(*sides[0], *sides[1])
        else:
            features = trunk(states, mask)
        logits: Tensor = self.outputs[task](features)
        return logits


def _trimmed(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One side of the pairs without the columns that only the other side needs."""
    if mask.shape[1] == 1:
        return states, mask
    longest = int(mask.sum(dim=1).max())
    return states[:, :longest], mask[:, :longest]


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
) -> MultiTaskModel:
    """A model with fresh trunks and outputs; each part is drawn from a stream named by (seed, part)."""
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
    return MultiTaskModel(encoder, built, outputs, nodes)


@contextmanager
def _fresh(seed: int, *part: str) -> Iterator[None]:
    """Initialisation draws inside come from the stream of a part; the global generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_number(seed, "initial", *part))
        yield


def selected(model: MultiTaskModel, selectors: Iterable[str], tasks: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that `selectors` name, by full name; `trunks` and `outputs` mean those of `tasks`.

    A part without parameters may be meant by `trunks` (a mean has none), but not by its own name: `ValueError`.
    """
    names, wanted = list(tasks), list(selectors)
    chosen: dict[str, nn.Parameter] = {}
    for selector in wanted:
        found = {name: part for name, part in model.named_parameters() if _names(model, selector, name, names)}
        if not found and "." in selector:
            raise ValueError(f"{selector!r} names no parameter of this model")
        chosen.update(found)
    if not chosen:
        raise ValueError(f"{', '.join(wanted)} names no parameter of this model")
    return chosen


def _names(model: MultiTaskModel, selector: str, parameter: str, tasks: list[str]) -> bool:
    if selector == "encoder":
        return parameter.startswith("encoder.")
    if selector == "encoder.embeddings":
        return parameter.startswith("encoder.") and model.encoder.depth_of(parameter.removeprefix("encoder.")) == 0
    if selector.startswith("encoder.layers."):
        first, _, last = selector.removeprefix("encoder.layers.").partition("-")
        depths = range(int(first) + 1, int(last or first) + 2)
        return parameter.startswith("encoder.") and model.encoder.depth_of(parameter.removeprefix("encoder.")) in depths
    if selector == "trunks":
        return any(parameter.startswith(f"trunks.{model.tasks[task].trunk}.") for task in tasks)
    if selector == "outputs":
        return any(parameter.startswith(f"outputs.{task}.") for task in tasks)
    return parameter.startswith(f"{selector}.")
