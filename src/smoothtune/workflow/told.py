"""What a run has to tell of itself so far, in `run.json` and in checkpoints. Knows nothing of when either is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from smoothtune.runtime import processes
from smoothtune.training.notices import Notice
from smoothtune.training.stage_events import StageEvent
from smoothtune.workflow.frozen import FrozenStates
from smoothtune.workflow.identity import Identity
from smoothtune.workflow.material import Material
from smoothtune.workflow.run import machine
from smoothtune.workflow.saving import RunState
from smoothtune.workflow.stages import StageRecord, steps_by_task


@dataclass(slots=True)
class Told:
    """Stages, stores of frozen states, notices and resumptions; `before` are the stages that an earlier process ended.

    `recipe` is what chose the stages, None where they were given; `temperatures` divide the logits of the trained model.
    """

    before: list[dict[str, Any]] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    frozen: list[dict[str, Any]] = field(default_factory=list)
    notices: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    temperatures: dict[str, float] = field(default_factory=dict)

    def take(self, event: StageEvent | FrozenStates) -> None:
        """Follow one event of the stage under way."""
        if isinstance(event, FrozenStates):
            self.frozen.append(asdict(event))
            return
        if isinstance(event, Notice):
            self.notices.append(asdict(event))
        self.stages[-1].take(event)

    def run_state(self, identity: Identity, material: Material, metrics: int) -> RunState:
        """What a checkpoint holds now beside its stage; metrics.jsonl has `metrics` bytes."""
        return RunState(
            identity=identity,
            machine=machine(material.device.type),
            threads=material.threads,
            stage=self.stages[-1].number,
            told=self._all_stages()[:-1],
            frozen=self.frozen,
            notices=self.notices,
            metrics=metrics,
            resumed=self.resumed,
        )

    def facts(self, material: Material, *, interrupted: bool = False, failure: str | None = None) -> dict[str, Any]:
        """What `run.json` says."""
        return {
            "interrupted": interrupted,
            "failure": failure,
            "device": str(material.device),
            "processes": processes.current().world,
            "threads": material.threads,
            "precision": str(material.dtype).removeprefix("torch."),
            "stages": self._all_stages(),
            "frozen": self.frozen,
            "notices": self.notices,
            "resumed": self.resumed,
            **self._recipe_facts(),
            **({"temperatures": self.temperatures} if self.temperatures else {}),
            **machine(material.device.type),
        }

    def probes(self) -> tuple[str, ...]:
        """The tasks that are as their last stage began with them."""
        return tuple(task for task, step in steps_by_task(self._all_stages()).items() if step == 0)

    def _recipe_facts(self) -> dict[str, Any]:
        """What the recipe chose, where there was one, and which model came of it: by task where there are several."""
        if self.recipe is None:
            return {}
        models = {
            task: None if step is None else "fine-tuned" if step else "probe"
            for task, step in steps_by_task(self._all_stages()).items()
        }
        model = next(iter(models.values()), None) if len(models) < 2 else models
        return {"recipe": {**self.recipe, "model": model}}

    def _all_stages(self) -> list[dict[str, Any]]:
        return [*self.before, *(stage.to_json() for stage in self.stages)]
