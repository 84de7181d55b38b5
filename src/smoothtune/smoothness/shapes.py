"""What x, its mask, and what a function answers have to be. Knows nothing of passes or of what is done with them."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.errors import UsageError
from smoothtune.types import Kind


def checked_x(x: object) -> Tensor:
    """`x`, (B, T, D) or (B, D). Raises `UsageError` for what is no tensor of floats of such a shape, or is empty."""
    what = "expected a tensor of floats, (B, T, D) or (B, D)"
    if not isinstance(x, Tensor):
        raise UsageError(f"x: got {type(x).__name__}, {what}; torch.as_tensor(...) makes one of an array or a list")
    if x.ndim not in (2, 3) or not x.is_floating_point():
        raise UsageError(
            f"x: got {x.dtype} of shape {tuple(x.shape)}, {what}; pass embeddings or features, not token ids"
        )
    if x.numel() == 0:
        raise UsageError(f"x: got shape {tuple(x.shape)}, which holds nothing to perturb; leave empty batches out")
    return x


def checked_mask(mask: object, states: Tensor) -> Tensor:
    """Real tokens of `states` (B, T, D), (B, T) bool; without a `mask` all. Raises `UsageError` for another shape."""
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    expected = f"expected a tensor of shape {tuple(states.shape[:2])}, one number per token: True or 1 for real tokens"
    if not isinstance(mask, Tensor):
        raise UsageError(f"mask: got {type(mask).__name__}, {expected}")
    if mask.shape != states.shape[:2]:
        raise UsageError(f"mask: got shape {tuple(mask.shape)}, {expected}")
    return mask.to(states.device, torch.bool)


def checked_answer(answer: object) -> Tensor:
    """What a function returned. Raises `UsageError` where it is more, or other, than one tensor."""
    if isinstance(answer, Tensor):
        return answer
    what = "return its `.logits`" if hasattr(answer, "logits") else "return the logits alone"
    raise UsageError(f"forward: returned {type(answer).__name__}, expected a tensor of logits; {what}")


def flat_logits(logits: Tensor, kind: Kind, rows: int) -> Tensor:
    """`logits` of `rows` examples, (B, C) for classification, else (B,). Raises `UsageError` for other shapes."""
    if not logits.is_floating_point():
        raise UsageError(
            f"logits: got {logits.dtype}, expected floats; return logits, not the classes that follow from them"
        )
    got = f"logits: got shape {tuple(logits.shape)}"
    if kind == "classification" and not (logits.ndim == 2 and logits.shape[1] > 1):
        raise UsageError(
            f"{got}, expected (B, C) with two classes or more; "
            'for one logit per example use kind "binary" or "regression"'
        )
    if kind != "classification" and not (logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1)):
        raise UsageError(f'{got}, expected (B,) or (B, 1) for kind {kind!r}; use "classification" for more')
    if len(logits) != rows:
        raise UsageError(f"{got} for an x of {rows} rows; return the logits of each row of the x that is given")
    return logits if kind == "classification" else logits.reshape(-1)
