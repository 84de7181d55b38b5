"""What a regulariser may see of a training step, and what it gives back. It never holds a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from smoothtune.types import Kind

DropoutMode = Literal["as_clean", "fresh", "off"]
Distribution = Literal["normal", "uniform"]


class LogitsOf(Protocol):
    """A second pass over the same batch."""

    def __call__(
        self,
        perturbation: Tensor | None = None,
        *,
        layer: int = 0,
        dropout: DropoutMode = "as_clean",
        weights: Mapping[str, Tensor] | None = None,
        learn: bool = True,
    ) -> Tensor:
        """Logits, (B, C) or (B,), with `perturbation` (R, T, D) added to the input of `layer`.

        `dropout`: the clean pass's masks, new ones, or none. With a perturbation and the clean pass's masks the pass
        begins at `layer`, from the clean pass's states, where the encoder can. `weights`: other parameters by name, used
        functionally. Without `learn` no gradient reaches the parameters, only the perturbation: a cheaper backward pass.
        """
        ...


class StatesAt(Protocol):
    """Token states of the clean pass."""

    def __call__(self, layer: int) -> Tensor:
        """The input of `layer` in the clean pass, detached, (R, T, D). `layer` is one that the regulariser declared."""
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


class Draw(Protocol):
    """Random numbers of the regulariser's own stream in this step."""

    def __call__(self, like: Tensor, distribution: Distribution) -> Tensor:
        """float32 draws of the shape of `like`: standard normal, or uniform in [-1, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """One batch as a regulariser sees it.

    `mask` (R, T) bool, False where nothing may be perturbed; `logits` those of the clean pass with their gradient;
    `progress` is the share of the stage's steps that are done, 0 to 1. `divergence` is symmetric, `one_sided(p, q)` is
    KL(p || q). `weights()` are the parameters that train, by name, detached. `narrowed(rows)` is the same Look at the
    examples `rows` (B',) int64 alone: logits and values are of these, perturbations keep their shape.
    """

    task: str
    kind: Kind
    logits_of: LogitsOf
    states_at: StatesAt
    mask: Tensor
    logits: Tensor
    divergence: Divergence
    one_sided: Divergence
    loss_of: ExampleValues
    draw: Draw
    weights: Callable[[], Mapping[str, Tensor]]
    narrowed: Callable[[Tensor], Look]
    progress: float


class Regulariser(Protocol):
    """A term added to the loss; it may keep a memory, which is saved with the optimiser.

    `name` is that of the loss part, `layers` the layers whose input it asks for, `precision` the dtype it asks for (None:
    that of the stage). It looks at each `every`-th batch of a task, the first included.
    """

    name: str
    layers: tuple[int, ...]
    precision: Literal["float32", "bfloat16"] | None
    every: int

    def applies(self, task: str) -> bool:
        """Whether it is for this task at all."""
        ...

    def due(self, task: str) -> bool:
        """Whether it looks at the task's next batch."""
        ...

    def count(self, task: str) -> None:
        """One more batch of the task has passed, looked at or not."""
        ...

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        """The weighted term (a scalar) and a small record of what was done."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its memory: tensors and plain numbers, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a memory back. Raises `ValueError`, whose text begins with the key, for what is none."""
        ...

    def check_memory(self, batches: Mapping[str, int], weights: Mapping[str, Tensor], *, whole: bool) -> None:
        """Raise `ValueError` where the memory cannot be one after so many `batches` of each task, with the `weights` that train.

        A `whole` batch counts once; one that went through in pieces, or again for want of memory, more often.
        """
        ...
