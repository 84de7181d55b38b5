"""The weight of each class in the loss, from the experiment and the training rows. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smoothtune.config.tasks import AnyTask
from smoothtune.data.columns import blocks
from smoothtune.data.values import label_text


def class_weights_of(
    task: AnyTask, labels: Sequence[str] | None, targets: NDArray[np.int64] | NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """The weight of each class, (C,), with mean 1 over the training rows; None where the task has no weights.

    `targets` (M,) are the classes of the training rows. "balanced" weights class c by M / (C M_c), M_c being its rows; a
    table gives labels that it does not name the weight 1. Classes without training rows count in no mean.
    """
    if task.kind == "regression" or task.class_weights is None or task.class_weights == "none" or labels is None:
        return None
    counts = np.zeros(len(labels), dtype=np.int64)
    for part in blocks(len(targets)):
        counts += np.bincount(targets[part].astype(np.int64), minlength=len(counts))
    if task.class_weights == "balanced":
        weights = 1 / np.maximum(counts, 1)
    else:
        table = {label_text(label): weight for label, weight in task.class_weights.items()}
        weights = np.array([table.get(label, 1.0) for label in labels])
        weights /= weights.max()  # the sum below cannot overflow then
    mean = float((counts * weights).sum()) / max(int(counts.sum()), 1)
    return (weights / mean).astype(np.float32)
