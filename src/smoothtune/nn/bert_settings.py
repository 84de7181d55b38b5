"""What a config.json says of a BERT, with BERT-base's values for what it leaves out. Knows nothing of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from smoothtune.errors import ModelFileError

# What BERT-base has; config.json files of early checkpoints leave some of these out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
# Far more than any BERT has, and few enough to be counted; the weights bound what they come to together.
_MOST: dict[str, int] = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 1 << 17,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 24,
}
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_POSITIVE = ("initializer_range", "layer_norm_eps")


def settings_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a BERT. Raises `ModelFileError` for a value that none can have, naming its key."""
    settings = {**_DEFAULTS, **architecture}
    for key, most in _MOST.items():
        if not is_whole(settings[key], 1, most):
            raise _refusal(key, settings[key], f"a whole number from 1 to {most:,}")
    for key in _RATES:
        if not _is_number(settings[key]) or not 0 <= settings[key] < 1:
            raise _refusal(key, settings[key], "a number from 0 to below 1")
    for key in _POSITIVE:
        if not _is_number(settings[key]) or not 0 < settings[key] <= 1:
            raise _refusal(key, settings[key], "a number above 0, at most 1")
    return settings


def check_padding(architecture: Mapping[str, Any]) -> None:
    """Raise `ModelFileError` where an encoder's `pad_token_id` is no token id."""
    padding = architecture.get("pad_token_id")
    if padding is not None and not is_whole(padding, 0, (1 << 31) - 1):
        raise _refusal("pad_token_id", padding, "a token id, or null")


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether `value` is a whole number within bounds; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refusal(key: str, value: object, wanted: str) -> ModelFileError:
    return ModelFileError(
        f"config.json: {key} is {repr(value)[:80]}, expected {wanted}; take the checkpoint's own file"
    )
