"""Logits for many examples of one task, batched by length. Knows nothing of files or labels."""

from __future__ import annotations

import numpy as np
import torch

from smoothtune.data.batching import Examples, plan_sorted
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import computing_in
from smoothtune.types import Kind


def answer_examples(model: MultiTaskModel, examples: Examples, *, dtype: torch.dtype, batch_size: int) -> np.ndarray:
    """Logits of all examples in their order: (N, C) for classification, else (N,), float32.

    The model is put into eval mode for it and back after.
    """
    node = model.tasks[examples.task]
    shape = (len(examples), node.classes) if node.kind == "classification" else (len(examples),)
    logits = np.empty(shape, dtype=np.float32)
    plan = plan_sorted(examples.lengths(), batch_size)
    device, modes = model.device, [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), computing_in(dtype, device):
            for number in range(len(plan)):
                positions = plan.rows(number)
                logits[positions] = model(examples.batch(positions).to(device)).logits.float().cpu().numpy()
    finally:
        for part, training in modes:
            part.training = training
    return logits


def decide(kind: Kind, logits: np.ndarray) -> np.ndarray:
    """Predictions (N,): class numbers, 0 or 1, or label units."""
    if kind == "classification":
        return np.asarray(logits.argmax(axis=-1))
    return (logits > 0).astype(np.int64) if kind == "binary" else logits


def probabilities(kind: Kind, logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C); binary gives two columns, negative and positive. Raises `ValueError` for regression."""
    if kind == "regression":
        raise ValueError("a regression has no probabilities")
    if kind == "binary":
        positive = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
        return np.stack([1 - positive, positive], axis=-1)
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    share: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return share
