"""Special tokens, such as [SEP], that a text happens to spell: they stay text. Knows nothing of files and batches.

Tokenizers look for them in texts unless told otherwise. Some models (Unigram, whole words) then still have them in their
vocabulary: there the unknown token takes their place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from smoothtune.data.tokenizer_file import panics_told
from smoothtune.errors import ModelFileError


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What stands for an encoding of the tokenizer's in which tokens were replaced."""

    ids: list[int]
    type_ids: list[int]
    overflowing: list[Any]

    def __len__(self) -> int:
        return len(self.ids)


class _Guard(NamedTuple):
    """The special tokens that the tokenizer reads in a text all the same, how many it adds to a row, and the unknown token."""

    ids: frozenset[int]
    added: dict[bool, int]
    unknown: int | None


_guards: WeakKeyDictionary[Tokenizer, _Guard] = WeakKeyDictionary()


def read_as_text(tokenizer: Tokenizer) -> None:
    """Let special tokens that a text spells be text."""
    tokenizer.encode_special_tokens = True


def reads_as_text(tokenizer: Tokenizer) -> bool:
    """Whether special tokens that a text spells are text."""
    return bool(tokenizer.encode_special_tokens)


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of its special tokens: those that it declares, and those that it puts around a text."""
    declared = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return frozenset(declared.union(tokenizer.encode("").ids))


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token that stands for what the vocabulary lacks; None where there is none."""
    token = getattr(tokenizer.model, "unk_token", None)
    if token is None:
        found = json.loads(tokenizer.to_str())["model"].get("unk_id")
        return found if isinstance(found, int) else None
    number = tokenizer.token_to_id(token)
    return None if number is None else int(number)


def as_text(tokenizer: Tokenizer, encodings: list[Any], *, pairs: bool) -> list[Any]:
    """The encodings, of `pairs` or single texts, with the unknown token where a text spells a special one.

    Nothing changes for a tokenizer that obeys special tokens in texts (`reads_as_text`). Raises `ModelFileError` where there
    is no unknown token.
    """
    guard = _guard(tokenizer) if reads_as_text(tokenizer) else None
    if guard is None or not guard.ids:
        return encodings
    return [_row(tokenizer, guard, encoding, guard.added[pairs]) for encoding in encodings]


def _row(tokenizer: Tokenizer, guard: _Guard, encoding: Any, added: int) -> Any:
    ids = encoding.ids
    if sum(map(guard.ids.__contains__, ids)) <= added:
        return encoding
    spelt = [number in guard.ids and not mask for number, mask in zip(ids, encoding.special_tokens_mask, strict=True)]
    if guard.unknown is None and any(spelt):
        token = tokenizer.id_to_token(ids[spelt.index(True)])
        raise ModelFileError(
            f"tokenizer: takes {token!r} in a text for its special token and has no unknown token to put in its place; "
            'remove it from the texts, or set encoder.special_tokens = "tokens"'
        )
    ids = [guard.unknown if special else number for number, special in zip(ids, spelt, strict=True)]
    return TokenRow(ids, encoding.type_ids, encoding.overflowing)


def _guard(tokenizer: Tokenizer) -> _Guard:
    guard = _guards.get(tokenizer)
    if guard is None:
        guard = _guards[tokenizer] = _probed(tokenizer)
    return guard


def _probed(tokenizer: Tokenizer) -> _Guard:
    special = special_ids(tokenizer)
    spelt = [token for number in sorted(special) if (token := tokenizer.id_to_token(number))]
    if not _spelt_ids(tokenizer, spelt) & special:
        return _Guard(frozenset(), {}, None)
    unknown = unknown_id(tokenizer)
    guarded = special - {unknown}
    if not _spelt_ids(tokenizer, spelt) & guarded:
        return _Guard(frozenset(), {}, None)
    around = {False: tokenizer.encode("").ids, True: tokenizer.encode("", "").ids}
    return _Guard(
        frozenset(guarded), {pairs: sum(map(guarded.__contains__, ids)) for pairs, ids in around.items()}, unknown
    )


def _spelt_ids(tokenizer: Tokenizer, tokens: Sequence[str]) -> set[int]:
    """The ids of texts that spell `tokens`, alone and between letters."""
    found: set[int] = set()
    for text in (text for token in tokens for text in (token, f"a {token} a", f"a{token}a")):
        with suppress(ModelFileError), panics_told("tokenizer: fails"):  # a vocabulary without an unknown token may
            found.update(tokenizer.encode(text, add_special_tokens=False).ids)
    return found
