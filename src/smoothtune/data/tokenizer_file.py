"""Reading a tokenizer.json that a stranger wrote, and what its Rust library does at one that is wrong.

Knows nothing of texts or token columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from smoothtune.bounded import UnreadableError, parse_json, read_text, reason_of
from smoothtune.errors import ModelFileError

_MOST = 1 << 27  # bytes; vocabularies of a million tokens need a third of it
# A text may grow by this factor while it is normalised: chained replacements multiply (ours).
_GROWTH = 100
# WordPiece takes the cube of a word's length in time; BERT's limit is 100.
_LONGEST_WORD = 1_000
_AGAIN = "save it again with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`"


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file. Raises `ModelFileError` naming the file when it cannot be read or would never end."""
    try:
        text = read_text(path, inside=path.parent, most=_MOST)
        if '"Replace"' in text or '"Prepend"' in text:
            _check_growth(parse_json(text))
        with panics_told(f"{path}: is not a tokenizer file"):
            tokenizer = Tokenizer.from_str(text)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: is not a tokenizer file ({reason_of(error)}); {_AGAIN}") from None
    _check_words(path, tokenizer)
    return tokenizer


@contextmanager
def panics_told(what: str) -> Iterator[None]:
    """Makes a `ModelFileError` of what the Rust library raises: a bare `Exception`, or a panic, which is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise ModelFileError(f"{what} ({reason_of(error)}); {_AGAIN}") from None
        raise


def _check_growth(content: Any) -> None:
    growth = _growth(content.get("normalizer")) if isinstance(content, dict) else 1
    if growth > _GROWTH:
        raise UnreadableError(f"its normalizer makes texts more than {_GROWTH} times as long")


def _growth(normalizer: Any) -> int:
    """By how much the parts of a normalizer together can lengthen a text, at most."""
    if not isinstance(normalizer, dict):
        return 1
    if normalizer.get("type") == "Sequence" and isinstance(normalizer.get("normalizers"), list):
        product = 1
        for part in normalizer["normalizers"]:
            product = min(product * _growth(part), _GROWTH + 1)
        return product
    content = str(normalizer.get("content") or normalizer.get("prepend") or "")
    pattern = normalizer.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    replaced = len(found.encode()) if isinstance(found, str) else 0  # a regular expression may match nothing at all
    return max(1, -(-len(content.encode()) // replaced) if replaced else 1 + len(content.encode()))


def _check_words(path: Path, tokenizer: Tokenizer) -> None:
    longest = getattr(tokenizer.model, "max_input_chars_per_word", None)
    if isinstance(longest, int) and longest > _LONGEST_WORD:
        raise ModelFileError(
            f"{path}: reads words of up to {longest:,} characters, expected at most {_LONGEST_WORD:,}; "
            "lower max_input_chars_per_word"
        )
