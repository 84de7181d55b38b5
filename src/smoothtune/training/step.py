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
from smoothtune.nn.model import Answer, Earlier, MultiTaskModel
from smoothtune.objective.class_weights import ClassWeights
from smoothtune.objective.divergences import divergence, one_sided_divergence
from smoothtune.objective.look import Distribution, DropoutMode, Look, Regulariser
from smoothtune.objective.losses import example_losses
from smoothtune.objective.weighting import WeightingProduct
from smoothtune.runtime.device import computing_in
from smoothtune.runtime.random import Pass, drawing, drawn
from smoothtune.types import Batch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StepName:
    """Names the draws of one batch: `number` counts the batches of the stage, `progress` is the share of steps done.

    Where a batch goes through in pieces, `piece` counts these.
    """

    seed: int
    stage: str
    number: int
    rank: int
    progress: float
    piece: int = 0


class StepModule(nn.Module):
    """`forward(batch, name)` makes the clean pass, calls the regularisers and returns the loss in parts.

    `class_weights` are (C,) by task: they scale the losses of examples by their class, but no regulariser's term.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        weighting: WeightingProduct,
        *,
        dtype: torch.dtype,
        regularisers: Sequence[Regulariser] = (),
        frozen_dropout: bool = False,
        class_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.weighting = weighting
        self.dtype = dtype
        self.frozen_dropout = frozen_dropout
        self.class_weights = ClassWeights(class_weights or {})
        self.regularisers = tuple(regularisers)
        self.records: dict[str, dict[str, float]] = {}

    def forward(self, batch: Batch, name: StepName) -> dict[str, Tensor]:
        """Loss parts, scalars: `task` (weighted), `weight` (the weighting's penalty), one per regulariser that looked.

        `unweighted` is the task's mean loss without gradient, for reports: with the weights of its classes, but before the
        weighting of the task. The others sum to what is minimised. A regulariser's term has the factor of its task's loss:
        w_t (L_t + lambda R_t).
        """
        assert batch.labels is not None
        kind = self.model.tasks[batch.task].kind
        clean = Pass(name.seed, name.stage, name.number, name.rank, f"clean.{name.piece}" if name.piece else "clean")
        watching = [part for part in self.regularisers if part.applies(batch.task)]
        looking = [part for part in watching if part.due(batch.task)]
        dtype = self._dtype_of(looking)
        answer = self._pass(batch, clean, dtype, keep_inputs=bool(looking))
        losses = example_losses(kind, answer.logits, batch.labels)
        loss = self.class_weights(batch.task, losses, batch.labels).mean()
        weighted, penalty = self.weighting(batch.task, loss)
        parts = {"task": weighted, "weight": penalty}
        for part in looking:
            look = self._look(_Clean(batch, answer, clean, dtype), part.name, name.progress)
            term, self.records[part.name] = part(look)
            parts[part.name] = term * self.weighting.factor(batch.task)
        for part in watching:
            part.count(batch.task)
        return {**parts, "unweighted": loss.detach()}

    def looked(self, batch: Batch, current: Pass, regulariser: Regulariser, progress: float) -> Look:
        """A Look after a clean pass named `current`, in the dtype of a step in which `regulariser` looks."""
        dtype = self.dtype_with(regulariser, batch.task)
        answer = self._pass(batch, current, dtype, keep_inputs=True)
        return self._look(_Clean(batch, answer, current, dtype), regulariser.name, progress)

    def dtype_with(self, regulariser: Regulariser, task: str) -> torch.dtype:
        """The dtype of the steps on `task` in which `regulariser` looks, but for those in which a rarer one looks too."""
        together = [part for part in self.regularisers if part.applies(task) and regulariser.every % part.every == 0]
        return self._dtype_of(together if regulariser in together else [regulariser])

    def _dtype_of(self, looking: Sequence[Regulariser]) -> torch.dtype:
        """All passes of a step have one dtype, or rounding alone would set them apart: the widest that is asked for."""
        asked = {self.dtype if part.precision is None else _DTYPES[part.precision] for part in looking}
        return max(asked, key=lambda dtype: dtype.itemsize, default=self.dtype)

    def _pass(
        self,
        batch: Batch,
        current: Pass,
        dtype: torch.dtype,
        *,
        perturbation: Tensor | None = None,
        layer: int = 0,
        keep_inputs: bool = False,
        earlier: Earlier | None = None,
    ) -> Answer:
        options = {"perturbation": perturbation, "layer": layer, "keep_inputs": keep_inputs}
        with computing_in(dtype, batch.tokens.mask.device), drawing(current):
            answer: Answer = self.model(batch, **options, earlier=Earlier() if earlier is None else earlier)
        return answer

    def _look(self, clean: _Clean, regulariser: str, progress: float, chosen: Tensor | None = None) -> Look:
        """What `regulariser` sees; `chosen` (B',) int64 are the examples it looks at, None for all."""
        batch, node = clean.batch, self.model.tasks[clean.batch.task]
        passes = _Passes(self, clean, regulariser, chosen)
        labels = batch.labels

        def loss_of(logits: Tensor) -> Tensor:
            assert labels is not None
            return example_losses(node.kind, logits, labels if chosen is None else labels[chosen])

        return Look(
            task=batch.task,
            kind=node.kind,
            logits_of=passes,
            states_at=lambda layer: clean.answer.inputs[layer].detach(),
            mask=batch.tokens.mask if passes.rows is None else batch.tokens.mask & passes.rows[:, None],
            logits=passes.of_chosen(clean.answer.logits),
            divergence=lambda a, b: divergence(node.kind, a, b, span=node.span),
            one_sided=lambda p, q: one_sided_divergence(node.kind, p, q, span=node.span),
            loss_of=loss_of,
            draw=passes.draw,
            weights=lambda: {name: part.detach() for name, part in self.model.named_parameters() if part.requires_grad},
            narrowed=lambda rows: self._look(clean, regulariser, progress, rows),
            progress=progress,
        )


@dataclass(frozen=True, slots=True)
class _Clean:
    """The clean pass over a batch: its answer, its name and its dtype."""

    batch: Batch
    answer: Answer
    name: Pass
    dtype: torch.dtype


class _Passes:
    """Further passes over a batch, as one regulariser makes them; each has a name of its own."""

    def __init__(self, module: StepModule, clean: _Clean, regulariser: str, chosen: Tensor | None) -> None:
        self._module = module
        self._clean = clean
        # A narrowed Look has streams of its own: the choice of its examples has been drawn from those of the whole one.
        self._label = f"{clean.name.name}.{regulariser}" + ("" if chosen is None else ".part")
        self._chosen = chosen
        self._count = self._draws = 0
        self.rows = None if chosen is None else _rows_of(chosen, clean.batch)

    def __call__(
        self,
        perturbation: Tensor | None = None,
        *,
        layer: int = 0,
        dropout: DropoutMode = "as_clean",
        weights: Mapping[str, Tensor] | None = None,
        learn: bool = True,
    ) -> Tensor:
        """See `LogitsOf`."""
        self._count += 1
        clean, model = self._clean, self._module.model
        again = replace(clean.name, update_statistics=False)
        if dropout == "fresh":
            again = replace(again, name=f"{self._label}.{self._count}")
        earlier = self._earlier(layer, dropout == "as_clean" and weights is None, learn)
        with _dropout_off(model, dropout == "off"), _other_weights(model, weights or {}), _learning(model, learn):
            answer = self._module._pass(
                clean.batch, again, clean.dtype, perturbation=perturbation, layer=layer, earlier=earlier
            )
        return self.of_chosen(answer.logits)

    def of_chosen(self, logits: Tensor) -> Tensor:
        """The logits of the chosen examples."""
        return logits if self._chosen is None else logits[self._chosen]

    def draw(self, like: Tensor, distribution: Distribution) -> Tensor:
        """See `Draw`."""
        self._draws += 1
        number = replace(self._clean.name, name=self._label).number(f"draw.{self._draws}")
        return drawn(number, like, distribution)

    def _earlier(self, layer: int, same: bool, learn: bool) -> Earlier:
        """What the clean pass spares this one: the layers below `layer`, if both are the `same`, and rows not chosen."""
        answer = self._clean.answer
        start = None
        if same and self._module.model.encoder.begins_anywhere:
            start = answer.inputs[layer] if learn else answer.inputs[layer].detach()
        states = None if self.rows is None else answer.states.detach()
        return Earlier(start, self.rows, states)


def _rows_of(chosen: Tensor, batch: Batch) -> Tensor:
    """The encoder's rows (R,) bool of the examples `chosen`; the two texts of pairs lie stacked."""
    rows = torch.zeros(len(batch.tokens.mask), dtype=torch.bool, device=batch.tokens.mask.device)
    rows.view(-1, len(batch))[:, chosen] = True
    return rows


class _learning:  # noqa: N801 - reads as a statement
    """Without `learn`, what is computed inside has no gradient to the parameters: the backward pass then skips them."""

    def __init__(self, model: nn.Module, learn: bool) -> None:
        self._parameters = [] if learn else [part for part in model.parameters() if part.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


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
