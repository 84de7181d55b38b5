"""Further passes of a function that is not ours, as a regulariser sees them. Knows no module, only logits and generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from smoothtune.errors import UsageError
from smoothtune.objective.divergences import divergence, one_sided_divergence
from smoothtune.objective.look import Distribution, DropoutMode, Look
from smoothtune.runtime.generators import Generators, seeded
from smoothtune.runtime.random import drawn, stream_number
from smoothtune.smoothness.shapes import checked_answer, checked_mask, checked_x, flat_logits
from smoothtune.types import Kind

_UNUSED = (
    "does not use the x that it is given, or cuts its gradient; "
    "compute the logits from its argument, without torch.no_grad() and detach()"
)
# What is wrong with a function, by how torch tells of it.
_FAULTS = {
    "appears to not have been used in the graph": _UNUSED,
    "does not require grad and does not have a grad_fn": _UNUSED,
    "torch.utils.checkpoint is incompatible with .grad()": (
        "has reentrant checkpoints, which pass no gradient of the input alone; set use_reentrant=False"
    ),
}


class Run(Protocol):
    """One more pass over the batch of a clean pass."""

    def __call__(self, perturbation: Tensor | None, *, learn: bool) -> Tensor:
        """Logits with `perturbation` (B, T, D) added; without `learn` nothing but the perturbation needs a gradient."""
        ...


@dataclass(frozen=True, slots=True)
class Clean:
    """A clean pass that has been made.

    `states` (B, T, D) float are what gets perturbed; `logits` (B, C), (B,) or (B, 1) the answer with its gradient;
    `generators` were taken before the pass; `dtype` is the one that it computed in (see `compute_dtype`).
    """

    run: Run
    states: Tensor
    logits: Tensor
    generators: Generators
    dtype: torch.dtype


def compute_dtype(x: Tensor) -> torch.dtype:
    """That of products of `x` here: autocast's where it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def clean_pass(forward: Callable[[Tensor], Tensor], x: Tensor) -> Clean:
    """Run `forward` on `x`, (B, T, D) or (B, D). Raises `UsageError` for another `x`, and for answers that are no tensor."""
    x = checked_x(x)

    def run(perturbation: Tensor | None, *, learn: bool) -> Tensor:
        start = x if learn else x.detach()
        if perturbation is not None:
            start = (start + perturbation.reshape(x.shape)).to(x.dtype)
        return checked_answer(forward(start))

    generators = Generators.now(x.device)
    logits = checked_answer(forward(x))
    return Clean(run, x.detach().reshape(len(x), -1, x.shape[-1]), logits, generators, compute_dtype(x))


def looked(
    clean: Clean, kind: Kind, span: float, *, mask: Tensor | None, stream: tuple[object, ...], progress: float
) -> Look:
    """What a regulariser sees of `clean`; `mask` (B, T) tells real tokens, `stream` names noise and new dropout masks.

    Raises `UsageError` when the mask or the logits have not the shape that belongs to the states or the kind.
    """
    numbers = count()

    def draw(like: Tensor, distribution: Distribution) -> Tensor:
        return drawn(stream_number(*stream, next(numbers)), like, distribution)

    return Look(
        task=kind,
        kind=kind,
        logits_of=_LogitsOf(clean, kind, lambda: stream_number(*stream, next(numbers))),
        states_at=lambda layer: clean.states,
        mask=checked_mask(mask, clean.states),
        logits=flat_logits(clean.logits, kind, len(clean.states)),
        divergence=lambda a, b: divergence(kind, a, b, span=span),
        one_sided=lambda p, q: one_sided_divergence(kind, p, q, span=span),
        loss_of=lambda logits: _unknown("labels"),
        draw=draw,
        weights=lambda: _unknown("parameters"),
        narrowed=lambda rows: _unknown("rows"),
        progress=progress,
    )


@contextmanager
def searching() -> Iterator[None]:
    """A search along the gradient runs inside. Raises `UsageError` where the function has none to what is perturbed."""
    try:
        yield
    except RuntimeError as error:
        for told, fault in _FAULTS.items():
            if told in str(error):
                raise UsageError(f"forward: {fault}") from error
        raise


@dataclass(frozen=True, slots=True)
class _LogitsOf:
    """See `LogitsOf`."""

    clean: Clean
    kind: Kind
    new_stream: Callable[[], int]

    def __call__(
        self,
        perturbation: Tensor | None = None,
        *,
        layer: int = 0,
        dropout: DropoutMode = "as_clean",
        weights: Mapping[str, Tensor] | None = None,
        learn: bool = True,
    ) -> Tensor:
        if layer != 0 or weights is not None or dropout == "off":
            _unknown("layers, weights and dropout modules")
        generators = self.clean.generators
        fresh = dropout == "fresh"
        with seeded(self.new_stream(), generators.device) if fresh else generators.again():
            logits = self.clean.run(perturbation, learn=learn)
        return flat_logits(logits, self.kind, len(self.clean.states))


def _unknown(what: str) -> NoReturn:
    raise UsageError(f"smoothness of a function knows nothing of {what}; use a stage's regularisers for this one")
