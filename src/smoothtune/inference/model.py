"""A trained model as its user sees it: task names and texts in, labels and numbers out. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from smoothtune.config.experiment import ModelConfig, RuntimeOptions, trunk_options
from smoothtune.data.batching import Examples
from smoothtune.data.tokenising import encode, in_memory, load_tokenizer, windows
from smoothtune.errors import UsageError
from smoothtune.inference.answering import answer_examples, decide, probabilities
from smoothtune.nn.folder import read_model_folder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import pick_device, pick_dtype
from smoothtune.types import Kind

Texts = Iterable[str] | Iterable[Sequence[str]]
WINDOW = 4096


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers in the order of the texts.

    `values` are labels (text), or numbers for regression; `probabilities` (N, C) go with `labels`, None for regression.
    """

    values: list[str] | list[float]
    labels: tuple[str, ...] | None
    probabilities: np.ndarray | None


class Model:
    """Loads a model folder and answers any of its tasks."""

    def __init__(
        self,
        network: MultiTaskModel,
        config: ModelConfig,
        labels: dict[str, tuple[str, ...] | None],
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
    ) -> None:
        self.network = network
        self.config = config
        self.labels = labels
        self.tokenizer = tokenizer
        self.dtype = dtype

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Model:
        """The model of a run folder or model folder. Raises `ModelFileError` when it is neither.

        A model trained in float32 answers in float32, others in bfloat16 where the hardware has it. Raises `UsageError`
        for a device that is not there.
        """
        try:
            target = pick_device(RuntimeOptions(device=device).device)
        except ValidationError:
            raise UsageError(f"device: got {device!r}, expected auto, cpu, cuda or cuda:NUMBER") from None
        path = model_folder(folder)
        found = read_model_folder(path)
        tokenizer = load_tokenizer(path)
        dtype = pick_dtype("float32" if found.provenance.get("precision") == "float32" else "auto", target)
        return cls(found.model.to(target), found.config, found.labels, tokenizer, dtype=dtype)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks it answers."""
        return tuple(self.config.tasks)

    def kind(self, task: str) -> Kind:
        """The kind of a task. Raises `UsageError` for a task it does not have."""
        self._check(task)
        return self.config.tasks[task].kind

    def columns(self, task: str) -> tuple[str, ...]:
        """The text columns of a task, as its training file named them."""
        self._check(task)
        return self.config.tasks[task].text

    def predict(self, task: str, texts: Texts, *, batch_size: int = 64) -> list[str] | list[float]:
        """Labels (text) or numbers, one per text or pair, in order.

        `texts` are strings for a task of one text, and sequences of two strings (or rows of a NumPy array) for pairs.
        Raises `UsageError` for an unknown task, texts that are empty or of the wrong form, and a `batch_size` below 1.
        """
        parts = [found.values for found in self.predict_windows(task, texts, batch_size=batch_size)]
        return list(chain.from_iterable(parts))  # type: ignore[return-value]

    def predict_probabilities(self, task: str, texts: Texts, *, batch_size: int = 64) -> np.ndarray:
        """Class probabilities (N, C), columns in the order of `labels[task]`. Raises `UsageError` for a regression."""
        if self.kind(task) == "regression":
            raise UsageError(f"task {task!r} is a regression and has no probabilities; use `predict`")
        found = self.predict_windows(task, texts, batch_size=batch_size)
        parts = [part.probabilities for part in found if part.probabilities is not None]
        return np.concatenate(parts) if parts else np.empty((0, len(self.labels[task] or ())))

    def predict_windows(self, task: str, texts: Texts, *, batch_size: int = 64) -> Iterable[Predictions]:
        """Answers for texts of any number, a few thousand at a time: memory does not grow with them."""
        self._check(task)
        if batch_size < 1:
            raise UsageError(f"batch_size: got {batch_size}, expected at least 1")
        for window in windows(self._rows(task, texts), WINDOW):
            yield self.answer(task, window, batch_size)

    def answer(self, task: str, rows: list[tuple[str, ...]], batch_size: int = 64) -> Predictions:
        """Answers for rows of one text or two, in order; `task` must be one of `tasks`, `rows` not empty."""
        shape = self.config.tasks[task]
        reads = trunk_options(task, shape, self.config.trunks).input
        columns = in_memory(encode(self.tokenizer, rows, reads, self.config.encoder.max_length))
        numbers = np.arange(len(rows), dtype=np.int32)
        examples = Examples(
            task, reads, columns, None, numbers, numbers,
            pad_id=int(self.network.encoder.architecture.get("pad_token_id") or 0),
            limit=self.config.encoder.max_length,
        )  # fmt: skip
        logits = answer_examples(self.network, examples, dtype=self.dtype, batch_size=batch_size)
        found = decide(shape.kind, logits)
        labels = self.labels[task]
        if labels is None:
            return Predictions([float(value) for value in found], None, None)
        return Predictions([labels[number] for number in found], labels, probabilities(shape.kind, logits))

    def _rows(self, task: str, texts: Texts) -> Iterable[tuple[str, ...]]:
        wanted = len(self.config.tasks[task].text)
        if isinstance(texts, str):
            raise UsageError(f"task {task!r}: expected a list of texts, got one string")
        for number, item in enumerate(texts):
            several = isinstance(item, Sequence | np.ndarray) and not isinstance(item, str)
            row: tuple[Any, ...] = tuple(item) if several else (item,)
            if len(row) != wanted or not all(isinstance(text, str) for text in row):
                form = "a string" if wanted == 1 else "two strings"
                raise UsageError(f"task {task!r}, text {number}: expected {form}, got {item!r}")
            if not all(text.strip() for text in row):
                raise UsageError(f"task {task!r}, text {number}: is empty, got {item!r}; give a text or leave it out")
            yield tuple(map(str, row))

    def _check(self, task: str) -> None:
        if task not in self.config.tasks:
            raise UsageError(f"this model has no task {task!r}; its tasks: {', '.join(self.tasks)}")


def model_folder(folder: str | Path) -> Path:
    """The model folder of a run, or `folder` itself where it is no run."""
    inner = Path(folder) / "model"
    return inner if (inner / "config.toml").is_file() else Path(folder)
