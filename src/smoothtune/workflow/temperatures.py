"""Divides the logits of a trained model by the temperatures of its tasks. Knows nothing of files or stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from smoothtune.config.tasks import AnyTask
from smoothtune.data.batching import Examples
from smoothtune.evaluation.temperature import fit_temperature
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.outputs import divide_logits


def tasks_fitted_on_dev(tasks: Mapping[str, AnyTask]) -> tuple[str, ...]:
    """The tasks whose temperature is "dev"."""
    return tuple(name for name, task in tasks.items() if getattr(task, "temperature", None) == "dev")


def temperatures_of(
    tasks: Mapping[str, AnyTask], logits: Mapping[str, np.ndarray], dev: Mapping[str, Examples]
) -> dict[str, float]:
    """The temperature of each task that has one: the number of the experiment, or the fit to its dev `logits`."""
    fitted: dict[str, float] = {}
    for name, examples in dev.items():
        assert examples.labels is not None
        fitted[name] = fit_temperature(logits[name], examples.labels[examples.chosen])
    numbers = {name: getattr(task, "temperature", None) for name, task in tasks.items()}
    return {**{name: value for name, value in numbers.items() if isinstance(value, float)}, **fitted}


def set_temperatures(model: MultiTaskModel, temperatures: Mapping[str, float]) -> None:
    """Fold the temperatures into the outputs of their tasks."""
    for name, temperature in temperatures.items():
        if temperature != 1.0:
            divide_logits(model.outputs[name], temperature)
