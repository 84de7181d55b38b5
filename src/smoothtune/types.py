"""The shapes of things that cross room borders: tokens, batches and their parts.

Shape legend, used in every docstring: `B` examples of a batch, `R` encoder rows (`B`, or `2B` when the two texts of
each pair are stacked), `T` tokens, `D` encoder width, `F` features of a trunk, `C` classes, `L` encoder layers.
This module knows nothing of files, models or training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["classification", "binary", "regression"]
Input = Literal["single", "separate", "joint"]
Needs = Literal["states", "cls", "mean"]
SpecialTokens = Literal["text", "tokens"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an encoder reads: `input_ids` (R, T) int64, `mask` (R, T) bool (True = real), `segments` (R, T) int64 or None."""

    input_ids: Tensor
    mask: Tensor
    segments: Tensor | None = None

    def rows(self, begin: int, end: int) -> Tokens:
        """Rows `begin` to `end` alone."""
        segments = None if self.segments is None else self.segments[begin:end]
        return Tokens(self.input_ids[begin:end], self.mask[begin:end], segments)

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on another device."""
        return Tokens(
            self.input_ids.to(device),
            self.mask.to(device),
            None if self.segments is None else self.segments.to(device),
        )


@dataclass(frozen=True, slots=True)
class MixedPart:
    """A run of rows of a mixed batch: `rows` of them, at most `width` tokens long, which `tasks` answer."""

    tasks: tuple[str, ...]
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """Rows of several tasks for one pass of the encoder, in prediction: no labels, and no training.

    `tokens` holds the R rows of all `parts`, one part after another (the two texts of pairs stacked within their part). The
    tasks of one part share an adaptation, or have none.
    """

    tokens: Tokens
    parts: tuple[MixedPart, ...]

    def to(self, device: torch.device) -> MixedBatch:
        """The same batch on another device."""
        return self if self.tokens.mask.device == device else replace(self, tokens=self.tokens.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task.

    `tokens` holds R rows: B for `single` and `joint` input, 2B for `separate` (rows 0..B-1 are the first texts, rows
    B..2B-1 the second). `labels` is (B,): int64 class numbers, float32 0/1 for binary, float32 label units for
    regression, or None in prediction. `rows` (B,) int64 are row numbers of the data file, for error messages.
    `states` (R, T, D) are the encoder's answer where it is kept, so that no encoder has to run: then `tokens` is their mask
    alone (`input_ids` is (R, 0)), and a pooled state stands for a text of one token.
    """

    task: str
    input: Input
    tokens: Tokens
    labels: Tensor | None
    rows: Tensor
    states: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device (`rows` stay where they are)."""
        if self.tokens.mask.device == device:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        states = None if self.states is None else self.states.to(device)
        return replace(self, tokens=self.tokens.to(device), labels=labels, states=states)

    def cut(self, pieces: int) -> list[Batch]:
        """The same examples in at most `pieces` batches of nearly equal size, in order."""
        count, rows = min(pieces, len(self)), len(self)
        if count == 1:
            return [self]
        bounds = [rows * number // count for number in range(count + 1)]
        return [self._part(begin, end) for begin, end in pairwise(bounds)]

    def _part(self, begin: int, end: int) -> Batch:
        """Examples `begin` to `end`, with both texts of pairs."""
        whole = len(self.tokens.mask)
        places = [row for first in range(0, whole, len(self)) for row in range(first + begin, first + end)]
        tokens = self.tokens
        segments = None if tokens.segments is None else tokens.segments[places]
        return replace(
            self,
            tokens=Tokens(tokens.input_ids[places], tokens.mask[places], segments),
            labels=None if self.labels is None else self.labels[begin:end],
            rows=self.rows[begin:end],
            states=None if self.states is None else self.states[places],
        )
