"""Evaluates a run on the data of its experiment or on other files, beside a words-alone baseline if asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.data.batching import Examples
from smoothtune.data.task_data import Split, TaskData, label_numbers, make_examples, read_split, read_tasks
from smoothtune.errors import UsageError
from smoothtune.evaluation.comparison import Comparison, paired_difference
from smoothtune.evaluation.scores import Scores, TaskAnswers, score_tasks
from smoothtune.evaluation.words_alone import words_alone
from smoothtune.inference.model import Model
from smoothtune.runtime.device import keep_memory_mapped, set_threads
from smoothtune.workflow.cache import cache_folder
from smoothtune.workflow.run import read_experiment
from smoothtune.workflow.scoring import answers_of

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a run; with a baseline, its scores and the paired difference run - baseline."""

    scores: Scores
    words_alone: Scores | None = None
    difference: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = self.scores.to_json()
        if self.words_alone is not None and self.difference is not None:
            found["words_alone"] = self.words_alone.to_json()
            found["difference"] = {
                "tasks": {name: _limits(value) for name, value in self.difference.tasks.items()},
                "mean": _limits(self.difference.mean),
            }
        return found


def evaluate_run(
    run: Path, *, data: Iterable[str] = (), split: str = "dev", with_words_alone: bool = False
) -> Evaluation:
    """Score the model of a run on a split of its experiment, or (`TASK=FILE`) on other files.

    Raises `UsageError` for an unknown split or task, `ModelFileError` for a folder that is no run, `DataError` for data.
    """
    if split not in SPLITS:
        raise UsageError(f"--split: got {split!r}, expected one of {', '.join(SPLITS)}")
    experiment = read_experiment(run)
    set_threads(experiment.runtime.threads)
    keep_memory_mapped()
    model = Model.load(run, device=experiment.runtime.device)
    chosen = _chosen(experiment, model, _pairs(data, experiment), split, with_words_alone)
    examples = {name: _examples(experiment, model, found, part) for name, (found, part) in chosen.items()}
    answers = answers_of(model.network, examples, experiment.tasks, dtype=model.dtype)
    scores = score_tasks(answers, seed=experiment.seed)
    if not with_words_alone:
        return Evaluation(scores)
    baseline = {name: _words_alone(found, part, experiment.seed) for name, (found, part) in chosen.items()}
    difference = paired_difference(answers, baseline, seed=experiment.seed)
    return Evaluation(scores, score_tasks(baseline, seed=experiment.seed), difference)


def _pairs(data: Iterable[str], experiment: Experiment) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in data:
        task, separator, path = item.partition("=")
        if not separator or not path:
            raise UsageError(f"--data {item}: expected TASK=FILE")
        if task not in experiment.tasks:
            raise UsageError(f"--data {item}: this run has no task {task!r}; its tasks: {', '.join(experiment.tasks)}")
        found[task] = path
    return found


def _chosen(
    experiment: Experiment, model: Model, files: Mapping[str, str], split: str, with_training: bool
) -> dict[str, tuple[TaskData, Split]]:
    cache = cache_folder()
    needed = set(files) if files else set(experiment.tasks)
    tasks = {name: task for name, task in experiment.tasks.items() if name in needed}
    chosen: dict[str, tuple[TaskData, Split]] = {}
    read: dict[str, TaskData] = {}
    if not files or with_training:
        read = read_tasks(experiment.model_copy(update={"tasks": tasks}), Path.cwd(), cache)
    for name, task in tasks.items():
        labels = model.labels[name]
        found = read.get(name, TaskData(name, task, {}, labels))
        if name in files:
            chosen[name] = found, read_split(name, task, files[name], Path.cwd(), cache, labels)
        elif split in found.splits:
            chosen[name] = found, found.splits[split]
    if not chosen:
        raise UsageError(f"--split {split}: no task of this run has such data; name a file with --data TASK=FILE")
    return chosen


def _examples(experiment: Experiment, model: Model, data: TaskData, part: Split) -> Examples:
    return make_examples(
        data,
        part,
        model.tokenizer,
        reads=trunk_options(data.name, data.task, experiment.trunks).input,
        max_length=experiment.encoder.max_length,
        pad_id=int(model.network.encoder.architecture.get("pad_token_id") or 0),
        cache=cache_folder(),
    )


def _words_alone(data: TaskData, part: Split, seed: int) -> TaskAnswers:
    task, train = data.task, data.splits["train"]
    predictions = words_alone(task.kind, train.texts(), data.targets("train"), part.texts(), seed=seed)
    targets = label_numbers(part.table, task, data.labels)[part.chosen]
    return TaskAnswers(task.kind, task.metric, predictions, targets)


def _limits(found: Any) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
