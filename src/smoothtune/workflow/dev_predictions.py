"""The held-out rows of each task beside what the run's model says of them, as a TSV file in the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smoothtune.data.columns import blocks
from smoothtune.data.id_columns import id_columns, id_values
from smoothtune.data.rows import RowTable
from smoothtune.data.task_data import TaskData
from smoothtune.inference.answering import decide, probabilities
from smoothtune.workflow.answer_file import DelimitedWriter, opened

NAME = "dev_predictions"


def write_dev_predictions(folder: Path, data: Mapping[str, TaskData], logits: Mapping[str, np.ndarray]) -> None:
    """`dev_predictions.tsv` of a run of one task, else `dev_predictions_TASK.tsv` of each, whole or not at all.

    Columns: task, file, line, those that name rows (`data.id_columns`), the texts, label, prediction, and p_LABEL for
    each label of the task. `logits` are (n, C) or (n,) by task. Raises `WriteError`.
    """
    for name, task in data.items():
        file = f"{NAME}.tsv" if len(data) == 1 else f"{NAME}_{name}.tsv"
        _write(folder / file, task, logits[name])


def remove_dev_predictions(folder: Path) -> None:
    """Take away the files of an earlier attempt."""
    for path in folder.glob(f"{NAME}*.tsv"):
        path.unlink()


def _write(path: Path, data: TaskData, logits: np.ndarray) -> None:
    table = data.splits["dev"].table
    ids = tuple(name for name in id_columns(table.source) if name not in table.spec.columns)
    labels = data.labels if data.labels is not None else ()
    before, after = ("task", "file", "line", *ids), ("label", "prediction", *(f"p_{label}" for label in labels))
    texts = tuple(f"text_{name}" if name in (*before, *after) else name for name in table.spec.texts)
    chosen = data.splits["dev"].chosen
    values = id_values(table.source, ids, table.lines()[chosen].tolist()) if ids else {}
    nothing = ("",) * len(ids)
    with opened(path) as file:
        writer = DelimitedWriter(file, (*before, *texts, *after))
        for part in blocks(len(chosen)):
            lines = table.lines()[chosen[part]].tolist()
            places = [(data.name, table.source.shown, line, *values.get(line, nothing)) for line in lines]
            writer.add(list(_rows(places, table, chosen[part])), _answers(data, logits[part]))


def _rows(places: list[tuple[Any, ...]], table: RowTable, rows: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """The places of some rows (n,), then their texts and labels."""
    labels = table.labels().take(rows).to_pylist()
    for place, texts, label in zip(places, table.texts(rows), labels, strict=True):
        yield *place, *texts, label


def _answers(data: TaskData, logits: np.ndarray) -> list[list[Any]]:
    """The prediction and the probabilities of some rows, a list for each column."""
    predictions = decide(data.task.kind, logits)
    if data.labels is None:
        return [predictions.tolist()]
    names = [data.labels[number] for number in predictions]
    return [names, *probabilities(data.task.kind, logits).round(6).T.tolist()]
