"""The stages that the recipe writes: their steps and rates by the number of rows, and what a trial leaves of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smoothtune.config.adaptations import LoraOptions
from smoothtune.config.stage import Rates, Stage, Stop
from smoothtune.workflow.probe_choice import TrunkChoice
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.trial import Trial

FEW_DEV_ROWS = 200
"""With fewer held-out rows of a task, cross-validation on its training rows decides; from there on, the dev part."""
LORA = LoraOptions(rank=8, alpha=8.0, targets=("query", "key", "value", "output", "up", "down"))
_LORA_RATE = 2e-3
_LARGEST_STEP = (
    0.75  # outputs learn at this rate over the number of features: a step then moves logits by about so much
)
PROBE = Stage(name="probe", init="probe", train=("outputs",), stop=Stop(max_steps=0))
"""The probe as it is."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What the stages follow from: whether each task has LoRA of its own (`apart`), and how many features its trunk has."""

    features: Mapping[str, int]
    apart: bool
    processes: int

    def fine_tuning(self, rows: Mapping[str, int]) -> Stage:
        """Fine-tuning of the tasks of `rows`, which have so many training rows, from their probes."""
        largest, several = max(rows.values()), len(self.features) > 1
        batch = 16 if largest < 600 else 32  # of all processes together
        steps = sum(_steps(count, batch) for count in rows.values())
        passes = sum(-(-count // batch) for count in rows.values())
        uneven = len(rows) > 1 and largest > 2 * min(rows.values())
        outputs = _rounded(min(_LARGEST_STEP / max(self.features[task] for task in rows), 1e-2))
        encoder = 1e-4 if largest < 2000 else 5e-5
        rates = (
            Rates(adaptations=_LORA_RATE, outputs=outputs) if self.apart else Rates(encoder=encoder, outputs=outputs)
        )
        return Stage(
            name="fine-tuning",
            init="probe",
            train=("lora", "outputs") if self.apart else ("encoder", "trunks", "outputs"),
            schedule="temperature" if uneven else "proportional",
            schedule_options={"kind": "temperature", "alpha": 0.5} if uneven else {"kind": "proportional"},
            batch_size=max(batch // self.processes, 1),
            learning_rate=rates,
            stop=Stop(
                max_steps=steps, max_epochs=-(-steps // passes) + 1, no_task_below_start=several, per_task=self.apart
            ),
        )


def plain_stage(choices: Mapping[str, TrunkChoice]) -> Stage:
    """The stage of trunks with inner layers, which begins with what probes can set."""
    steady = all(choice.options.steady for choice in choices.values())
    return Stage(name="fine-tuning", init="probe" if steady else None)


def small_tasks(inputs: RecipeInputs) -> tuple[str, ...]:
    """The tasks with too few dev rows to decide by."""
    return tuple(task for task in inputs.experiment.tasks if inputs.rows(task, "dev") < FEW_DEV_ROWS)


def stages_together(plan: StagePlan, rows: Mapping[str, int], trial: Trial | None, *, tried: bool) -> tuple[Stage, ...]:
    """One stage of all tasks, which share what trains: fine-tuning, or the probe where a trial was `tried` in vain."""
    stage = plan.fine_tuning(rows)
    if not tried:
        return (stage,)
    if trial is None or not trial.better or trial.tasks.keys() != rows.keys():
        return (PROBE,)
    if len(rows) > 1:
        return (stage,)
    return (stage.model_copy(update={"stop": stage.stop.model_copy(update={"keep": "last"})}),)


def stages_apart(
    plan: StagePlan, rows: Mapping[str, int], trial: Trial | None, small: tuple[str, ...]
) -> tuple[Stage, ...]:
    """Probes of all tasks, then fine-tuning of those that a trial has not shown to be better as they are.

    Of a task with few dev rows the last state is left that is not below its probe on dev, of others the best one.
    """
    better = {task for task, compared in trial.tasks.items() if compared.better} if trial is not None else set()
    tuned = {task: count for task, count in rows.items() if task in better or task not in small}
    if not tuned:
        return (PROBE,)
    stage = plan.fine_tuning(tuned)
    if better & tuned.keys():
        stage = stage.model_copy(update={"stop": stage.stop.model_copy(update={"keep": "last"})})
    if len(tuned) == len(rows):
        return (stage,)
    return (PROBE, stage.model_copy(update={"init": None, "tasks": tuple(tuned)}))


def _steps(rows: int, batch: int) -> int:
    """Steps for so many rows: many passes over few rows, few over many."""
    passes = 8.0 if rows <= 300 else max(2.0, 8.0 * (300 / rows) ** 0.45)
    return round(max(passes * rows / batch, 40 if rows < 600 else 0))


def _rounded(rate: float) -> float:
    """Two significant digits."""
    return float(f"{rate:.1e}")
