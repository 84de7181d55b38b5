"""The models that `transformers.Trainer` trains: each takes what the collator makes and returns (loss, logits).

They know nothing of Trainer. `MeanPooled` and `Siamese` are the modules of our `mean` and `siamese` trunks, written on
`transformers.BertModel` as its users write them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """Token states (R, T, D) and mask (R, T) to the mean over real tokens, (R, D)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


class MeanPooled(nn.Module):
    """One text, or a pair as one sequence: mean of the token states, dropout, linear."""

    def __init__(self, checkpoint: str, classes: int, **settings: Any) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(checkpoint, add_pooling_layer=False, **settings)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(self.bert.config.hidden_size, classes)

    def forward(self, labels: Tensor | None = None, **tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and logits (B, C)."""
        states = self.bert(**tokens).last_hidden_state
        logits = self.classifier(self.dropout(mean_of(states, tokens["attention_mask"])))
        return nn.functional.cross_entropy(logits, labels) if labels is not None else logits.sum(), logits


class Siamese(nn.Module):
    """A pair, both texts stacked in one call: u, v, |u - v|, u * v of the mean states, dropout, one logit."""

    def __init__(self, checkpoint: str, **settings: Any) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(checkpoint, add_pooling_layer=False, **settings)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(4 * self.bert.config.hidden_size, 1)

    def forward(self, labels: Tensor | None = None, **tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and logits (B,) of tokens (2B, T): first all first texts, then all second texts."""
        u, v = mean_of(self.bert(**tokens).last_hidden_state, tokens["attention_mask"]).chunk(2)
        logits = self.classifier(self.dropout(torch.cat([u, v, (u - v).abs(), u * v], dim=1))).squeeze(1)
        if labels is None:
            return logits.sum(), logits
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)), logits


def build(spec: dict[str, Any]) -> nn.Module:
    """The module of a spec: `Siamese` for separate texts, else BertForSequenceClassification, or `MeanPooled` if so asked."""
    options = spec.get("options", {})
    settings = {"attn_implementation": options["attention"]} if "attention" in options else {}
    if spec["reads"] == "separate":
        return Siamese(spec["checkpoint"], **settings)
    if options.get("head") == "mean":
        return MeanPooled(spec["checkpoint"], spec["labels"], **settings)
    model: nn.Module = BertForSequenceClassification.from_pretrained(
        spec["checkpoint"], num_labels=spec["labels"], **settings
    )
    return model
