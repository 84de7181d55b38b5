"""The pieces of BERT (Devlin et al., 2019, section 3): embeddings and one layer, each in its padded, packed and ragged form.

Knows nothing of how many layers there are, of checkpoints or of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.errors import UsageError
from smoothtune.nn import fused
from smoothtune.nn.adaptation import UNCHANGED, InLayer
from smoothtune.nn.attention import SelfAttention
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.packing import Packing
from smoothtune.nn.products import in_prediction
from smoothtune.types import Tokens

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
}
_KERNEL_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}


class BertEmbeddings(nn.Module):
    """Word + position + segment, normalised, with dropout.

    With `sparse_gradient`, which an optimiser that takes it sets, the kernels give the word table a sparse gradient.
    """

    def __init__(self, settings: Mapping[str, Any], dropout: float) -> None:
        super().__init__()
        width = settings["hidden_size"]
        self.word = nn.Embedding(settings["vocab_size"], width)
        self.position = nn.Embedding(settings["max_position_embeddings"], width)
        self.segment = nn.Embedding(settings["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=settings["layer_norm_eps"])
        self.dropout = Dropout(dropout)
        self.sparse_gradient = False

    def forward(self, tokens: Tokens) -> Tensor:
        """(R, T) token ids to (R, T, D). Without segments, or in a checkpoint with one, all tokens are of segment 0."""
        segmented = tokens.segments is not None and self.segment.num_embeddings > 1
        segment = self.segment(tokens.segments) if segmented else self.segment.weight[0]
        places = self.position.weight[: tokens.input_ids.shape[1]] + segment
        embedded: Tensor = self.dropout(self.norm(self.word(tokens.input_ids) + places))
        return embedded

    def ragged(self, tokens: Tokens, packing: Packing) -> Tensor:
        """The same for packed tokens by torch, (N, D)."""
        segmented = tokens.segments is not None and self.segment.num_embeddings > 1
        kinds = packing.pack(tokens.segments) if segmented and tokens.segments is not None else None
        segment = self.segment.weight[0] if kinds is None else self.segment(kinds)
        places = self.position(packing.within) + segment
        embedded: Tensor = self.dropout(self.norm(self.word(packing.pack(tokens.input_ids)) + places))
        return embedded

    def packed(self, tokens: Tokens, packing: Packing, dtype: torch.dtype) -> Tensor:
        """The same for packed tokens, (N, D) in `dtype`."""
        segmented = tokens.segments is not None and self.segment.num_embeddings > 1
        segments = packing.pack(tokens.segments) if segmented and tokens.segments is not None else None
        tables = (self.word.weight, self.position.weight, self.segment.weight)
        drop = self.dropout.drop(packing.places)
        ids = packing.pack(tokens.input_ids)
        _check_rows(ids, self.word, "token id", "take the tokenizer that was saved with this checkpoint")
        if segments is not None:
            _check_rows(segments, self.segment, "segment", "number the texts of a pair 0 and 1")
        return fused.embedding(tables, self.norm, ids, segments, packing, drop, dtype, sparse=self.sparse_gradient)


class BertLayer(nn.Module):
    """Self-attention, then a two-layer MLP; each with dropout, a residual sum and LayerNorm after it."""

    def __init__(self, settings: Mapping[str, Any], dropout: float, attention_dropout: float) -> None:
        super().__init__()
        width, inner, eps = settings["hidden_size"], settings["intermediate_size"], settings["layer_norm_eps"]
        self.attention = SelfAttention(width, settings["num_attention_heads"], attention_dropout)
        self.attention_drop = Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.activation = ACTIVATIONS[settings["hidden_act"]]()
        self.kernel_activation = _KERNEL_ACTIVATIONS[settings["hidden_act"]]
        self.down = nn.Linear(inner, width)
        self.output_drop = Dropout(dropout)
        self.output_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, mask: Tensor, change: InLayer = UNCHANGED) -> Tensor:
        """`x` (R, T, D) and `mask` (R, T) bool to (R, T, D), with the tasks' `change` of this layer."""
        return self._after(x, self.attention(x, mask, change), change)

    def ragged(self, x: Tensor, packing: Packing, change: InLayer = UNCHANGED) -> Tensor:
        """The same for packed tokens without attention dropout, by torch, (N, D) to (N, D)."""
        return self._after(x, self.attention.ragged(x, packing, change), change)

    def _after(self, x: Tensor, attended: Tensor, change: InLayer) -> Tensor:
        x = self.attention_norm(x + self.attention_drop(change.adapted("attention", attended)))
        a = self.activation(change.low_rank("up", x, self.up(x)))
        y = change.adapted("output", change.low_rank("down", a, self.down(a)))
        normed: Tensor = self.output_norm(x + self.output_drop(y))
        return normed

    def packed(self, x: Tensor, packing: Packing, change: InLayer = UNCHANGED) -> Tensor:
        """The same for packed tokens, (N, D) to (N, D)."""
        y = self.attention.packed(x, packing, change)
        y, bias = change.adapted_product("attention", y, self.attention.output.bias)
        x = fused.residual_norm(y, bias, x, self.attention_norm, self.attention_drop.drop(packing.places))
        a = self._activated(x, change)
        y = change.product("down", a, self.down.weight)
        y, bias = change.adapted_product("output", y, self.down.bias)
        return fused.residual_norm(y, bias, x, self.output_norm, self.output_drop.drop(packing.places))

    def _activated(self, x: Tensor, change: InLayer) -> Tensor:
        """The activation of the first product of the MLP with its bias: `x` (N, D) to (N, I).

        Tiles take the GELU of unrounded sums where nothing is added to them, so in a mixed pass as in one of a run alone.
        """
        tiles = in_prediction(x, self.up.weight) if self.kernel_activation == "gelu" else None
        if tiles is not None and not change.touches("up"):
            return tiles.gelu(x, self.up.bias)
        u = change.product("up", x, self.up.weight)
        a = fused.activation(u, self.up.bias, self.kernel_activation)
        if tiles is None:
            return a
        for begin, end in change.untouched("up"):
            a[begin:end] = tiles.gelu(x[begin:end], self.up.bias)
        return a


def _check_rows(index: Tensor, table: nn.Embedding, what: str, remedy: str) -> None:
    """Raise `UsageError` where `index` (N,) int64 names a row that `table` does not have: kernels do not look."""
    if index.dtype != torch.int64:
        raise UsageError(f"encoder: a {what} is {index.dtype}, expected torch.int64")
    if not index.numel():
        return
    low, high = (int(bound) for bound in index.aminmax())
    if low < 0 or high >= table.num_embeddings:
        wrong = low if low < 0 else high
        raise UsageError(f"encoder: {what} {wrong} is not in its table of {table.num_embeddings:,} rows; {remedy}")
