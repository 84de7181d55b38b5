"""What each stage of an experiment trains, known before any data are read. Knows nothing of weights or of training."""

from __future__ import annotations

from collections.abc import Mapping

from smoothtune.config.experiment import Experiment
from smoothtune.config.tasks import shape_of
from smoothtune.nn.building import build_model
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.selection import chosen_parameters

Labels = Mapping[str, tuple[str, ...] | None]


def any_labels(experiment: Experiment) -> Labels:
    """Labels that stand in for those of the data: how many there are changes no parameter's name."""
    return dict.fromkeys(experiment.tasks, ("", " "))


def fresh_model(experiment: Experiment, encoder: Encoder, labels: Labels, stage: int | None = None) -> MultiTaskModel:
    """A fresh model around `encoder`, with the LoRA and adapters that there are in stage number `stage`."""
    return build_model(
        encoder,
        {name: shape_of(task) for name, task in experiment.tasks.items()},
        experiment.trunks,
        labels,
        seed=experiment.seed,
        lora={} if stage is None else experiment.lora_after(stage),
        adapters={} if stage is None else experiment.adapters_after(stage),
    )


def trained_by_stage(experiment: Experiment, encoder: Encoder) -> list[set[str]]:
    """By stage, the full names of the parameters that it trains. Raises `UsageError` where a stage selects nothing."""
    found = []
    for number, stage in enumerate(experiment.stages):
        model = fresh_model(experiment, encoder, any_labels(experiment), number)
        found.append(set(chosen_parameters(model, stage, experiment.stage_tasks(stage))))
    return found
