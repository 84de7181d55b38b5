"""What tasks change inside the shared encoder, row by row of a batch: LoRA and bottleneck adapters.

Knows nothing of any encoder: it is asked at each product and after each sub-layer. The modules belong to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from smoothtune.config.adaptations import Target
from smoothtune.nn import bottlenecks, narrow
from smoothtune.nn.adapters import Adapters, Site
from smoothtune.nn.lora import Lora, LowRank, added
from smoothtune.nn.narrow import Change
from smoothtune.nn.packing import Packing
from smoothtune.nn.products import product
from smoothtune.runtime.kernels import bottleneck
from smoothtune.runtime.kernels.bottleneck import Run


@dataclass(frozen=True, slots=True)
class Adaptation:
    """One task's LoRA and adapters; None where it has none."""

    lora: Lora | None = None
    adapters: Adapters | None = None

    @property
    def empty(self) -> bool:
        """Whether the task goes through the bare encoder."""
        return self.lora is None and self.adapters is None


@dataclass(frozen=True, slots=True)
class Span:
    """A run of rows in tensors whose dimension 0 are rows, or packed tokens: `begin` to `end`.

    Packed tokens stand at `places` (n,) int64 of the run's `padded` ones, which number their dropout draws.
    """

    begin: int
    end: int
    adaptation: Adaptation
    places: Tensor | None = None
    padded: int = 0

    @property
    def in_kernels(self) -> bool:
        """Whether kernels compute the pass: on a CPU, tokens are packed for them alone."""
        return self.places is not None and self.places.device.type == "cpu"

    def changes(self, target: Target) -> bool:
        """Whether the run's LoRA changes this product."""
        lora = self.adaptation.lora
        return lora is not None and target in lora.options.targets


