"""Sentence embeddings of the bundled encoder by transformers' `AutoModel`, in float32, and a file of them for each set.

Mean of the token states, length 1, at most 256 tokens: as the encoder's authors use it. None of smoothtune's own code computes.

Run as a worker it writes the file of a set: a spec holds `texts` (a JSON file with a list of texts), `checkpoint` and `out`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from worker import Report, Spec, run_worker

MAX_TOKENS = 256
BATCH = 32


class Embeddings(NamedTuple):
    """Vectors (n, D) of n texts, and the seconds of computing them, or their share of a file's seconds."""

    vectors: np.ndarray
    seconds: float


def embed(checkpoint: str, texts: Sequence[str]) -> Embeddings:
    """Embeddings of the texts, computed in batches of similar length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).float().eval()
    began = time.perf_counter()
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        batch = [texts[number] for number in numbers]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state  # (B, T, D)
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        vectors[numbers] = torch.nn.functional.normalize(means, dim=1).numpy()
    return Embeddings(vectors, time.perf_counter() - began)


def key_of(text: str) -> str:
    """The name of a text in a file."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_file(spec: Spec) -> Report:
    """Embed all texts of a set and write them, in one move."""
    texts = list(dict.fromkeys(json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))))
    embeddings, path = embed(spec["checkpoint"], texts), Path(spec["out"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    keys = np.array([key_of(text) for text in texts])
    np.savez(part, keys=keys, vectors=embeddings.vectors, seconds=np.float64(embeddings.seconds))
    os.replace(part, path)
    return {"texts": len(texts), "seconds": embeddings.seconds}


def read_file(path: Path, texts: Sequence[str]) -> Embeddings:
    """The embeddings of texts of a set, and their share of the seconds. Raises `ValueError` for other texts."""
    with np.load(path) as arrays:
        numbers: dict[Any, int] = {key: number for number, key in enumerate(arrays["keys"].tolist())}
        vectors, seconds = arrays["vectors"], float(arrays["seconds"])
    keys = [key_of(text) for text in texts]
    if any(key not in numbers for key in keys):
        raise ValueError(f"{path}: lacks texts of the set, which has changed; remove this file")
    return Embeddings(vectors[[numbers[key] for key in keys]], seconds * len(texts) / len(vectors))


if __name__ == "__main__":
    run_worker(write_file, ("texts", "checkpoint", "out"))
