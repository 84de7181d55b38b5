"""One cell of the baseline `words`: TF-IDF and a linear model, as `smoothtune evaluate --words-alone` fits it.

A spec holds `data` (a folder with train.tsv and scored.tsv), `task` and `seed`. `train_seconds` are those of fitting and
predicting, which are one call.
"""

from __future__ import annotations

import time

import numpy as np
from scores import report_of
from worker import Report, Spec, read_rows, run_worker


def measure(spec: Spec) -> Report:
    """Fit, predict, score."""
    from smoothtune.evaluation.words_alone import words_alone

    train, scored, kind = read_rows(spec), read_rows(spec, "scored"), spec["task"]["kind"]
    columns = [column for column in train[0] if column != "label"]
    texts, others = ([tuple(row[column] for column in columns) for row in rows] for rows in (train, scored))
    labels = [row["label"] for row in train]
    classes, numbers = np.unique(labels, return_inverse=True)
    targets = np.asarray([float(label) for label in labels]) if kind == "regression" else numbers
    began = time.perf_counter()
    answers = words_alone(kind, texts, targets, others, seed=spec["seed"])
    seconds = time.perf_counter() - began
    if kind == "regression":
        values = np.clip(answers, *spec["task"]["range"]).tolist()
    else:
        values = [str(classes[number]) for number in answers]
    metrics = report_of(spec, [row["label"] for row in scored], values, None)
    return {"metrics": metrics, "train_seconds": seconds}


if __name__ == "__main__":
    run_worker(measure, ("data", "task", "seed"))
