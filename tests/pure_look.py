"""A Look over a small pure function, in float32 or float64: two layers, dropout by numbered masks, pairs or single texts.

What a regulariser computes can be computed again from the same numbers, by definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from smoothtune.objective.divergences import divergence, one_sided_divergence
from smoothtune.objective.look import Distribution, DropoutMode, Look
from smoothtune.objective.losses import example_losses
from smoothtune.types import Kind

CLASSES = 4
SPAN = 5.0


@dataclass(frozen=True)
class Net:
    """Weights by name, token states (R, T, D), their mask (R, T), the labels (B,), and the rate of dropout."""

    kind: Kind
    weights: dict[str, Tensor]
    states: Tensor
    mask: Tensor
    labels: Tensor
    pairs: bool
    rate: float

    def logits(
        self,
        weights: Mapping[str, Tensor],
        masks: int | None = 0,
        perturbation: Tensor | float = 0.0,
        layer: int = 0,
    ) -> Tensor:
        """The whole function; `masks` is the number of the dropout masks, None for no dropout."""
        hidden = self.dropped(self.states, masks, 0) + (perturbation if layer == 0 else 0.0)
        hidden = torch.tanh(hidden @ weights["first"]) * 2
        hidden = self.dropped(hidden, masks, 1) + (perturbation if layer == 1 else 0.0)
        real = self.mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (torch.tanh(hidden @ weights["second"]) * real).sum(1) / real.sum(1).clamp(min=1)
        if self.pairs:
            one, other = pooled.chunk(2)
            pooled = one * other + one - other
        logits = 3 * pooled @ weights["out"]
        return logits if self.kind == "classification" else logits[:, 0]

    def dropped(self, states: Tensor, masks: int | None, place: int) -> Tensor:
        if masks is None or self.rate == 0:
            return states
        generator = torch.Generator().manual_seed(1000 * masks + place)
        return states * (torch.rand(states.shape, generator=generator) > self.rate) / (1 - self.rate)

    def inner(self, masks: int | None = 0) -> list[Tensor]:
        """The input of each layer, detached."""
        first = self.dropped(self.states, masks, 0)
        second = self.dropped(torch.tanh(first @ self.weights["first"]) * 2, masks, 1)
        return [first.detach(), second.detach()]

    def wide(self) -> Net:
        """The same in float64."""
        weights = {name: weight.detach().double().requires_grad_() for name, weight in self.weights.items()}
        return replace(self, weights=weights, states=self.states.double())


def net(kind: Kind, *, seed: int = 0, pairs: bool = False, rate: float = 0.3, examples: int = 6, width: int = 8) -> Net:
    """A net with weights, states and labels drawn from `seed`; its texts have 1 to 5 real tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / width**0.5

    rows = 2 * examples if pairs else examples
    shapes = {"first": (width, width), "second": (width, width), "out": (width, CLASSES)}
    weights = {name: draw(*shape).requires_grad_() for name, shape in shapes.items()}
    mask = torch.arange(5) < torch.randint(1, 6, (rows, 1), generator=generator)
    classes = torch.randint(0, 2 if kind == "binary" else CLASSES, (examples,), generator=generator)
    labels = classes if kind == "classification" else classes.float()
    return Net(kind, weights, draw(rows, 5, width) * 3, mask, labels, pairs, rate)


@dataclass
class Passes:
    """`logits_of` of a Look; every pass made is told in `made`."""

    net: Net
    chosen: Tensor | None = None
    made: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self,
        perturbation: Tensor | None = None,
        *,
        layer: int = 0,
        dropout: DropoutMode = "as_clean",
        weights: Mapping[str, Tensor] | None = None,
        learn: bool = True,
    ) -> Tensor:
        told = {"perturbation": perturbation, "layer": layer, "dropout": dropout, "learn": learn}
        self.made.append({**told, "gradient": torch.is_grad_enabled()})
        masks = {"as_clean": 0, "off": None, "fresh": len(self.made)}[dropout]
        used = {**self.net.weights, **(weights or {})}
        used = used if learn else {name: weight.detach() for name, weight in used.items()}
        found = self.net.logits(used, masks, 0.0 if perturbation is None else perturbation, layer)
        return found if self.chosen is None else found[self.chosen]


def look_at(net: Net, *, task: str = "mood", progress: float = 0.5, seed: int = 0) -> Look:
    """The Look of a step; the same `seed` gives the same draws."""
    return _look(Passes(net), net.logits(net.weights), task, progress, _Draws(seed))


def passes_of(look: Look) -> list[dict[str, Any]]:
    """What passes were made of it."""
    assert isinstance(look.logits_of, Passes)
    return look.logits_of.made


class _Draws:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, like: Tensor, distribution: Distribution) -> Tensor:
        found = torch.empty(like.shape)
        if distribution == "normal":
            return found.normal_(generator=self._generator)
        return found.uniform_(-1, 1, generator=self._generator)


def _look(passes: Passes, clean: Tensor, task: str, progress: float, draws: _Draws) -> Look:
    net, chosen = passes.net, passes.chosen
    span = SPAN if net.kind == "regression" else 1.0
    mask, labels = net.mask, net.labels
    if chosen is not None:
        rows = torch.zeros(len(net.labels), dtype=torch.bool).index_fill(0, chosen, True)
        mask, labels = mask & rows.repeat(2 if net.pairs else 1)[:, None], labels[chosen]
    return Look(
        task=task,
        kind=net.kind,
        logits_of=passes,
        states_at=lambda layer: net.inner()[layer],
        mask=mask,
        logits=clean if chosen is None else clean[chosen],
        divergence=lambda a, b: divergence(net.kind, a, b, span=span),
        one_sided=lambda p, q: one_sided_divergence(net.kind, p, q, span=span),
        loss_of=lambda logits: example_losses(net.kind, logits, labels),
        draw=draws,
        weights=lambda: {name: weight.detach() for name, weight in net.weights.items()},
        narrowed=lambda rows: _look(replace(passes, chosen=rows), clean, task, progress, draws),
        progress=progress,
    )
