"""The recipe `auto`: trunks, class weights, stages and temperatures of an experiment, chosen from its training rows.

A linear probe on frozen states comes first, then fine-tuning from there (LP-FT; Kumar et al., 2022, "Fine-tuning can distort
pretrained features and underperform out-of-distribution"), which takes the place of the probe where it is better on
held-out rows. Knows nothing of run folders, nor of how anything is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from smoothtune.config.experiment import Experiment
from smoothtune.config.stage import Stage
from smoothtune.errors import UsageError
from smoothtune.nn.encoder import Encoder
from smoothtune.workflow.probe_choice import TrunkChoice, choose_trunk
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.recipe_stages import (
    LORA,
    StagePlan,
    plain_stage,
    small_tasks,
    stages_apart,
    stages_together,
)
from smoothtune.workflow.recipe_words import Choice, choice_record, sentences
from smoothtune.workflow.trial import Trial, run_trial


@dataclass(frozen=True, slots=True)
class Choosing:
    """The recipe is at work on `what`; `done` of `total` steps of fine-tuning in cross-validation are done."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class RecipeChosen:
    """The recipe in words."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The experiment with everything that the recipe chose, what it rests on as plain values, and that in words."""

    experiment: Experiment
    record: dict[str, Any]
    sentences: tuple[str, ...]


def choose_recipe(inputs: RecipeInputs, listen: Callable[[Choosing], None]) -> Recipe:
    """The recipe for an experiment whose stages are left open.

    Cost: one pass of the encoder over at most 1,000 training rows of each task, the fits of the probes, and, for tasks whose
    dev part is small, fine-tuning in 2 or 3 folds.
    """
    choices: dict[str, TrunkChoice] = {}
    for task in inputs.experiment.tasks:
        listen(Choosing(f"linear probe of {task}"))
        choices[task] = choose_trunk(inputs, task)
    experiment = _with_trunks(inputs.experiment, choices)
    if not all(choice.pooled for choice in choices.values()):
        return _recipe(experiment, inputs, Choice(choices, (plain_stage(choices),), None))
    apart = len(choices) > 1 and takes_lora(inputs.encoder)
    if apart and "lora" not in experiment.model_fields_set:
        experiment = experiment.model_copy(update={"lora": LORA})
    plan = StagePlan({name: choice.features for name, choice in choices.items()}, apart, inputs.processes)
    stages, trial = _stages(inputs, experiment, plan, listen)
    warm = _with_temperatures(experiment, stages, trial)
    names = tuple(name for name, task in warm.tasks.items() if task != experiment.tasks[name])
    return _recipe(warm, inputs, Choice(choices, stages, trial, names))


def takes_lora(encoder: Encoder) -> bool:
    """Whether the encoder's products are known, so that LoRA can change them."""
    try:
        encoder.hub_path(0, "output")
    except UsageError:
        return False
    return True


def _stages(
    inputs: RecipeInputs, experiment: Experiment, plan: StagePlan, listen: Callable[[Choosing], None]
) -> tuple[tuple[Stage, ...], Trial | None]:
    """The stages, and the trial behind them if there was one.

    Tasks apart are tried one by one, where their dev parts are small; together, all are where all of these are.
    """
    rows = {task: inputs.rows(task, "train") for task in experiment.tasks}
    small = small_tasks(inputs)
    tried = bool(small) if plan.apart else len(small) == len(rows)
    trial: Trial | None = None
    if tried:
        trial = run_trial(inputs, experiment, plan.fine_tuning, small, partial(_listen, listen))
    if plan.apart:
        return stages_apart(plan, rows, trial, small), trial
    return stages_together(plan, rows, trial, tried=tried), trial


def _listen(listen: Callable[[Choosing], None], done: int, total: int) -> None:
    listen(Choosing("fine-tuning", done, total))


def _recipe(experiment: Experiment, inputs: RecipeInputs, choice: Choice) -> Recipe:
    given = "refit" in experiment.model_fields_set or all(stage.init is None for stage in choice.stages)
    refit = {} if given else {"refit": "probes"}
    experiment = experiment.model_copy(update={"recipe": "none", "stages": choice.stages, **refit})
    return Recipe(experiment, choice_record(inputs, choice), tuple(sentences(inputs, choice)))


def _with_trunks(experiment: Experiment, choices: Mapping[str, TrunkChoice]) -> Experiment:
    """The experiment with the trunks and class weights that were chosen written out."""
    trunks: dict[str, Any] = dict(experiment.trunks)
    tasks = dict(experiment.tasks)
    for name, choice in choices.items():
        changes: dict[str, Any] = {}
        if choice.own:
            trunks[name] = choice.options
            changes["trunk"] = name
        if choice.class_weights is not None:
            changes["class_weights"] = choice.class_weights
        tasks[name] = tasks[name].model_copy(update=changes)
    return experiment.model_copy(update={"trunks": trunks, "tasks": tasks})


def _with_temperatures(experiment: Experiment, stages: tuple[Stage, ...], trial: Trial | None) -> Experiment:
    """The experiment with the temperatures of fine-tuned tasks: those of the trial, or to be fitted on dev."""
    tasks = dict(experiment.tasks)
    tuned = () if stages[-1].stop.max_steps == 0 else experiment.stage_tasks(stages[-1])
    for name in tuned:
        if tasks[name].kind == "regression" or getattr(tasks[name], "temperature", None) is not None:
            continue
        compared = None if trial is None else trial.tasks.get(name)
        value = "dev" if compared is None else compared.temperature
        tasks[name] = tasks[name].model_copy(update={"temperature": value})
    return experiment.model_copy(update={"tasks": tasks})
