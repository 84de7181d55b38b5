"""The two sides of a comparison: the clean logits, and the dropout of the pass that is held against them."""

from __future__ import annotations

from torch import Tensor

from smoothtune.config.regularisers import Masks
from smoothtune.objective.look import DropoutMode, Look

_MODES: dict[Masks, DropoutMode] = {"independent": "fresh", "shared": "as_clean", "off": "off"}


def clean_side(look: Look, masks: Masks, *, learn: bool = True) -> Tensor:
    """Logits to compare with, (B, C) or (B,): those of the clean pass; with `off`, of one more pass without dropout.

    Without `learn` they have no gradient.
    """
    logits = look.logits_of(dropout="off", learn=learn) if masks == "off" else look.logits
    return logits if learn else logits.detach()


def dropout_mode(masks: Masks) -> DropoutMode:
    """Dropout of the pass that is compared."""
    return _MODES[masks]
