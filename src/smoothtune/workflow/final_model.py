"""The model that a run leaves, once its stages have ended: temperatures, evaluation, probes fitted again on dev rows.

Every process computes; the first one writes. Knows nothing of signals, nor of what listens to a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smoothtune import cache
from smoothtune.errors import SmoothtuneError
from smoothtune.runtime import processes
from smoothtune.workflow.evaluation import Evaluation
from smoothtune.workflow.material import Material
from smoothtune.workflow.run import MODEL, PROBE
from smoothtune.workflow.told import Told


class FinalModel:
    """The model of the run in `folder`, whose record so far is `record`."""

    def __init__(self, material: Material, folder: Path, record: Told) -> None:
        self._material = material
        self._folder = folder
        self._record = record
        self._together = processes.current()

    def write(self, *, interrupted: bool) -> dict[str, Any]:
        """Fold the temperatures in, unless the run was interrupted, and write the model; what `run.json` says of the run.

        Raises `SmoothtuneError` where the cache was changed under the run, `WriteError` where there is no room.
        """
        check_cache(self._folder)
        if not interrupted:
            self._record.temperatures = self._material.set_temperatures(self._without_temperature())
        facts = self._record.facts(self._material, interrupted=interrupted)
        self._write_model(facts)
        return facts

    def evaluate(self) -> tuple[Evaluation, dict[str, np.ndarray]]:
        """The evaluation on dev, beside the probe where that is another model, and the logits by task."""
        probes = self._record.probes()
        beside = (self._folder / PROBE).is_dir() and len(probes) < len(self._material.experiment.tasks)
        return self._material.evaluate(self._folder if beside else None, probes)

    def refit(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Fit the probes on dev rows too, now that these are scored, and write the model again; what `run.json` says of it."""
        wanted = self._material.experiment.refit == "probes"
        tasks = self._material.refit(self._record.probes() if wanted else (), self._record.temperatures)
        if not tasks:
            return {}
        self._write_model({**facts, "refit": list(tasks)})
        return {"refit": list(tasks)}

    def _write_model(self, facts: dict[str, Any]) -> None:
        with self._together.agreeing():
            if self._together.is_main:
                self._material.write_model(self._folder / MODEL, facts)

    def _without_temperature(self) -> tuple[str, ...]:
        """The tasks that are still probes, and whose temperature the recipe chose for the fine-tuned model."""
        probes, recipe = self._record.probes(), self._record.recipe
        chosen = () if recipe is None else recipe.get("temperatures", probes)
        return tuple(task for task in probes if task in chosen)


def check_cache(folder: Path) -> None:
    """Raise `SmoothtuneError` where entries of the cache were changed under the run in `folder`: it leaves no model then."""
    entries = cache.altered()
    if entries:
        raise SmoothtuneError(
            f"{entries[0]}: was changed on disk while the run read it, so what the run has learned may be wrong; "
            f"train again into another folder, and leave {folder} alone"
        )
