"""The seam of trunks: what every trunk is, whatever happens inside.

A trunk is an `nn.Module` made as `Trunk(options, width)` that turns token states into one feature vector per example.
It knows nothing of encoders, tasks, labels or outputs; it sees states and masks, and may be shared between tasks.

Masks are bool, True = real. The real tokens of a row stand first and there is at least one; what stands at a padded
place may be anything, not-a-number included, and never changes an answer: an example alone gives what its row of a
batch gives.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class SingleTrunk(Protocol):
    """A trunk of `single` or `joint` input: one sequence per example; `features` is its F."""

    features: int

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, D) and `mask` (B, T) to features (B, F)."""
        ...


class PairTrunk(Protocol):
    """A trunk of `separate` input: two sequences per example, each padded to its own length; `features` is its F."""

    features: int

    def __call__(self, states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> Tensor:
        """`states_a` (B, Ta, D), `mask_a` (B, Ta), `states_b` (B, Tb, D), `mask_b` (B, Tb) to features (B, F)."""
        ...


Trunk = SingleTrunk | PairTrunk
