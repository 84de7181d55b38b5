"""Where the products of a transformers encoder's layer are, told by their names, and hooks that adapt them for a pass.

Knows nothing of whole models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from smoothtune.config.adaptations import Target
from smoothtune.errors import UsageError
from smoothtune.nn.adaptation import InLayer
from smoothtune.nn.adapters import Site

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
# The product whose result an adapter at a site reads.
_BEFORE: dict[Target, Site] = {"output": "attention", "down": "output"}


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


@contextmanager
def adapting(block: nn.Module, names: Mapping[Target, str], change: InLayer) -> Iterator[None]:
    """Inside, the products of `block`, at the paths `names`, are those with `change`."""
    with ExitStack() as during:
        for target, name in names.items():
            if change.touches(target) or (change.adapts and target in _BEFORE):
                during.enter_context(_adapted(block.get_submodule(name), target, change))
        yield


def _adapted(module: nn.Module, target: Target, change: InLayer) -> Any:
    site = _BEFORE.get(target)

    def hook(module: nn.Module, arguments: tuple[Any, ...], y: Tensor) -> Tensor:
        y = change.low_rank(target, arguments[0], y)
        return y if site is None else change.adapted(site, y)

    return module.register_forward_hook(hook)
