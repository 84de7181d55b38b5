"""How much of some texts a model reads: texts that are cut, and tokens that stand for unknown words. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from smoothtune.data.columns import blocks
from smoothtune.data.special_tokens import unknown_id
from smoothtune.data.tokenising import TokenColumn
from smoothtune.types import Input

# Shares from which a sentence is due (ours).
_CUT, _UNKNOWN, _UNREAD = 0.1, 0.1, 0.01


@dataclass(slots=True)
class TextCounts:
    """Counts over texts (joint: pairs) of at most `limit` tokens, to which `added` special ones belong.

    `cut` texts are longer; `unknown` of the `tokens` stand for what the tokenizer does not know; `unread` texts consist of
    such tokens alone.
    """

    limit: int
    added: int
    unknown_token: int | None
    texts: int = 0
    cut: int = 0
    tokens: int = 0
    unknown: int = 0
    unread: int = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer, reads: Input, limit: int) -> TextCounts:
        """Counts that begin at 0."""
        around = tokenizer.encode("", "") if reads == "joint" else tokenizer.encode("")
        return cls(limit, len(around.ids), unknown_id(tokenizer))

    def add(self, column: TokenColumn, rows: np.ndarray) -> None:
        """Count the texts `rows` (n,) of a column."""
        for part in blocks(len(rows)):
            self._add(column, rows[part])

    def _add(self, column: TokenColumn, rows: np.ndarray) -> None:
        lengths = column.lengths(rows)
        self.texts += len(rows)
        self.cut += int((column.full[rows] > self.limit).sum())
        self.tokens += int(lengths.sum()) - self.added * len(rows)
        if self.unknown_token is None:
            return
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(column.offsets[rows] - (ends - lengths), lengths)
        sums = np.concatenate([[0], np.cumsum(column.ids[places] == self.unknown_token)])
        unknown = sums[ends] - sums[ends - lengths]
        self.unknown += int(unknown.sum())
        self.unread += int(((unknown > 0) & (unknown == lengths - self.added)).sum())

    @property
    def unknown_share(self) -> float:
        """The share of unknown tokens, 0 to 1."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def sentences(self, where: str) -> Iterator[str]:
        """A warning for what is more than a little; `where` is the task and its split, or empty."""
        warning = f"warning: {where}{': ' if where else ''}"
        if self.texts and self.cut >= _CUT * self.texts:
            share = f"{self.cut:,} of {self.texts:,} texts ({self.cut / self.texts:.0%})"
            yield f"{warning}{share} are longer than {self.limit} tokens (encoder.max_length); what comes after is cut"
        if self.unknown_share >= _UNKNOWN:
            yield f"{warning}{self.unknown_share:.0%} of the tokens stand for words that the encoder's tokenizer does not know"
        if self.texts and self.unread >= max(1, _UNREAD * self.texts):
            texts = "1 text has" if self.unread == 1 else f"{self.unread:,} of {self.texts:,} texts have"
            yield f"{warning}{texts} no word that the encoder's tokenizer knows: to the model such texts are alike"
