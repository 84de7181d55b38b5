"""Says how many rows of an evaluation stand in the training data of the run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from smoothtune.config.experiment import Experiment
from smoothtune.data.leaks import TrainingKeys, leaks
from smoothtune.data.task_data import Split, read_tasks, with_dev_rows
from smoothtune.errors import DataError


def training_overlap(
    experiment: Experiment,
    labels: Mapping[str, tuple[str, ...] | None],
    parts: Mapping[str, Split],
    cache: Path,
    refit: Collection[str] = (),
) -> Iterator[str]:
    """A warning for each of the `parts`, by task, with rows that are training rows of any task of the run.

    Tasks that were `refit` have trained on their dev rows too. A pair counts in either order. The training files are read, from
    the cache if they are as they were; a note names
    the tasks whose cannot be.
    """
    training, unreadable = [], []
    for name, task in experiment.tasks.items():
        alone = experiment.model_copy(update={"tasks": {name: task}})
        try:
            data = read_tasks(
                alone, Path.cwd(), cache, labels=labels, wanted={"train", *(["dev"] if name in refit else [])}
            )
        except DataError:
            unreadable.append(name)
            continue
        of_task = with_dev_rows(data[name]) if name in refit else data[name]
        training.append(TrainingKeys(of_task.splits["train"]))
    for name in unreadable:
        yield f"note: {name}: its training data cannot be read any more, so rows that stand in them are not counted"
    for name, part in parts.items():
        whole = leaks(part, training).whole
        if whole.count:
            first, verb = whole.examples[0], "was" if whole.count == 1 else "were"
            yield (
                f"warning: {name}: {whole.count:,} of {len(part):,} rows {verb} used to train this run: the score is too high, "
                f"e.g. {first.here} at {first.there}"
            )
