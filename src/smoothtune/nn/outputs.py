"""Outputs: feature vector to logits, one per task. They know nothing of trunks, losses or label names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothtune.errors import UsageError
from smoothtune.types import Kind

HIDDEN = 1024


class LinearOutput(nn.Module):
    """One linear layer, read as the task's kind has it (see `Reading`). Always float32, whatever autocast does."""

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        kind: Kind,
        value_range: tuple[float, float] | None = None,
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.reading = Reading(kind, classes, value_range, squash)
        self.linear = nn.Linear(features, classes)
        self.reading.start(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """`features` (B, F) to logits (B, C), one logit (B,) or predictions in label units (B,), float32."""
        with torch.autocast(features.device.type, enabled=False):
            read: Tensor = self.reading(self.linear(features.to(self.linear.weight.dtype)))
            return read


class TwoLayerOutput(nn.Module):
    """Linear(F, 1024), Linear(1024, C) with nothing between, read as the task's kind has it (see `Reading`).

    Float32 like `LinearOutput`. Source: Wang, Tables 2 and 3, the rows "Fully Connected Layer".
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        kind: Kind,
        value_range: tuple[float, float] | None = None,
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.reading = Reading(kind, classes, value_range, squash)
        self.hidden = nn.Linear(features, HIDDEN)
        self.linear = nn.Linear(HIDDEN, classes)
        self.reading.start(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """`features` (B, F) to logits (B, C), one logit (B,) or predictions in label units (B,), float32."""
        with torch.autocast(features.device.type, enabled=False):
            hidden = self.hidden(features.to(self.hidden.weight.dtype))
            read: Tensor = self.reading(self.linear(hidden))
            return read


def set_linear(output: LinearOutput | TwoLayerOutput, weight: Tensor, bias: Tensor) -> None:
    """Make an output answer `weight` x + `bias` for features x: (K, F) and (K,), logits, or label units of a regression.

    K is C for a classification, else 1. A regression whose output squashes takes them before the sigmoid, over its range.
    Two layers keep their first one: the second takes it back by its pseudo-inverse.
    """
    reading, last = output.reading, output.linear
    if reading.kind == "regression" and not reading.squash:
        span = reading.high - reading.low
        weight, bias = weight / span, (bias - reading.low) / span
    if isinstance(output, TwoLayerOutput):
        first = output.hidden
        weight = weight @ torch.linalg.pinv(first.weight.detach().to(weight))
        bias = bias - weight @ first.bias.detach().to(weight)
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)


def divide_logits(output: LinearOutput | TwoLayerOutput, temperature: float) -> None:
    """Make the logits of an output those that it gives now, divided by `temperature`. Not for a regression."""
    if output.reading.kind == "regression":
        raise UsageError("temperature: a regression has no logits to divide")
    with torch.no_grad():
        output.linear.weight.div_(temperature)
        output.linear.bias.div_(temperature)


class Reading(nn.Module):
    """How the last layer's numbers are read: `classification` logits, `binary` one logit, `regression` label units.

    Regression gives low + (high - low) * z for `value_range` (low, high), z being the raw number, or its sigmoid when
    `squash` is set, so that no prediction leaves the range. Raises `UsageError` for what does not fit the kind.
    """

    def __init__(self, kind: Kind, classes: int, value_range: tuple[float, float] | None, squash: bool) -> None:
        super().__init__()
        _check(kind, classes, value_range, squash)
        self.kind = kind
        self.low, self.high = (0.0, 1.0) if value_range is None else value_range
        self.squash = squash

    def forward(self, raw: Tensor) -> Tensor:
        """`raw` (B, C) to (B, C) for classification and (B,) for the others, float32."""
        raw = raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
        if self.kind == "classification":
            return raw
        single = raw.squeeze(1)
        if self.kind == "binary":
            return single
        return self.low + (self.high - self.low) * (single.sigmoid() if self.squash else single)

    def start(self, last: nn.Linear) -> None:
        """Set where the last layer begins.

        A single feature is a similarity that already points the right way, and a drawn slope might turn it round: a
        regression begins at slope 1 from the bottom of its range to the top, a logit at 10 (x - 1/2) (ours). Otherwise the bias
        puts a regression's first predictions in the middle of its range.
        """
        if last.in_features == 1 and self.kind != "classification":
            steep = self.squash or self.kind == "binary"
            nn.init.constant_(last.weight, 10.0 if steep else 1.0)
            nn.init.constant_(last.bias, -5.0 if steep else 0.0)
        elif self.kind == "regression":
            nn.init.constant_(last.bias, 0.0 if self.squash else 0.5)


def _check(kind: Kind, classes: int, value_range: tuple[float, float] | None, squash: bool) -> None:
    if kind == "classification" and classes < 2:
        raise UsageError(f"classes: a classification output needs 2 or more, got {classes}")
    if kind != "classification" and classes != 1:
        raise UsageError(f"classes: a {kind} output gives one number, got {classes}; pass 1")
    if kind != "regression" and (value_range is not None or squash):
        raise UsageError(f"value_range and squash: they are for regression, got them for {kind}; leave them out")
    if kind == "regression" and (value_range is None or not value_range[0] < value_range[1]):
        raise UsageError(f"value_range: a regression output needs (low, high) with low < high, got {value_range}")
