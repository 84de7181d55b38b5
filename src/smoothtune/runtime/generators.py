"""torch's global generators: what they were before a pass, and passes run again from there or from a seed.

For code that is not ours and draws its dropout masks from them. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from smoothtune.errors import UsageError


@dataclass(frozen=True, slots=True)
class Generators:
    """The state of the CPU's generator, and of one CUDA device's where the pass runs on one."""

    device: torch.device
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> Generators:
        """Their present state. Raises `UsageError` for a device whose generator cannot be set back."""
        if device.type not in ("cpu", "cuda"):
            raise UsageError(
                f"dropout masks can be drawn again on cpu and cuda, not on {device.type!r}; move the model to one of them"
            )
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda)

    def put_back(self) -> None:
        """Draws go on from this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draws inside are those that followed this state; after it, it is as if nothing had been drawn."""
        with kept(self.device):
            self.put_back()
            yield


@contextmanager
def seeded(number: int, device: torch.device) -> Iterator[None]:
    """Draws inside come from the seed `number`; after it, it is as if nothing had been drawn."""
    with kept(device):
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """After it, it is as if nothing had been drawn inside."""
    before = Generators.now(device)
    try:
        yield
    finally:
        before.put_back()
