"""How many texts are cut, and how much of them the tokenizer does not know: counted in blocks as one by one, and told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smoothtune.data import columns as blocks_of
from smoothtune.data.text_counts import TextCounts
from smoothtune.data.tokenising import encode, in_memory, load_tokenizer
from smoothtune.types import Input
from tests.tiny import write_tokenizer

ODD = "\U0001f600"
ROWS = [
    ("the cat", "a dog"),
    (ODD, f"{ODD} {ODD}"),
    (f"the {ODD} cat", "rain"),
    (" ".join(["sun"] * 30), "moon"),
    ("star", ODD),
]


@pytest.mark.parametrize("size", [2, 1 << 16])
@pytest.mark.parametrize("reads", ["single", "separate", "joint"])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [1, 4], [3], [0, 2]])
def test_counts_are_those_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Input, chosen: list[int], size: int
) -> None:
    monkeypatch.setattr(blocks_of, "BLOCK", size)
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    counts = TextCounts.of(tokenizer, reads, 12)
    encoded = encode(tokenizer, ROWS, reads, 12)
    for column in in_memory(encoded):
        counts.add(column, np.array(chosen))
    unknown = tokenizer.token_to_id("[UNK]")
    inner = [
        [number for number, special in zip(row.ids, row.special_tokens_mask, strict=True) if not special]
        for column in encoded
        for row in (column[at] for at in chosen)
    ]
    assert counts.texts == len(inner)
    assert counts.cut == (3 in chosen)
    assert counts.tokens == sum(map(len, inner))
    assert counts.unknown == sum(ids.count(unknown) for ids in inner)
    assert counts.unread == sum(set(ids) == {unknown} for ids in inner)


def test_what_is_said_and_from_when() -> None:
    def said(**more: int) -> list[str]:
        return list(TextCounts(limit=128, added=2, unknown_token=1, **more).sentences("t.train"))

    assert said() == said(texts=100, cut=9, tokens=100, unknown=9) == []
    assert said(texts=100, cut=10) == [
        "warning: t.train: 10 of 100 texts (10%) are longer than 128 tokens (encoder.max_length); what comes after is cut"
    ]
    assert said(texts=100, tokens=100, unknown=10) == [
        "warning: t.train: 10% of the tokens stand for words that the encoder's tokenizer does not know"
    ]
    assert said(texts=1000, tokens=10_000, unknown=9, unread=9) == []
    assert said(texts=100, tokens=10_000, unknown=1, unread=1) == [
        "warning: t.train: 1 text has no word that the encoder's tokenizer knows: to the model such texts are alike"
    ]