@dataclass(frozen=True, slots=True)
class InLayer:
    """What the runs of a batch change in one layer of the encoder; without spans nothing."""

    layer: int = 0
    spans: tuple[Span, ...] = ()

    def product(self, targets: Target | Sequence[Target], x: Tensor, weight: Tensor) -> Tensor:
        """The product of packed tokens `x` (N, K) with `weight` (M, K), the LoRA of `targets` added, which share M evenly."""
        named: tuple[Target, ...] = (targets,) if isinstance(targets, str) else tuple(targets)
        if not self._in_one(x, weight) or not self.touches(*named):
            return self.low_rank(named, x, product(x, weight))
        share = len(weight) // len(named)
        return narrow.changed_product(
            x, weight, [Change(part.a, part.b, part.scale, number * share) for _, number, part in self._parts(named)]
        )

    def _in_one(self, x: Tensor, weight: Tensor) -> bool:
        """Whether one task's LoRA is part of the product with `weight`, gradients and all."""
        if len(self.spans) != 1 or not self.spans[0].in_kernels:
            return False
        lora = self.spans[0].adaptation.lora
        if lora is None or bottlenecks.drops(lora) or not weight.is_contiguous():
            return False
        return narrow.serves(x, *weight.shape)

    def low_rank(self, targets: Target | Sequence[Target], x: Tensor, into: Tensor) -> Tensor:
        """The product `into` (N, ..., M) of `x` (N, ..., K) with the LoRA of `targets`, which share M evenly, added.

        `into` is changed in place.
        """
        named: tuple[Target, ...] = (targets,) if isinstance(targets, str) else tuple(targets)
        if not self.touches(*named):
            return into
        share = into.shape[-1] // len(named)
        if self._at_once(x, into, share):
            bottleneck.add(x, into, self._low_rank_runs(named, share))
            return into
        for span, number, part in self._parts(named):
            change = part(x[span.begin : span.end], span.places, span.padded)
            into = added(into, change, span.begin, number * share)
        return into

    def _parts(self, targets: tuple[Target, ...]) -> Iterator[tuple[Span, int, LowRank]]:
        """What changes which of `targets` in every run."""
        for span in self.spans:
            lora = span.adaptation.lora
            for number, target in enumerate(targets):
                part = None if lora is None else lora.at(self.layer, target)
                if part is not None:
                    yield span, number, part

    def _low_rank_runs(self, targets: tuple[Target, ...], share: int) -> list[Run]:
        parts = self._parts(targets)
        return [Run(span.begin, span.end, number * share, bottlenecks.low_rank(part)) for span, number, part in parts]

    def _at_once(self, x: Tensor, into: Tensor, width: int) -> bool:
        """Whether one kernel adds what all runs change, `width` features each."""
        if not all(span.in_kernels for span in self.spans) or not bottlenecks.serves(x, into, width):
            return False
        return not any(
            span.adaptation.lora is not None and bottlenecks.drops(span.adaptation.lora) for span in self.spans
        )

    def touches(self, *targets: Target) -> bool:
        """Whether any run changes one of these products."""
        return any(span.changes(target) for span in self.spans for target in targets)

    def untouched(self, target: Target) -> list[tuple[int, int]]:
        """Begin and end of the runs that do not change this product."""
        return [(span.begin, span.end) for span in self.spans if not span.changes(target)]

    @property
    def adapts(self) -> bool:
        """Whether any run has adapters."""
        return any(span.adaptation.adapters is not None for span in self.spans)

    def adapted(self, site: Site, y: Tensor) -> Tensor:
        """The output `y` (N, ..., D) of a sub-layer, each run of it through its own adapter."""
        if not self.adapts:
            return y
        parts = []
        for span in self.spans:
            part, adapters = y[span.begin : span.end], span.adaptation.adapters
            if adapters is not None:
                adapter = adapters.at(self.layer, site)
                part = adapter.packed(part) if span.in_kernels else adapter(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def adapted_product(self, site: Site, y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The same for packed tokens `y` (N, D) without their `bias` (D,): changed in place or anew, and the bias left to add."""
        if not self.adapts:
            return y, bias
        if not self._at_once(y, y, y.shape[1]):
            return self._adapted_apart(site, y, bias)
        runs = [
            Run(span.begin, span.end, 0, bottlenecks.adapter(span.adaptation.adapters.at(self.layer, site), bias))
            for span in self.spans
            if span.adaptation.adapters is not None
        ]
        bottleneck.add(y, y, runs)
        return y, bias

    def _adapted_apart(self, site: Site, y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        first = self.spans[0].adaptation.adapters
        if len(self.spans) == 1 and first is not None and self.spans[0].in_kernels:
            return first.at(self.layer, site).unbiased(y, bias)
        return self.adapted(site, y + bias.to(y.dtype)), torch.zeros_like(bias)


UNCHANGED = InLayer()


@dataclass(frozen=True, slots=True)
class Adaptations:
    """Whose adaptation each row of a batch goes through: `runs` of (number of rows, adaptation), one after another."""

    runs: tuple[tuple[int, Adaptation], ...]

    @classmethod
    def of(cls, runs: Sequence[tuple[int, Adaptation]]) -> Adaptations | None:
        """Those of `runs`, which are all R rows; None where no run has one of its own: then the encoder is bare."""
        return None if all(adaptation.empty for _, adaptation in runs) else cls(tuple(runs))

    def spans(self) -> tuple[Span, ...]:
        """The runs in tensors of rows (R, ...)."""
        edges = self._edges()
        return tuple(Span(edges[number], edges[number + 1], run) for number, (_, run) in enumerate(self.runs))

    def packed_spans(self, packing: Packing) -> tuple[Span, ...]:
        """The runs in tensors of packed tokens (N, ...)."""
        rows = self._edges()
        alone = len(self.runs) == 1  # a GPU need not be waited for
        tokens = [0, len(packing.places)] if alone else packing.starts[rows].tolist()
        found = []
        for number, (count, run) in enumerate(self.runs):
            begin, end = tokens[number], tokens[number + 1]
            places = packing.places[begin:end] - rows[number] * packing.width
            found.append(Span(begin, end, run, places, count * packing.width))
        return tuple(found)

    def _edges(self) -> list[int]:
        return [0, *accumulate(count for count, _ in self.runs)]


def in_layers(spans: tuple[Span, ...], depth: int) -> tuple[InLayer, ...]:
    """What the runs at `spans` change in each of `depth` layers."""
    return tuple(InLayer(layer, spans) if spans else UNCHANGED for layer in range(depth))
