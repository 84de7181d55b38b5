"""What contradicts itself among the regularisers of a stage. Knows nothing of encoders that must be read first."""

from __future__ import annotations

from collections.abc import Iterator

from smoothtune.config.experiment import Experiment, trunk_name, trunk_options
from smoothtune.config.problems import near
from smoothtune.config.regularisers import FOLLOWS, PRESETS, RADIUS, RDropOptions, RegulariserOptions, SmoothnessOptions
from smoothtune.config.stage import Stage
from smoothtune.errors import Problem

_LOSS_PARTS = ("task", "unweighted", "weight")  # names that the parts of every loss have already


def regulariser_problems(experiment: Experiment, stage: Stage, path: str) -> Iterator[Problem]:
    """Every contradiction among the regularisers of a stage whose tasks all exist; `path` is that of the stage."""
    tasks = experiment.stage_tasks(stage)
    labels = [options.label for options in stage.regularisers]
    for number, options in enumerate(stage.regularisers):
        where = f"{path}.regularisers.{number}"
        yield from _label_problems(where, options.label, taken=labels[:number])
        yield from _task_problems(where, options, tasks)
        if isinstance(options, SmoothnessOptions):
            yield from _radius_problems(where, options)
        chosen = [task for task in options.tasks or tasks if task in tasks]
        if isinstance(options, RDropOptions) and not any(_has_dropout(experiment, stage, task) for task in chosen):
            what = "there is no dropout in anything that it looks at, so its two passes never differ"
            yield Problem(where, f"{what}; give the encoder or a trunk that trains dropout, or remove it")


def _label_problems(where: str, label: str, *, taken: list[str]) -> Iterator[Problem]:
    if label in _LOSS_PARTS:
        what = f"{label!r} is the name of a part that every loss has ({', '.join(_LOSS_PARTS)})"
        yield Problem(f"{where}.name", f"{what}; choose another")
    if label in taken:
        what = f"{label!r} is the name of another regulariser of this stage"
        yield Problem(f"{where}.name", f"{what}; names must differ, and the default is the kind")


def _task_problems(where: str, options: RegulariserOptions, tasks: tuple[str, ...]) -> Iterator[Problem]:
    chosen = options.tasks or ()
    for task in chosen:
        if task not in tasks:
            known = ", ".join(tasks)
            yield Problem(f"{where}.tasks", f"this stage has no task {task!r} (its tasks: {known}).{near(task, tasks)}")
    if len(set(chosen)) < len(chosen):
        yield Problem(f"{where}.tasks", f"a task stands twice in {', '.join(chosen)}")


def _radius_problems(where: str, options: SmoothnessOptions) -> Iterator[Problem]:
    """A radius that nothing reads, not even the defaults of noise and step; one that is the preset's was not asked for."""
    preset = PRESETS[options.preset].get("radius", RADIUS)
    noise, step = FOLLOWS.get(options.preset, (0.0, 0.0))
    followed = options.noise == noise * options.radius or options.step_size == step * options.radius
    if options.projection == "unit" and options.radius != preset and not followed:
        what = f'got {options.radius:g}, but projection = "unit" rescales to norm 1 and reads no radius'
        yield Problem(f"{where}.radius", f'{what}; remove it, or set projection = "ball" or "sphere"')


def _has_dropout(experiment: Experiment, stage: Stage, task: str) -> bool:
    """Whether two passes over the task can differ. Parts that do not train have no dropout, unless the stage leaves it on."""
    encoder, shape, frozen = experiment.encoder, experiment.tasks[task], stage.frozen_dropout
    in_encoder = (stage.trains_encoder or frozen) and not (encoder.dropout == 0 and encoder.attention_dropout == 0)
    in_lora = bool(stage.adapted("lora", (task,))) and experiment.lora.dropout > 0
    trunk_trains = not {"trunks", f"trunks.{trunk_name(task, shape)}"}.isdisjoint(stage.train)
    options = trunk_options(task, shape, experiment.trunks)
    return in_encoder or in_lora or ((trunk_trains or frozen) and getattr(options, "dropout", 0.0) > 0)
