"""Further passes of a function that is not ours, as a regulariser sees them. Knows no module, only logits and generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from smoothtune.types import Kind


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
    """Run `forward` on `x`, (B, T, D) or (B, D). Raises `UsageError` for other shapes and for integers."""
    if x.ndim not in (2, 3) or not x.is_floating_point():
        raise UsageError(
            f"x: got {x.dtype} of shape {tuple(x.shape)}, expected floats (B, T, D) or (B, D); "
            "pass embeddings or features, not token ids"
        )

    def run(perturbation: Tensor | None, *, learn: bool) -> Tensor:
        start = x if learn else x.detach()
        if perturbation is not None:
            start = (start + perturbation.reshape(x.shape)).to(x.dtype)
        return forward(start)

    generators = Generators.now(x.device)
    logits = forward(x)
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
        mask=_checked_mask(mask, clean.states),
        logits=_flat(clean.logits, kind),
        divergence=lambda a, b: divergence(kind, a, b, span=span),
        one_sided=lambda p, q: one_sided_divergence(kind, p, q, span=span),
        loss_of=lambda logits: _unknown("labels"),
        draw=draw,
        weights=lambda: _unknown("parameters"),
        narrowed=lambda rows: _unknown("rows"),
        progress=progress,
    )


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
            return _flat(self.clean.run(perturbation, learn=learn), self.kind)


def _unknown(what: str) -> NoReturn:
    raise UsageError(f"smoothness of a function knows nothing of {what}; use a stage's regularisers for this one")


def _checked_mask(mask: Tensor | None, states: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if mask.shape != states.shape[:2]:
        raise UsageError(
            f"mask: got shape {tuple(mask.shape)}, expected {tuple(states.shape[:2])}, one number per token: "
            "True or 1 for real tokens"
        )
    return mask.to(states.device, torch.bool)


def _flat(logits: Tensor, kind: Kind) -> Tensor:
    """(B, C) for classification, else (B,)."""
    if kind == "classification":
        if logits.ndim == 2 and logits.shape[1] > 1:
            return logits
        raise UsageError(
            f"logits: got shape {tuple(logits.shape)}, expected (B, C) with two classes or more; "
            'for one logit per example use kind "binary" or "regression"'
        )
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        return logits.reshape(-1)
    raise UsageError(
        f'logits: got shape {tuple(logits.shape)}, expected (B,) or (B, 1) for kind {kind!r}; use "classification" for more'
    )
