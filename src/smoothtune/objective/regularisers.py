"""Regularisers as a stage uses them: a measure, with how much, on which tasks, how often, on how much of a batch.

Knows no measure by name: kinds are resolved through the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, cast, runtime_checkable

from torch import Tensor

from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.objective.look import Look, Regulariser
from smoothtune.registry import resolve

_SEEN, _MEMORY = "seen.", "memory."


class Measure(Protocol):
    """What is computed at a look; `layers` are those whose input it asks for."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose input it asks for."""
        ...

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """The term, a scalar, with its weighted part multiplied by `factor`, and a record with its plain `value`."""
        ...


class Searching(Protocol):
    """A measure that looks for a perturbation."""

    def perturbation(self, look: Look) -> Tensor:
        """What it finds, (R, T, D)."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A measure with a memory."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a memory back. Raises `ValueError`, whose text begins with the key, for what is none."""
        ...

    def check_memory(self, weights: Mapping[str, Tensor]) -> None:
        """Raise `ValueError` where the memory cannot be one of a training of `weights`."""
        ...


class Term:
    """One regulariser of a stage: a `Regulariser` made of a measure and the options that all kinds share.

    Of each task it looks at the first batch and then at each `every`-th, with `every` times the weight, so that the sum
    over the batches is the same on average. With `fraction` it looks at that share of the examples (one at least), drawn
    anew at each look: their mean is an unbiased estimate of the batch's mean, so no further factor is due. The weight rises
    linearly over the share `warmup` of the steps.
    """

    def __init__(self, options: RegulariserOptions, measure: Measure) -> None:
        self.options = options
        self.measure = measure
        self.name: str = options.label
        self.layers: tuple[int, ...] = measure.layers
        self.precision: Literal["float32", "bfloat16"] | None = options.precision
        self.every: int = options.every
        self._seen: dict[str, int] = {}

    def applies(self, task: str) -> bool:
        """Whether it is for this task at all."""
        return self.options.tasks is None or task in self.options.tasks

    def due(self, task: str) -> bool:
        """Whether it looks at the task's next batch."""
        return self._seen.get(task, 0) % self.every == 0

    def count(self, task: str) -> None:
        """One more batch of the task has passed, looked at or not."""
        self._seen[task] = self._seen.get(task, 0) + 1

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        """The weighted term, a scalar, and the measure's record."""
        return self.measure(self._part(look), self.factor(look.progress))

    def factor(self, progress: float) -> float:
        """The factor of the measure after the share `progress` of the steps."""
        risen = min(1.0, progress / self.options.warmup) if self.options.warmup > 0 else 1.0
        return self.options.weight * self.options.every * risen

    @property
    def perturbation(self) -> Callable[[Look], Tensor]:
        """The measure's own search; only of measures that have one (`hasattr` tells)."""
        return cast(Searching, self.measure).perturbation

    def _part(self, look: Look) -> Look:
        """The examples that are looked at."""
        if self.options.fraction == 1:
            return look
        one_each = look.logits.detach().flatten(1)[:, 0] if look.logits.dim() > 1 else look.logits.detach()
        chosen = max(1, round(self.options.fraction * len(one_each)))
        return look.narrowed(look.draw(one_each, "uniform").argsort()[:chosen].sort().values)

    def state_dict(self) -> dict[str, Any]:
        """Batches seen of each task, and the measure's memory."""
        memory = self.measure.state_dict() if isinstance(self.measure, Remembering) else {}
        seen = {_SEEN + task: number for task, number in self._seen.items()}
        return {**seen, **{_MEMORY + key: value for key, value in memory.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a memory back. Raises `ValueError`, whose text begins with the key, for what is none."""
        remembers = isinstance(self.measure, Remembering)
        for key, value in state.items():
            counts = key.startswith(_SEEN) and type(value) is int and value >= 0
            if not counts and not (remembers and key.startswith(_MEMORY)):
                raise ValueError(f"{key}: got {type(value).__name__}, expected the batches seen of a task, or a memory")
        if isinstance(self.measure, Remembering):
            with _memory():
                self.measure.load_state_dict(_under(_MEMORY, state))
        self._seen = _under(_SEEN, state)

    def check_memory(self, batches: Mapping[str, int], weights: Mapping[str, Tensor], *, whole: bool) -> None:
        """Raise `ValueError` where the memory cannot be one after so many `batches` of each task; see `Regulariser`."""
        for task in {**batches, **self._seen}:
            wanted = batches.get(task, 0) if self.applies(task) else 0
            seen = self._seen.get(task, 0)
            if seen != wanted and (whole or seen < wanted or not wanted):
                raise ValueError(f"{_SEEN}{task}: got {seen}, but {wanted} batches have passed")
        if isinstance(self.measure, Remembering):
            with _memory():
                self.measure.check_memory(weights)


@contextmanager
def _memory() -> Iterator[None]:
    """What is wrong inside is told under the memory's key."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{_MEMORY}{error}") from None


def build_regularisers(options: Sequence[RegulariserOptions], *, depth: int) -> tuple[Regulariser, ...]:
    """The regularisers of a stage, in the order of `options`; `depth` is the encoder's number of layers."""
    return tuple(Term(one, _measure(one, depth)) for one in options)


def _measure(options: RegulariserOptions, depth: int) -> Measure:
    kind = resolve("regularisers", options.kind)
    layer = getattr(options, "layer", None)
    if layer is None:
        return cast(Measure, kind(options))
    return cast(Measure, kind(options, depth // 2 if layer == "middle" else layer))


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
