"""Where the products of a transformers encoder's layer are, by their names. Knows nothing of whole models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from smoothtune.config.adaptations import Target
from smoothtune.errors import UsageError

_AROUND: dict[Target, str] = {"output": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"}
_LAYOUTS: tuple[dict[Target, str], ...] = (
    # BERT, RoBERTa, ELECTRA and their kin
    {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value", **_AROUND},
    # DeBERTa v2 and v3
    {
        "query": "attention.self.query_proj",
        "key": "attention.self.key_proj",
        "value": "attention.self.value_proj",
        **_AROUND,
    },
    # DistilBERT
    {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
    },
    # MPNet
    {
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "output": "attention.attn.o",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
)


def product_names(block: nn.Module, model_type: str) -> Mapping[Target, str]:
    """The paths of the products inside a layer.

    Raises `UsageError` for an unknown layout. Layouts where one product serves several (ModernBERT's Wqkv, the first
    DeBERTa's in_proj) are not known.
    """
    inside = {path for path, module in block.named_modules() if isinstance(module, nn.Linear)}
    for layout in _LAYOUTS:
        if inside >= set(layout.values()):
            return layout
    raise UsageError(
        f"lora, adapters: smoothtune does not know where the layers of model_type {model_type!r} have their products for "
        "query, key, value, output, up and down; it knows BERT, RoBERTa, ELECTRA, DistilBERT, MPNet, DeBERTa v2 and v3, and "
        "what is built like them; choose such an encoder, or train neither"
    )
