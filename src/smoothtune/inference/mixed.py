"""Answers for examples of several tasks at once, in batches that mix them. Knows nothing of files or label names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from smoothtune.data.batching import Examples
from smoothtune.inference.answering import space
from smoothtune.inference.batches import token_batches
from smoothtune.nn.at_rest import at_rest
from smoothtune.nn.mixing import mixed
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import computing_in


def answer_mixed(
    model: MultiTaskModel, examples: Mapping[str, Examples], *, dtype: torch.dtype, batch_size: int | None = None
) -> dict[str, np.ndarray]:
    """Logits of all examples of every task in their order, by task: (N, C) for classification, else (N,), float32.

    A batch holds rows of like length, of whatever tasks, at most `batch_size` of them, and goes through the encoder once:
    every row with the LoRA and adapters of its own task. The model is in eval mode for it and put back after.
    """
    logits = {task: space(model, task, len(part)) for task, part in examples.items()}
    device = model.device
    with at_rest(model), torch.inference_mode(), computing_in(dtype, device):
        for chosen in _batches(examples, batch_size):
            batch = mixed([examples[task].batch(rows) for task, rows in chosen.items()])
            for task, found in model.mixed_answers(batch.to(device)).items():
                logits[task][chosen[task]] = found.float().cpu().numpy()
    return logits


def _batches(examples: Mapping[str, Examples], most: int | None) -> Iterator[dict[str, np.ndarray]]:
    """Positions of one batch after the other, by task; every row of every task stands in exactly one."""
    filled = {task: part for task, part in examples.items() if len(part)}
    if not filled:
        return
    names, parts = list(filled), list(filled.values())
    lengths = np.concatenate([part.lengths() for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    place = np.concatenate([np.arange(len(part)) for part in parts])
    columns, limit = max(len(part.columns) for part in parts), max(part.limit for part in parts)
    for rows in token_batches(lengths, limit=limit, columns=columns, most=most):
        yield {names[task]: place[rows[owner[rows] == task]] for task in np.unique(owner[rows]).tolist()}
