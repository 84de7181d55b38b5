"""A recipe in words, and as the plain values that a run keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smoothtune.config.experiment import kind_of
from smoothtune.config.stage import Stage
from smoothtune.workflow.probe_choice import TrunkChoice
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.trial import Comparison, Trial


@dataclass(frozen=True, slots=True)
class Choice:
    """The trunks by task, the stages, and the trial that decided between probe and fine-tuning, None where there was none.

    `temperatures` are the tasks whose temperature was chosen too: it is of the fine-tuned model, and not of its probe.
    """

    trunks: Mapping[str, TrunkChoice]
    stages: tuple[Stage, ...]
    trial: Trial | None
    temperatures: tuple[str, ...] = ()

    @property
    def tuned(self) -> tuple[str, ...]:
        """The tasks that are fine-tuned."""
        last = self.stages[-1]
        if last.stop.max_steps == 0:
            return ()
        return tuple(self.trunks) if last.tasks is None else last.tasks


def choice_record(inputs: RecipeInputs, choice: Choice) -> dict[str, Any]:
    """What a run keeps of the recipe."""
    tasks = {
        name: {
            "rows": inputs.rows(name, "train"),
            "dev_rows": inputs.rows(name, "dev"),
            "classes": inputs.classes(name),
            "trunk": trunk.options.model_dump(mode="json"),
            "class_weights": trunk.class_weights,
            "probe": trunk.to_json(),
        }
        for name, trunk in choice.trunks.items()
    }
    return {
        "name": "auto",
        "tasks": tasks,
        "steps": choice.stages[-1].stop.max_steps,
        "temperatures": list(choice.temperatures),
        "cross_validation": None if choice.trial is None else choice.trial.to_json(),
    }


def sentences(inputs: RecipeInputs, choice: Choice) -> list[str]:
    """A sentence for each task, and one or two on what follows."""
    lines = [
        f"{name}: {inputs.rows(name, 'train'):,} rows{_classes(inputs.classes(name))}; {_trunk(trunk)}"
        f"{', balanced class weights' if trunk.class_weights == 'balanced' else ''}"
        for name, trunk in choice.trunks.items()
    ]
    if choice.trial is not None:
        parts = ", ".join(f"{name} {_comparison(part)}" for name, part in choice.trial.tasks.items())
        lines.append(f"{choice.trial.folds}-fold cross-validation, probe -> fine-tuned: {parts}")
    elif not choice.tuned:
        lines.append("too few rows for cross-validation")
    return [*lines, *_verdict(choice)]


def _comparison(compared: Comparison) -> str:
    return f"{compared.metric} {compared.probe:.3f} -> {compared.tuned:.3f}"


def _verdict(choice: Choice) -> list[str]:
    """What the model will be."""
    several = len(choice.trunks) > 1
    if not choice.tuned:
        return [f"the probe is the model{' of every task' if several else ''}"]
    stop = choice.stages[-1].stop
    length = f"{stop.max_steps:,} steps" if stop.max_steps else f"{stop.max_epochs} epochs"
    of = f" of {', '.join(choice.tuned)}" if several else ""
    lines = [f"fine-tuning{of} follows, {length}"]
    if stop.leaves_each_task:
        lines = [
            f"fine-tuning{of} follows, {length}, with LoRA for each task; a task keeps its probe if that scores higher on dev"
        ]
    elif stop.keep == "best":
        lines = [f"fine-tuning{of} follows, at most {length}; the best state on dev is kept"]
    probes = [name for name in choice.trunks if name not in choice.tuned]
    return lines + ([f"the probe is the model of {', '.join(probes)}: fine-tuning did not beat it"] if probes else [])


def _classes(count: int) -> str:
    return f" of {count:,} classes" if count else ""


def _trunk(choice: TrunkChoice) -> str:
    options = choice.options
    if not choice.pooled:
        return f"trunk {kind_of(options)}, which trains"
    layers, scaling = options.reads, getattr(options, "scaling", "none")
    of = "the last layer" if layers is None else f"layers {', '.join(map(str, layers))}"
    return f"linear probe on {of}{'' if scaling == 'none' else f' ({scaling} scaling)'}"
