"""One encoder, trunks shared by name, one output per task. Knows nothing of files of data or of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.errors import UsageError
from smoothtune.nn.adaptation import Adaptation, Adaptations
from smoothtune.nn.dropout import name_places
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.merging import merged
from smoothtune.nn.mixing import repeated
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

    @property
    def by_name(self) -> dict[str, nn.Module]:
        """All of them."""
        return {name: self[name] for name in self}

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
        self._merged: str | None = None
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
        several = self.layers_of(batch.task) is not None  # then a pass needs the states of all rows below its layer too
        encoded = self.encoder(
            batch.tokens,
            perturbation=perturbation,
            layer=layer,
            keep_inputs=keep_inputs or several,
            start=None if several else earlier.start,
            rows=None if several else earlier.rows,
            adaptations=Adaptations.of([(len(batch.tokens.mask), self.adaptation_of(batch.task))]),
        )
        states = earlier.completed(encoded.of_layers(self.layers_of(batch.task)))
        return Answer(self.answer(batch.task, states, batch.tokens.mask), states, encoded.inputs if keep_inputs else ())

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
        several = any(self.layers_of(task) is not None for part in batch.parts for task in part.tasks)
        encoded = self.encoder(batch.tokens, keep_inputs=several, adaptations=Adaptations.of(runs))
        found: dict[str, Tensor] = {}
        begin = 0
        for part in batch.parts:
            rows = encoded.part(begin, begin + part.rows, part.width)
            mask = batch.tokens.mask[begin : begin + part.rows, : part.width]
            for task in part.tasks:
                found[task] = self.answer(task, rows.of_layers(self.layers_of(task)), mask)
            begin += part.rows
        return found

    def layers_of(self, task: str) -> tuple[int, ...] | None:
        """The layers whose states the task's trunk reads side by side; None for the last one alone."""
        layers: tuple[int, ...] | None = getattr(self.trunks[self.tasks[task].trunk], "layers", None)
        return layers

    def adaptation_of(self, task: str) -> Adaptation:
        """The task's own LoRA and adapters. Raises `UsageError` while the LoRA of another task is merged."""
        lora = self.lora.find(task)
        if self._merged is not None:
            if self._merged != task:
                raise UsageError(
                    f"task {task!r}: the LoRA of {self._merged!r} is merged; no other task answers inside `merged`"
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
        return self._merged

    def merge(self, task: str) -> MultiTaskModel:
        """A model with the task's LoRA in its encoder's weights, where it costs nothing; no other task can answer there.

        This model stays as it is; all other weights are shared. Raises `UsageError` for a task without LoRA, and where one
        is merged already.
        """
        if self._merged is not None:
            raise UsageError(f"merge: the LoRA of {self._merged!r} is merged already; leave that `merged` first")
        if task not in self.lora:
            raise UsageError(f"merge: task {task!r} has no LoRA; tasks that have: {', '.join(self.lora) or 'none'}")
        parts = (self.trunks, self.outputs, self.lora, self.adapters)
        trunks, outputs, lora, adapters = (part.by_name for part in parts)
        encoder = merged(self.encoder, self.lora[task])
        twin = MultiTaskModel(encoder, trunks, outputs, self.tasks, lora=lora, adapters=adapters)
        for part in (twin, *(module for module in twin.children() if isinstance(module, Named))):
            part.training = self.training
        twin._merged = task
        return twin

    def answer(self, task: str, states: Tensor, mask: Tensor) -> Tensor:
        """Logits from token states (R, T, D) and mask (R, T); the two texts of pairs lie stacked.

        Where the trunk reads K layers, their states lie side by side: (R, T, K * D).
        """
        logits: Tensor = self.outputs[task](self.features(task, states, mask))
        return logits

    def features_of(self, batch: Batch) -> Tensor:
        """The features (B, F) that the task's output reads, of a batch of the task; without a gradient to go back by."""
        states, mask = batch.states, batch.tokens.mask
        if states is None:
            layers, runs = self.layers_of(batch.task), [(len(mask), self.adaptation_of(batch.task))]
            encoded = self.encoder(batch.tokens, keep_inputs=layers is not None, adaptations=Adaptations.of(runs))
            states = encoded.of_layers(layers)
        return self.features(batch.task, states, mask)

    def features(self, task: str, states: Tensor, mask: Tensor) -> Tensor:
        """The features (B, F) that the task's output reads, from what `answer` takes."""
        node = self.tasks[task]
        trunk = self.trunks[node.trunk]
        if node.reads == "separate":
            half = len(states) // 2
            sides = [_trimmed(states[:half], mask[:half]), _trimmed(states[half:], mask[half:])]
            features: Tensor = trunk(*sides[0], *sides[1])
        else:
            features = trunk(states, mask)
        return features


def _trimmed(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One side of the pairs without the columns that only the other side needs."""
    if mask.shape[1] == 1:
        return states, mask
    longest = int(mask.sum(dim=1).max())
    return states[:, :longest], mask[:, :longest]
