"""`smart-pytorch` around transformers' BERT, as its README does it: a training step with its term, beside ours.

The package is a few lines of Python above torch: it is imported from its own environment (`make bench-envs`) into this process,
so that its steps and ours take turns within one process with one torch. Departures from the README, none to its loss: the
symmetric KL is the package's own `sym_kl_loss`, since ours is symmetric; the attention mask is given, since the batch is padded;
attention is eager, as where Trainer is at its best here. The embedding output is fed back as `inputs_embeds`, as there, so that
position, type and LayerNorm are applied twice.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertForSequenceClassification

from environments import ENVIRONMENTS, python_of, why_missing
from harness import checkpoint
from smoothtune.types import Batch

NAME = "smart-pytorch"
CLASSES = 5
RATE = 1e-9  # as for our side: the model stays what it is


def smart_package() -> Any:
    """The module `smart_pytorch`. Raises `ImportError` saying why it is missing."""
    if python_of(NAME) is None:
        raise ImportError(why_missing(NAME))
    for folder in (ENVIRONMENTS / NAME / "lib").glob("python*/site-packages"):
        sys.path.append(str(folder))  # at the end: torch stays ours
    return importlib.import_module("smart_pytorch")


class SmartSide:
    """A model of transformers, its AdamW, and the term of `smart-pytorch` on one batch of single texts."""

    def __init__(self, batch: Batch, *, bfloat16: bool) -> None:
        package = smart_package()
        model: Any = BertForSequenceClassification.from_pretrained(
            checkpoint(), num_labels=CLASSES, attn_implementation="eager"
        )
        self._model = model.train()
        self._term = package.SMARTLoss(eval_fn=self._logits, loss_fn=package.sym_kl_loss)
        self._optimiser = torch.optim.AdamW(self._model.parameters(), lr=RATE, fused=True)
        self._bfloat16 = bfloat16
        assert batch.labels is not None
        self._ids, self._mask, self._labels = batch.tokens.input_ids, batch.tokens.mask.long(), batch.labels

    def _logits(self, embedded: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, T, D)."""
        pooled = self._model.bert(inputs_embeds=embedded, attention_mask=self._mask)[1]
        logits: Tensor = self._model.classifier(pooled)
        return logits

    def step(self) -> None:
        """One training step with the term at weight 1."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
            logits = self._model(input_ids=self._ids, attention_mask=self._mask).logits
            embedded = self._model.bert.embeddings(self._ids)
            loss = F.cross_entropy(logits, self._labels) + self._term(embedded, logits)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
