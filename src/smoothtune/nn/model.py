"""One encoder, trunks shared by name, one output per task. Knows nothing of files of data or of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.experiment import kind_of, trunk_name, trunk_options
from smoothtune.config.tasks import AnyShape
from smoothtune.errors import UsageError
from smoothtune.nn.adaptation import Adaptation, Adaptations
from smoothtune.nn.dropout import name_places
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.fresh import fresh_adapters, fresh_lora
from smoothtune.nn.merging import Merged
from smoothtune.nn.mixing import repeated
from smoothtune.registry import resolve
from smoothtune.runtime.random import stream_number
from smoothtune.types import Batch, Input, Kind, MixedBatch


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

    def find(self, name: str) -> Any:
        """The module of that name, None where there is none."""
        return self._modules.get(name)


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
    """Logits of a batch, (B, C) or (B,), token states (R, T, D), and layer inputs (R, T, D) when they were asked for."""

    logits: Tensor
    states: Tensor
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a pass takes from an earlier pass over the same batch.

    `start` (R, T, D): the input of the pass's `layer`, where it then begins. `rows` (R,) bool with `states` (R, T, D): the
    encoder need compute these rows alone, the others keep their states.
    """

    start: Tensor | None = None
    rows: Tensor | None = None
    states: Tensor | None = None

    def completed(self, states: Tensor) -> Tensor:
        """`states` (R, T, D) of the pass, with those of the earlier pass in the rows that were not wanted."""
        if self.rows is None or self.states is None:
            return states
        return torch.where(self.rows[:, None, None], states, self.states.to(states.dtype))


_NOTHING = Earlier()
_NONE: Mapping[str, nn.Module] = MappingProxyType({})


class MultiTaskModel(nn.Module):
    """The shared encoder with a trunk and an output for every task (Liu et al., 2019, MT-DNN; Wang, section 3).

    A task may have LoRA and adapters of its own, which stand beside the encoder: they are no part of it.
    """

    def __init__(
        self,
        encoder: Encoder,
        trunks: Mapping[str, nn.Module],
        outputs: Mapping[str, nn.Module],
        tasks: Mapping[str, TaskNode],
        *,
        lora: Mapping[str, nn.Module] = _NONE,
        adapters: Mapping[str, nn.Module] = _NONE,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunks = Named(trunks)
        self.outputs = Named(outputs)
        self.lora = Named(lora)
        self.adapters = Named(adapters)
        self.tasks = dict(tasks)
        self._merged: Merged | None = None
        name_places(self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self,
        batch: Batch,
        *,
        perturbation: Tensor | None = None,
        layer: int = 0,
        keep_inputs: bool = False,
        earlier: Earlier = _NOTHING,
    ) -> Answer:
        """The answers to a batch of one task.

        `perturbation` (R, T, D) is added to the input of encoder layer `layer` (0: the embedding output). A batch that
        carries states skips the encoder, so it can be neither perturbed nor asked for layer inputs: `ValueError`.
        """
        if batch.states is not None:
            if perturbation is not None or keep_inputs:
                raise ValueError(f"task {batch.task}: kept states have no layer inputs; make the batch without states")
            return Answer(self.answer(batch.task, batch.states, batch.tokens.mask), batch.states, ())
        encoded = self.encoder(
            batch.tokens,
            perturbation=perturbation,
            layer=layer,
            keep_inputs=keep_inputs,
            start=earlier.start,
            rows=earlier.rows,
            adaptations=Adaptations.of([(len(batch.tokens.mask), self.adaptation_of(batch.task))]),
        )
        states = earlier.completed(encoded.states)
        return Answer(self.answer(batch.task, states, batch.tokens.mask), states, encoded.inputs)

    def answers(self, batch: Batch, tasks: Iterable[str]) -> dict[str, Tensor]:
        """Logits of several tasks that read the same input, from one pass of the encoder, by task.

        Tasks without adaptations of their own share the rows of that pass.
        """
        if batch.states is not None:
            return {task: self.answer(task, batch.states, batch.tokens.mask) for task in tasks}
        return self.mixed_answers(repeated(batch, self.sharing(tasks)))

    def mixed_answers(self, batch: MixedBatch) -> dict[str, Tensor]:
        """Logits by task of a mixed batch, from one pass of the encoder: each row goes through its own adaptation."""
        runs = [(part.rows, self.adaptation_of(part.tasks[0])) for part in batch.parts]
        states = self.encoder(batch.tokens, adaptations=Adaptations.of(runs)).states
        found: dict[str, Tensor] = {}
        begin = 0
        for part in batch.parts:
            rows = slice(begin, begin + part.rows)
            mine, mask = states[rows, : part.width], batch.tokens.mask[rows, : part.width]
            found.update({task: self.answer(task, mine, mask) for task in part.tasks})
            begin += part.rows
        return found

    def adaptation_of(self, task: str) -> Adaptation:
        """The task's own LoRA and adapters. Raises `UsageError` while the LoRA of another task is merged."""
        lora = self.lora.find(task)
        if self._merged is not None:
            if self._merged.task != task:
                raise UsageError(
                    f"task {task!r}: the LoRA of {self._merged.task!r} is merged into the encoder; unmerge it first"
                )
            lora = None  # it is in the weights
        return Adaptation(lora, self.adapters.find(task))

    def sharing(self, tasks: Iterable[str]) -> list[tuple[str, ...]]:
        """`tasks` in groups that share the rows of a pass: those of the bare encoder, and each of the others alone."""
        names = list(tasks)
        bare = tuple(task for task in names if self.adaptation_of(task).empty)
        return [group for group in (bare, *((task,) for task in names if task not in bare)) if group]

    @property
    def merged(self) -> str | None:
        """The task whose LoRA is merged into the encoder; None for none."""
        return None if self._merged is None else self._merged.task

    def merge(self, task: str) -> None:
        """Write the task's LoRA into the encoder's weights: until `unmerge` it costs nothing, and no other task can answer.

        Raises `UsageError` for a task without LoRA, and where one is merged already.
        """
        if self._merged is not None:
            raise UsageError(f"merge: the LoRA of {self._merged.task!r} is merged already; unmerge it first")
        if task not in self.lora:
            raise UsageError(f"merge: task {task!r} has no LoRA; tasks that have: {', '.join(self.lora) or 'none'}")
        self._merged = Merged(self.encoder, task, self.lora[task])

    def unmerge(self) -> None:
        """Put the encoder's weights back as they were before `merge`, to the bit; without one nothing happens."""
        if self._merged is not None:
            self._merged.undo()
            self._merged = None

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_number(seed, "initial", *part))
        yield


def selected(model: MultiTaskModel, selectors: Iterable[str], tasks: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that `selectors` name, by full name; `trunks`, `outputs`, `lora` and `adapters` mean those of `tasks`.

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
    if selector in ("outputs", "lora", "adapters"):
        return any(parameter.startswith(f"{selector}.{task}.") for task in tasks)
    return parameter.startswith(f"{selector}.")
