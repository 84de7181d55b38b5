"""One training step as one module: clean pass, regularisers, loss parts. This is what `accelerate` wraps.

Knows nothing of optimisers, schedules or files. Nothing else calls the model while training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.nn.dropout import Dropout
from smoothtune.nn.model import Answer, MultiTaskModel
from smoothtune.objective.divergences import divergence
from smoothtune.objective.look import DropoutMode, Look, Regulariser
from smoothtune.objective.losses import example_losses
from smoothtune.objective.weighting import WeightingProduct
from smoothtune.runtime.device import computing_in
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Batch


@dataclass(frozen=True, slots=True)
class StepName:
    """Names the draws of one batch: `number` counts the batches of the stage, `progress` is the share of steps done."""

    seed: int
    stage: str
    number: int
    rank: int
    progress: float


class StepModule(nn.Module):
    """`forward(batch, name)` makes the clean pass, calls the regularisers and returns the loss in parts."""

    def __init__(
        self,
        model: MultiTaskModel,
        weighting: WeightingProduct,
        *,
        dtype: torch.dtype,
        regularisers: Sequence[Regulariser] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.weighting = weighting
        self.dtype = dtype
        self.regularisers = tuple(regularisers)
        self.records: dict[str, dict[str, float]] = {}

    def forward(self, batch: Batch, name: StepName) -> dict[str, Tensor]:
        """Loss parts, scalars: `task` (weighted), `weight` (the weighting's penalty), one per regulariser.

        `unweighted` is the task's mean loss without gradient, for reports; the others sum to what is minimised.
        """
        assert batch.labels is not None
        kind = self.model.tasks[batch.task].kind
        clean = Pass(name.seed, name.stage, name.number, name.rank)
        answer = self._pass(batch, clean, keep_inputs=bool(self.regularisers))
        loss = example_losses(kind, answer.logits, batch.labels).mean()
        weighted, penalty = self.weighting(batch.task, loss)
        parts = {"task": weighted, "weight": penalty}
        for regulariser in self.regularisers:
            look = self._look(batch, answer, clean, regulariser.name, name.progress)
            parts[regulariser.name], self.records[regulariser.name] = regulariser(look)
        return {**parts, "unweighted": loss.detach()}

    def _pass(
        self,
        batch: Batch,
        current: Pass,
        *,
        perturbation: Tensor | None = None,
        layer: int = 0,
        keep_inputs: bool = False,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        options = {"perturbation": perturbation, "layer": layer, "keep_inputs": keep_inputs}
        swapped = _other_weights(self.model, {} if weights is None else weights)
        with computing_in(self.dtype, batch.tokens.mask.device), drawing(current), swapped:
            answer: Answer = self.model(batch, **options)
        return answer

    def _look(self, batch: Batch, answer: Answer, clean: Pass, regulariser: str, progress: float) -> Look:
        node = self.model.tasks[batch.task]
        passes = 0

        def logits_of(
            perturbation: Tensor | None = None,
            *,
            layer: int = 0,
            dropout: DropoutMode = "as_clean",
            weights: Mapping[str, Tensor] | None = None,
        ) -> Tensor:
            nonlocal passes
            passes += 1
            again = replace(clean, update_statistics=False)
            if dropout == "fresh":
                again = replace(again, name=f"{regulariser}.{passes}")
            with _dropout_off(self.model, dropout == "off"):
                return self._pass(batch, again, perturbation=perturbation, layer=layer, weights=weights).logits

        def loss_of(logits: Tensor) -> Tensor:
            assert batch.labels is not None
            return example_losses(node.kind, logits, batch.labels)

        return Look(
            task=batch.task,
            kind=node.kind,
            logits_of=logits_of,
            states_at=lambda layer: answer.inputs[layer].detach(),
            mask=batch.tokens.mask,
            logits=answer.logits,
            divergence=lambda a, b: divergence(node.kind, a, b, span=node.span),
            loss_of=loss_of,
            progress=progress,
        )


@contextmanager
def _other_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model computes with `weights` inside, its own untouched.

    Not `torch.func.functional_call`: that finds modules by attribute, where a task called `train` is a method.
    """
    if not weights:  # nearly always: listing the modules costs more than a small step
        yield
        return
    modules = dict(model.named_modules())
    own: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, tensor in weights.items():
            place, _, name = path.rpartition(".")
            module = modules[place]
            holder: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
            own.append((holder, name, holder[name]))
            holder[name] = tensor
        yield
    finally:
        for holder, name, tensor in reversed(own):
            holder[name] = tensor


class _dropout_off:  # noqa: N801 - reads as a statement
    """Puts the encoder and every dropout module to rest inside, and back after; norms of trunks keep their mode.

    The encoder as a whole: attention of transformers drops by its own mode, not by that of its dropout module.
    """

    def __init__(self, model: MultiTaskModel, rest: bool) -> None:
        inside = set(model.encoder.modules())
        found = [part for part in model.modules() if isinstance(part, Dropout) or part in inside] if rest else []
        self._modules = [part for part in found if part.training]

    def __enter__(self) -> None:
        for module in self._modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            module.training = True
