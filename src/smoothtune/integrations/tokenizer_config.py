"""What tokenizer.json does not say and `AutoTokenizer` asks for: tokenizer_config.json. Knows nothing of models or files."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

# Takes tokenizer.json as it stands. Without a class AutoTokenizer takes that of the model_type, which for a BERT
# lower-cases, whatever the file says.
_CLASS = "PreTrainedTokenizerFast"


def tokenizer_config(tokenizer: Tokenizer, *, pad_id: int, max_length: int, segments: bool) -> dict[str, Any]:
    """The object of tokenizer_config.json: with it `AutoTokenizer` gives the ids of `tokenizer`.

    Asked to cut, it cuts at `max_length` tokens. `segments`: whether the encoder reads token_type_ids; one that does not
    would refuse them.
    """
    return {
        "tokenizer_class": _CLASS,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
        **({"split_special_tokens": True} if tokenizer.encode_special_tokens else {}),
        **_special_tokens(tokenizer, pad_id),
    }


def _special_tokens(tokenizer: Tokenizer, pad_id: int) -> dict[str, str]:
    """The tokens of padding and of the unknown, and those that it puts around a text, as far as it has them."""
    around = tokenizer.encode("").tokens
    found = {"pad_token": tokenizer.id_to_token(pad_id), "unk_token": getattr(tokenizer.model, "unk_token", None)}
    if len(around) == 2:
        found["cls_token"], found["sep_token"] = around
    return {name: token for name, token in found.items() if token is not None}
