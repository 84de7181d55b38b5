"""Tiny real encoders and tokenizers made offline, shared by the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = (
    "the a an of to and in is it was for on with as at by how do i what can my you are not this that good bad film "
    "very great awful dull bright cat dog house tree red blue green one two three four five who where when why best way "
    "make take get learn buy sell fast slow big small happy sad rain sun moon star"
).split()


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer over a few words and all letters, with BERT's template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [piece for letter in letters for piece in (letter, f"##{letter}") if piece not in pieces] + list(".,?!'-")
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_bert(folder: Path, *, width: int = 16, layers: int = 2, heads: int = 2, seed: int = 0) -> Path:
    """A BERT checkpoint folder (config.json, model.safetensors, tokenizer.json) with random weights."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=vocabulary["[PAD]"],
    )
    BertModel(config).save_pretrained(folder)
    return folder
