"""A trained model as its user sees it: task names and texts in, labels and numbers out. Knows nothing of training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from smoothtune.config.experiment import ModelConfig, RuntimeOptions, trunk_options
from smoothtune.data.ahead import one_ahead
from smoothtune.data.batching import Examples
from smoothtune.data.tokenising import TokenColumn, encode, in_memory, load_tokenizer, windows
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.inference.answering import answer_tasks, decide, probabilities
from smoothtune.inference.merged_networks import merged_here, network_here
from smoothtune.inference.mixed import answer_mixed
from smoothtune.inference.precision import PRECISIONS, Groups, Precision, measured, without_measuring
from smoothtune.inference.predictions import Predictions
from smoothtune.inference.texts import Texts, checked_rows
from smoothtune.nn.folder import read_model_folder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import pick_device, pick_dtype
from smoothtune.runtime.forking import ProcessLock, watch_forks
from smoothtune.types import Input, Kind

WINDOW = 4096
Rows = list[tuple[str, ...]]
_deciding = ProcessLock()


@dataclass(frozen=True, slots=True)
class _Window:
    """Rows, and once for each way of reading them the tasks that read so and the rows as token ids."""

    rows: Rows
    read: tuple[tuple[tuple[str, ...], Examples], ...]


class Model:
    """Loads a model folder and answers any of its tasks.

    `dtype` is that of training and evaluation; `precision_of` says in what predictions are computed, and why. Threads may
    share a model: each call is answered as one thread alone would be.
    """

    def __init__(
        self,
        network: MultiTaskModel,
        config: ModelConfig,
        labels: dict[str, tuple[str, ...] | None],
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        precision: Precision | None,
        identity: str,
    ) -> None:
        self._unmerged = network
        self.config = config
        self.labels = labels
        self.tokenizer = tokenizer
        self.dtype = dtype
        self._precision = precision
        self._measured: dict[frozenset[str], Precision] = {}
        self._identity = identity

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", precision: str = "auto") -> Model:
        """The model of a run folder or model folder. Raises `ModelFileError` when it is neither.

        `precision` is float32, bfloat16 or auto: a model trained in float32 answers in float32; for others the first
        texts decide, by a measurement that the cache keeps for the machine, the model and the tasks asked together.
        Raises `UsageError` for a device that is not there and an unknown precision.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
        try:
            target = pick_device(RuntimeOptions(device=device).device)
        except ValidationError:
            raise UsageError(f"device: got {device!r}, expected auto, cpu, cuda or cuda:NUMBER") from None
        watch_forks()
        path = model_folder(folder)
        found = read_model_folder(path)
        trained_in = found.provenance.get("precision")
        return cls(
            found.model.to(target),
            found.config,
            found.labels,
            load_tokenizer(path, found.config.encoder.special_tokens),
            dtype=pick_dtype("float32" if trained_in == "float32" else "auto", target),
            precision=without_measuring(precision, trained_in, target),
            identity=_identity(path),
        )

    @property
    def network(self) -> MultiTaskModel:
        """The modules that compute; inside `merged` those with the LoRA in their weights."""
        return network_here(self._unmerged)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks it answers."""
        return tuple(self.config.tasks)

    @property
    def pad_id(self) -> int:
        """The token id of padding, as the encoder's configuration names it."""
        return int(self.network.encoder.architecture.get("pad_token_id") or 0)

    def kind(self, task: str) -> Kind:
        """The kind of a task. Raises `UsageError` for a task it does not have."""
        self._check((task,))
        return self.config.tasks[task].kind

    def columns(self, task: str) -> tuple[str, ...]:
        """The text columns of a task, as its training file named them."""
        self._check((task,))
        return self.config.tasks[task].text

    def predict(self, task: str, texts: Texts, *, batch_size: int | None = None) -> list[str] | list[float]:
        """Labels (text) or numbers, one per text or pair, in order.

        `texts` are strings for a task of one text, and sequences of two strings (or rows of a NumPy array) for pairs.
        Batches are made by length and tokens, with at most `batch_size` rows. Raises `UsageError` for an unknown task,
        texts that are empty or of the wrong form, and a `batch_size` below 1.
        """
        return self.predict_many((task,), texts, batch_size=batch_size)[task]

    def predict_many(
        self, tasks: Sequence[str], texts: Texts, *, batch_size: int | None = None
    ) -> dict[str, list[str] | list[float]]:
        """What `predict` gives for each of several tasks on the same texts, by task.

        Tasks that read the texts alike share one pass of the encoder: all tasks of one text, all pairs read as two
        texts, all pairs read jointly. Raises `UsageError` as `predict` does, and for tasks of one text beside pairs.
        """
        parts = list(self.predict_windows(tasks, texts, batch_size=batch_size))
        return {task: list(chain.from_iterable(part[task].values for part in parts)) for task in tasks}  # type: ignore[misc]

    def predict_mixed(
        self, texts: Mapping[str, Texts], *, batch_size: int | None = None
    ) -> dict[str, list[str] | list[float]]:
        """What `predict` gives for each task on texts of its own, by task; all texts are in memory at once.

        Batches mix the tasks and go through the encoder once, each row with the LoRA and adapters of its own task: for few
        texts of many tasks. Raises `UsageError` as `predict` does, and for what is no mapping.
        """
        if not isinstance(texts, Mapping):
            raise UsageError(f"texts: got {type(texts).__name__}, expected texts by task: {{task: texts, ...}}")
        self._check(tuple(texts))
        _check_batch_size(batch_size)
        rows = {task: list(checked_rows(task, given, self.text_count((task,)))) for task, given in texts.items()}
        examples = {task: self._examples(task, self._reads(task), part) for task, part in rows.items() if part}
        found: dict[str, list[str] | list[float]] = {task: [] for task in texts}
        if examples:
            dtype = self._chosen([((task,), part) for task, part in examples.items()]).dtype
            for task, logits in answer_mixed(self.network, examples, dtype=dtype, batch_size=batch_size).items():
                found[task] = self._read(task, logits).values
        return found

    @contextmanager
    def merged(self, task: str) -> Iterator[Model]:
        """Inside, the task's LoRA is in the encoder's weights and costs no time (Hu et al., 2021, section 4.1).

        No other task answers inside, and nothing is exported. That holds for this thread (and what runs in its context):
        others go on with the weights as they were, which nothing changes. The task's adapters, if it has any, run as they
        do. Cost: the memory of the weights that LoRA changes. Raises `UsageError` for a task that is unknown or has no
        LoRA, and while one is merged.
        """
        self._check((task,))
        with merged_here(self._unmerged, task):
            yield self

    def predict_probabilities(self, task: str, texts: Texts, *, batch_size: int | None = None) -> np.ndarray:
        """Class probabilities (N, C), columns in the order of `labels[task]`. Raises `UsageError` for a regression."""
        if self.kind(task) == "regression":
            raise UsageError(f"task {task!r} is a regression and has no probabilities; use `predict`")
        found = [part[task].probabilities for part in self.predict_windows((task,), texts, batch_size=batch_size)]
        parts = [part for part in found if part is not None]
        return np.concatenate(parts) if parts else np.empty((0, len(self.labels[task] or ())))

    def predict_windows(
        self, tasks: Sequence[str], texts: Texts, *, batch_size: int | None = None
    ) -> Iterator[dict[str, Predictions]]:
        """Answers for texts of any number, `WINDOW` at a time, by task: memory does not grow with them.

        The answers to a window come when the next is full, or there are no more texts. Before an error about a text
        come the answers to the windows before it.
        """
        wanted = self.text_count(tasks)
        _check_batch_size(batch_size)
        for _, answers in self.answer_rows(tasks, checked_rows(tasks[0], texts, wanted), batch_size=batch_size):
            yield answers

    def answer_rows(
        self,
        tasks: Sequence[str],
        rows: Iterable[tuple[str, ...]],
        *,
        batch_size: int | None = None,
        heed: Callable[[Examples], None] = lambda examples: None,
    ) -> Iterator[tuple[Rows, dict[str, Predictions]]]:
        """Windows of rows that hold the right number of texts, with the answers to `tasks`; the next is tokenised meanwhile.

        `heed` is told of the tokens of each window, once for each way of reading.

        So a window is given out when the next has been read. What reading the next raises comes after it.
        """
        for window in one_ahead(partial(self._tokenised, tuple(tasks)), windows(rows, WINDOW)):
            dtype = self._chosen(window.read).dtype
            answers: dict[str, Predictions] = {}
            for alike, examples in window.read:
                heed(examples)
                found = answer_tasks(self.network, examples, alike, dtype=dtype, batch_size=batch_size)
                answers.update({task: self._read(task, logits) for task, logits in found.items()})
            yield window.rows, {task: answers[task] for task in tasks}

    def precision_of(self, tasks: Sequence[str]) -> Precision | None:
        """In what answers to these tasks, asked together, are computed; None where the first texts have yet to decide."""
        return self._precision or self._measured.get(frozenset(tasks))

    def text_count(self, tasks: Sequence[str]) -> int:
        """How many texts a row has for all of `tasks`: 1 or 2. Raises `UsageError` where they are unknown or differ."""
        self._check(tasks)
        texts = {task: len(self.config.tasks[task].text) for task in tasks}
        if len(set(texts.values())) > 1:
            listed = ", ".join(f"{task} {count}" for task, count in texts.items())
            raise UsageError(f"tasks: those asked together must read as many texts, got {listed}; ask them apart")
        return texts[tasks[0]]

    def _tokenised(self, tasks: tuple[str, ...], rows: Rows) -> _Window:
        alike: dict[Input, list[str]] = {}
        for task in tasks:
            alike.setdefault(self._reads(task), []).append(task)
        return _Window(
            rows, tuple((tuple(names), self._examples(names[0], reads, rows)) for reads, names in alike.items())
        )

    def _reads(self, task: str) -> Input:
        return trunk_options(task, self.config.tasks[task], self.config.trunks).input

    def _examples(self, task: str, reads: Input, rows: Rows) -> Examples:
        longest = self.config.encoder.max_length
        columns = in_memory(encode(self.tokenizer, rows, reads, longest))
        self._check_ids(columns)
        numbers = np.arange(len(rows), dtype=np.int32)
        return Examples(task, reads, columns, None, numbers, numbers, pad_id=self.pad_id, limit=longest)

    def _check_ids(self, columns: Sequence[TokenColumn]) -> None:
        """Raise `ModelFileError` for a token that the encoder does not know: the tokenizer is of another model."""
        highest, rows = max(int(column.ids.max(initial=0)) for column in columns), self.network.encoder.vocabulary
        if highest >= rows:
            raise ModelFileError(
                f"tokenizer: gives the token id {highest:,}, but the encoder knows {rows:,} tokens; "
                "take the tokenizer.json that was saved with the model"
            )

    def _chosen(self, groups: Groups) -> Precision:
        tasks = frozenset(task for names, _ in groups for task in names)
        with _deciding:  # threads that ask at once get one decision
            found = self.precision_of(tuple(tasks))
            if found is None:
                found = self._measured[tasks] = measured(self.network, groups, self._identity)
        return found

    def _read(self, task: str, logits: np.ndarray) -> Predictions:
        kind, labels = self.config.tasks[task].kind, self.labels[task]
        found = decide(kind, logits)
        if labels is None:
            return Predictions(found.tolist(), None, None)
        return Predictions([labels[number] for number in found.tolist()], labels, probabilities(kind, logits))

    def _check(self, tasks: Sequence[str]) -> None:
        if not tasks or isinstance(tasks, str):
            raise UsageError(f"tasks: got {tasks!r}, expected a list of names among {', '.join(self.tasks)}")
        for task in tasks:
            if task not in self.config.tasks:
                raise UsageError(f"this model has no task {task!r}; its tasks: {', '.join(self.tasks)}")


def _check_batch_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise UsageError(f"batch_size: got {size}, expected at least 1")


def model_folder(folder: str | Path) -> Path:
    """The model folder of a run, or `folder` itself where it is no run."""
    inner = Path(folder) / "model"
    return inner if (inner / "config.toml").is_file() else Path(folder)


def _identity(folder: Path) -> str:
    """Names a model without reading its weights: what it is and which training it came from."""
    digest = hashlib.sha256()
    for name in ("config.toml", "encoder.json", "provenance.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
