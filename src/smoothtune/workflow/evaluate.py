"""Evaluates a run on the data of its experiment or on other files, beside a words-alone baseline if asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.data.batching import Examples
from smoothtune.data.task_data import Split, TaskData, label_numbers, make_examples, read_split, read_tasks
from smoothtune.data.text_counts import TextCounts
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.evaluation.scores import TaskAnswers
from smoothtune.evaluation.words_alone import words_alone
from smoothtune.files import cache_folder
from smoothtune.inference.model import Model, model_folder
from smoothtune.nn.folder import read_json
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.runtime.device import keep_memory_mapped, set_threads
from smoothtune.runtime.kernels.building import notes as kernel_notes
from smoothtune.workflow.evaluation import Baselines, Evaluation, evaluation_of
from smoothtune.workflow.probe_baseline import NAME as PROBE_BASELINE
from smoothtune.workflow.probe_baseline import probe_answers
from smoothtune.workflow.run import PROBE, STATE
from smoothtune.workflow.scoring import answers_of, undefined
from smoothtune.workflow.stage_folders import experiment_of, model_after
from smoothtune.workflow.stages import steps_by_task
from smoothtune.workflow.training_overlap import training_overlap

SPLITS = ("train", "dev", "test")


def evaluate_run(
    run: Path,
    *,
    data: Iterable[str] = (),
    split: str | None = None,
    stage: str | None = None,
    with_words_alone: bool = False,
) -> Evaluation:
    """Score the model of a run on a split of its experiment (dev), or the tasks of `data` (`TASK=FILE`) on those files.

    The model is the run's, or that after `stage`. Labels are the model's own, whatever the files say now; the training
    file is read where its rows are needed, and to count those of the other splits and files that are among them; one
    that cannot be read for the count alone is noted. Raises `UsageError` for an unknown split, stage or task, `ModelFileError`
    for a folder that is no run, `DataError` for data.
    """
    experiment = experiment_of(run)
    folder = run if stage is None else model_after(run, experiment, stage)
    files = _pairs(data, experiment)
    if files and split is not None:
        raise UsageError(f"--split {split}: does not go with --data, which names the files itself; leave one out")
    split = "dev" if split is None else split
    if split not in SPLITS:
        raise UsageError(f"--split: got {split!r}, expected one of {', '.join(SPLITS)}")
    set_threads(experiment.runtime.threads)
    keep_memory_mapped()
    model = Model.load(folder, device=experiment.runtime.device)
    read = _read(experiment, model, files, split, with_words_alone)
    chosen = _chosen(experiment, model, read, files, split)
    examples = {name: _examples(experiment, model, found, part) for name, (found, part) in chosen.items()}
    answers = answers_of(model.network, examples, experiment.tasks, dtype=model.dtype)
    beside, doubts = _probe(run, experiment, model, examples) if stage is None else ({}, ())
    words = None
    if with_words_alone:
        words = {name: _words_alone(found, part, experiment.seed) for name, (found, part) in chosen.items()}
    apart = {} if split == "train" else {name: part for name, (_, part) in chosen.items()}
    return evaluation_of(
        answers,
        {name: model.labels[name] for name in answers},
        largest=_largest_classes(folder, model),
        baselines=beside,
        words_alone=words,
        notes=(
            *kernel_notes(model.network.device.type),
            *doubts,
            *_changed(folder, read),
            *(line for name, (_, part) in chosen.items() for line in part.table.remark_lines(name)),
            *(line for name, part in examples.items() for line in _counted(model, part).sentences(name)),
            *training_overlap(experiment, model.labels, apart, cache_folder(), _refit(folder)),
            *(f"note: {name} is nan: {why}" for name, why in undefined(answers).items()),
        ),
        seed=experiment.seed,
    )


def _probe(
    run: Path, experiment: Experiment, model: Model, examples: Mapping[str, Examples]
) -> tuple[Baselines, tuple[str, ...]]:
    """The answers of the probe that the run began with, where the model is another, or why they are not to be had."""
    if not (run / PROBE).is_dir() or not (run / STATE).is_file():
        return {}, ()
    stages = read_json(run / STATE).get("stages", [])
    steps = steps_by_task(stages)
    examples = {name: part for name, part in examples.items() if steps.get(name) != 0}
    if not stages or not examples:
        return {}, ()
    try:
        encoder = load_encoder(find_checkpoint(experiment.encoder), experiment.encoder).to(model.network.device)
        answers = probe_answers(run, experiment, encoder, model.labels, examples, model.dtype)
    except (ModelFileError, UsageError) as error:
        return {}, (f"note: the probe that the run began with is not shown: {error}",)
    return {PROBE_BASELINE: answers}, ()


def _refit(folder: Path) -> tuple[str, ...]:
    """The tasks whose model has been fitted on dev rows too."""
    tasks = read_json(model_folder(folder) / "provenance.json").get("refit", [])
    return tuple(tasks) if isinstance(tasks, list) else ()


def _largest_classes(folder: Path, model: Model) -> dict[str, str]:
    """The commonest training label by task, as the run wrote it down; empty for a model that knows none."""
    known = read_json(model_folder(folder) / "provenance.json").get("largest_class")
    classes = {name: labels for name, labels in model.labels.items() if labels is not None}
    if not isinstance(known, dict):
        return {}
    return {name: known[name] for name, labels in classes.items() if known.get(name) in labels}


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


def _read(
    experiment: Experiment, model: Model, files: Mapping[str, str], split: str, with_training: bool
) -> dict[str, TaskData]:
    """What is needed of the experiment's own data, for the tasks of `files` if there are any."""
    tasks = {name: task for name, task in experiment.tasks.items() if not files or name in files}
    wanted = {*([] if files else [split]), *(["train"] if with_training else [])}
    narrowed = experiment.model_copy(update={"tasks": tasks})
    return read_tasks(narrowed, Path.cwd(), cache_folder(), labels=model.labels, wanted=wanted)


