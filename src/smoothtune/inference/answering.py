"""Logits for many examples, batched by length, and what they mean. Knows nothing of files or label names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from smoothtune.data.batching import Examples
from smoothtune.inference.batches import token_batches
from smoothtune.nn.at_rest import at_rest
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime import processes
from smoothtune.runtime.device import computing_in
from smoothtune.types import Kind


def answer_examples(
    model: MultiTaskModel, examples: Examples, *, dtype: torch.dtype, batch_size: int | None = None
) -> np.ndarray:
    """Logits of all examples in their order: (N, C) for classification, else (N,), float32. See `answer_tasks`."""
    return answer_tasks(model, examples, (examples.task,), dtype=dtype, batch_size=batch_size)[examples.task]


def answer_tasks(
    model: MultiTaskModel,
    examples: Examples,
    tasks: Sequence[str],
    *,
    dtype: torch.dtype,
    batch_size: int | None = None,
) -> dict[str, np.ndarray]:
    """Logits of several tasks that read the same input, from one pass of the encoder over the examples, by task.

    The tasks of the bare encoder share rows; each task with LoRA or adapters of its own has rows of its own in the pass.
    Batches are made by tokens, with at most `batch_size` rows. The model is in eval mode for it and put back after.
    Processes that compute together share the batches out, and all get all logits: the same bits as from one process.
    """
    together = processes.current()
    logits = {task: space(model, task, len(examples)) for task in tasks}
    columns = len(examples.columns) * len(model.sharing(tasks))
    batches = token_batches(examples.lengths(), limit=examples.limit, columns=columns, most=batch_size)
    device = model.device
    with at_rest(model), torch.inference_mode(), computing_in(dtype, device):
        for number, positions in enumerate(batches):
            if number % together.world != together.rank:
                continue
            for task, found in model.answers(examples.batch(positions).to(device), tasks).items():
                logits[task][positions] = found.float().cpu().numpy()
    return {task: together.joined_rows(found) for task, found in logits.items()}


def features_of(model: MultiTaskModel, examples: Examples, *, dtype: torch.dtype) -> np.ndarray:
    """What the task's output reads of all examples in their order, (N, F) float32, in eval mode; see `answer_tasks`."""
    together = processes.current()
    trunk = model.trunks[model.tasks[examples.task].trunk]
    found = np.zeros((len(examples), trunk.features), dtype=np.float32)
    batches = token_batches(examples.lengths(), limit=examples.limit, columns=len(examples.columns))
    with at_rest(model), torch.inference_mode(), computing_in(dtype, model.device):
        for number, positions in enumerate(batches):
            if number % together.world == together.rank:
                features = model.features_of(examples.batch(positions).to(model.device))
                found[positions] = features.float().cpu().numpy()
    return together.joined_rows(found)


def space(model: MultiTaskModel, task: str, rows: int) -> np.ndarray:
    """An array of 0 for the logits of a task, (N, C) or (N,), float32."""
    node = model.tasks[task]
    return np.zeros((rows, node.classes) if node.kind == "classification" else (rows,), dtype=np.float32)


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
