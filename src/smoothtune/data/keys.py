"""64-bit hashes that stand for texts, pairs of texts and labels, so that millions can be compared as numbers.

Equal texts have equal keys on every machine; different ones share a key with probability 2^-64. Knows nothing of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BYTES = 8


def text_keys(texts: Iterable[str]) -> NDArray[np.uint64]:
    """A key of each text, (N,), its white space normalised and its case kept."""
    blake = hashlib.blake2b
    digests = [blake(" ".join(text.split()).encode(), digest_size=_BYTES).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def pair_keys(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A key of each pair of text keys (N,) and (N,), in either order, (N,)."""
    pairs = np.sort(np.stack([first, second], axis=1), axis=1).astype("<u8").tobytes()
    blake, size = hashlib.blake2b, 2 * _BYTES
    digests = [blake(pairs[at : at + size], digest_size=_BYTES).digest() for at in range(0, len(pairs), size)]
    return np.frombuffer(b"".join(digests), dtype="<u8")


@lru_cache(maxsize=4096)
def label_key(label: str) -> int:
    """The key of a label in its one spelling (`values.label_text`)."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=_BYTES).digest(), "little")


def label_keys(labels: Iterable[str]) -> NDArray[np.uint64]:
    """The keys of labels, (C,)."""
    return np.fromiter((label_key(label) for label in labels), dtype=np.uint64)