def _chosen(
    experiment: Experiment, model: Model, read: Mapping[str, TaskData], files: Mapping[str, str], split: str
) -> dict[str, tuple[TaskData, Split]]:
    chosen: dict[str, tuple[TaskData, Split]] = {}
    for name, found in read.items():
        if name in files:
            task, labels = experiment.tasks[name], model.labels[name]
            names = experiment.class_labels == "names"
            part = read_split(name, task, files[name], Path.cwd(), cache_folder(), labels, class_names=names)
            chosen[name] = found, part
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
        pad_id=model.pad_id,
        cache=cache_folder(),
    )


def _counted(model: Model, examples: Examples) -> TextCounts:
    counts = TextCounts.of(model.tokenizer, examples.reads, examples.limit)
    for column in examples.columns:
        counts.add(column, examples.chosen)
    return counts


def _words_alone(data: TaskData, part: Split, seed: int) -> TaskAnswers:
    task, train = data.task, data.splits["train"]
    predictions = words_alone(task.kind, train.texts(), data.targets("train"), part.texts(), seed=seed)
    targets = label_numbers(part.table, task, data.labels)[part.chosen]
    return TaskAnswers(task.kind, task.metric, predictions, targets)


def _changed(folder: Path, read: Mapping[str, TaskData]) -> Iterator[str]:
    trained_on = read_json(model_folder(folder) / "provenance.json").get("data", {})
    for name, data in read.items():
        for split, part in data.splits.items():
            known = trained_on.get(name, {}).get(split, {})
            shown, content, rows = part.table.source.shown, known.get("content"), known.get("rows")
            if content is not None and content != part.table.source.fingerprint():
                yield f"warning: {name}.{split}: {shown} has changed since this model was trained"
            elif rows is not None and rows != len(part):
                yield (
                    f"warning: {name}.{split}: {shown} gives {len(part):,} rows, and gave {rows:,} when this model was trained: "
                    "another release reads or divides it otherwise, so rows that were trained on may be among these"
                )
