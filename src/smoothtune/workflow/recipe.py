"""The recipe `auto`: trunks, class weights and the one stage of an experiment, chosen from its training rows.

A linear probe on frozen states comes first, then fine-tuning from there (LP-FT; Kumar et al., 2022, "Fine-tuning can distort
pretrained features and underperform out-of-distribution"), which takes the place of the probe where it is better on
held-out rows. Knows nothing of run folders, nor of how anything is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smoothtune.config.experiment import Experiment, kind_of
from smoothtune.config.stage import Rates, Stage, Stop
from smoothtune.workflow.probe_choice import TrunkChoice, choose_trunk
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.trial import Trial, run_trial

FEW_DEV_ROWS = 200
"""Below so many held-out rows of every task, cross-validation on the training rows decides; from there on, the dev part."""
_LARGEST_STEP = (
    0.75  # outputs learn at this rate over the number of features: a step then moves logits by about so much
)


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

    Cost: one pass of the encoder over at most 1,000 training rows of each task, the fits of the probes, and, where dev
    is small, fine-tuning in 2 or 3 folds.
    """
    choices: dict[str, TrunkChoice] = {}
    for task in inputs.experiment.tasks:
        listen(Choosing(f"linear probe of {task}"))
        choices[task] = choose_trunk(inputs, task)
    experiment = _with_trunks(inputs.experiment, choices)
    pooled = all(choice.pooled for choice in choices.values())
    stage = _stage(inputs, experiment, choices)
    trial: Trial | None = None
    if pooled and all(inputs.rows(task, "dev") < FEW_DEV_ROWS for task in experiment.tasks):
        trial = run_trial(inputs, experiment, stage, lambda done, total: listen(Choosing("fine-tuning", done, total)))
        stage = _stage_after_trial(stage, trial, len(experiment.tasks))
    experiment = experiment.model_copy(update={"recipe": "none", "stages": (stage,)})
    return Recipe(experiment, _record(inputs, choices, stage, trial), tuple(_sentences(inputs, choices, stage, trial)))


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


def _stage(inputs: RecipeInputs, experiment: Experiment, choices: Mapping[str, TrunkChoice]) -> Stage:
    """Fine-tuning by the sizes of the tasks; with trunks of inner layers, a plain stage that begins with what probes can set."""
    several = len(choices) > 1
    if not all(choice.pooled for choice in choices.values()):
        steady = all(choice.options.steady for choice in choices.values())
        return Stage(name="fine-tuning", init="probe" if steady else None)
    rows = {task: inputs.rows(task, "train") for task in choices}
    largest = max(rows.values())
    batch = 16 if largest < 600 else 32  # of all processes together
    steps = sum(_steps(count, batch) for count in rows.values())
    widest = max(choice.features for choice in choices.values())
    passes = sum(-(-count // batch) for count in rows.values())
    uneven = several and largest > 2 * min(rows.values())
    return Stage(
        name="fine-tuning",
        init="probe",
        schedule="temperature" if uneven else "proportional",
        schedule_options={"kind": "temperature", "alpha": 0.5} if uneven else {"kind": "proportional"},
        batch_size=max(batch // inputs.processes, 1),
        learning_rate=Rates(
            encoder=1e-4 if largest < 2000 else 5e-5, outputs=_rounded(min(_LARGEST_STEP / widest, 1e-2))
        ),
        stop=Stop(max_steps=steps, max_epochs=-(-steps // passes) + 1, no_task_below_start=several),
    )


def _steps(rows: int, batch: int) -> int:
    """Steps for so many rows: many passes over few rows, few over many."""
    passes = 8.0 if rows <= 300 else max(2.0, 8.0 * (300 / rows) ** 0.45)
    return round(max(passes * rows / batch, 40 if rows < 600 else 0))


def _rounded(rate: float) -> float:
    """Two significant digits."""
    return float(f"{rate:.1e}")


def _stage_after_trial(stage: Stage, trial: Trial | None, tasks: int) -> Stage:
    """The stage after the trial: the probe alone, or fine-tuning to its end, or (several tasks) to its best state."""
    if trial is None or not trial.better:
        return Stage(name="probe", init="probe", train=("outputs",), stop=Stop(max_steps=0))
    if tasks > 1:
        return stage
    return stage.model_copy(update={"stop": stage.stop.model_copy(update={"keep": "last"})})


def _record(
    inputs: RecipeInputs, choices: Mapping[str, TrunkChoice], stage: Stage, trial: Trial | None
) -> dict[str, Any]:
    tasks = {
        name: {
            "rows": inputs.rows(name, "train"),
            "dev_rows": inputs.rows(name, "dev"),
            "classes": inputs.classes(name),
            "trunk": choice.options.model_dump(mode="json"),
            "class_weights": choice.class_weights,
            "probe": choice.to_json(),
        }
        for name, choice in choices.items()
    }
    return {
        "name": "auto",
        "tasks": tasks,
        "steps": stage.stop.max_steps,
        "cross_validation": None if trial is None else trial.to_json(),
    }


def _sentences(
    inputs: RecipeInputs, choices: Mapping[str, TrunkChoice], stage: Stage, trial: Trial | None
) -> list[str]:
    lines = [
        f"{name}: {inputs.rows(name, 'train'):,} rows{_classes(inputs.classes(name))}; {_of(choice)}"
        f"{', balanced class weights' if choice.class_weights == 'balanced' else ''}"
        for name, choice in choices.items()
    ]
    if stage.stop.max_steps == 0 and trial is None:
        return [*lines, "too few rows for cross-validation: the probe is the model"]
    if trial is None:
        steps = f"at most {stage.stop.max_steps:,} steps" if stage.stop.max_steps else f"{stage.stop.max_epochs} epochs"
        return [*lines, f"fine-tuning follows, {steps}; the best state on dev is kept"]
    parts = ", ".join(
        f"{name} {compared.metric} {compared.probe:.3f} -> {compared.tuned:.3f}"
        for name, compared in trial.tasks.items()
    )
    verdict = f"fine-tuning follows, {stage.stop.max_steps:,} steps" if trial.better else "the probe is the model"
    return [*lines, f"{trial.folds}-fold cross-validation, probe -> fine-tuned: {parts}: {verdict}"]


def _classes(count: int) -> str:
    return f" of {count:,} classes" if count else ""


def _of(choice: TrunkChoice) -> str:
    options = choice.options
    if not choice.pooled:
        return f"trunk {kind_of(options)}, which trains"
    layers, scaling = options.reads, getattr(options, "scaling", "none")
    of = "the last layer" if layers is None else f"layers {', '.join(map(str, layers))}"
    return f"linear probe on {of}{'' if scaling == 'none' else f' ({scaling} scaling)'}"
