"""What a regulariser may see of a training step, and what it gives back. It never holds a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from smoothtune.types import Kind

DropoutMode = Literal["as_clean", "fresh", "off"]


class LogitsOf(Protocol):
    """A second pass over the same batch."""

    def __call__(
        self,
        perturbation: Tensor | None = None,
        *,
        layer: int = 0,
        dropout: DropoutMode = "as_clean",
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits, (B, C) or (B,), with `perturbation` (R, T, D) added to the input of `layer`.

        `dropout`: the clean pass's masks, new ones, or none. `weights`: other parameters by name, used functionally.
        """
        ...


class StatesAt(Protocol):
    """Token states of the clean pass."""

    def __call__(self, layer: int) -> Tensor:
        """The input of `layer` in the clean pass, detached, (R, T, D)."""
        ...


class ExampleValues(Protocol):
    """Logits to one value per example."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Value of each example, (B,)."""
        ...


class Divergence(Protocol):
    """Two sets of logits to one distance per example."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each example, (B,)."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """One batch as a regulariser sees it.

    `mask` (R, T) bool, `logits` those of the clean pass with their gradient; `progress` is the share of the stage's
    steps that are done, 0 to 1.
    """

    task: str
    kind: Kind
    logits_of: LogitsOf
    states_at: StatesAt
    mask: Tensor
    logits: Tensor
    divergence: Divergence
    loss_of: ExampleValues
    progress: float


class Regulariser(Protocol):
    """A term added to the loss; it may keep a memory, which is saved with the optimiser."""

    name: str

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        """The weighted term (a scalar) and a small record of what was done."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its memory."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a memory back."""
        ...
