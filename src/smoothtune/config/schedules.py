"""Options of every schedule: which task's batch comes next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from smoothtune.config.options import Options


class ProportionalOptions(Options):
    """Each step one batch of one task, shuffled; an epoch sees every row once (MT-DNN)."""

    kind: Literal["proportional"] = "proportional"


class RoundRobinOptions(Options):
    """The tasks in turn; an epoch ends when the first, or the last, task is through."""

    kind: Literal["round_robin"] = "round_robin"
    until: Literal["first_exhausted", "all_exhausted"] = Field(
        "first_exhausted", description="all_exhausted: a task that is through drops out of the turn"
    )
    every_task: bool = Field(False, description="one optimiser step takes one batch of every task")

    @model_validator(mode="after")
    def _whole_rounds(self) -> RoundRobinOptions:
        if self.every_task and self.until == "all_exhausted":
            raise ValueError(
                'every_task needs until = "first_exhausted": rounds that lose tasks have no batch of every task'
            )
        return self


class LoopToLargestOptions(Options):
    """The tasks in turn; small ones loop while the largest is seen once (Chen and Zhang, section 5.3)."""

    kind: Literal["loop_to_largest"] = "loop_to_largest"
    every_task: bool = Field(False, description="one optimiser step takes one batch of every task")


class TemperatureOptions(Options):
    """Each step draws a task with p ~ N^alpha (alpha 1: proportional to size, 0: all alike)."""

    kind: Literal["temperature"] = "temperature"
    alpha: float = Field(0.5, ge=0, le=1)
    steps_per_epoch: int | None = Field(
        None, ge=1, le=10_000_000, description="batches an epoch; default: as many as see every row once"
    )


class AnnealedOptions(Options):
    """As `temperature`, alpha falling linearly over the epochs (Stickland and Murray, 2019, section 4)."""

    kind: Literal["annealed"] = "annealed"
    start: float = Field(1.0, ge=0, le=1, description="alpha of the first epoch")
    end: float = Field(0.2, ge=0, le=1, description="alpha of the last epoch")
    steps_per_epoch: int | None = Field(
        None, ge=1, le=10_000_000, description="batches an epoch; default: as many as see every row once"
    )


ScheduleOptions = Annotated[
    ProportionalOptions | RoundRobinOptions | LoopToLargestOptions | TemperatureOptions | AnnealedOptions,
    Field(discriminator="kind"),
]
ScheduleName = Literal["proportional", "round_robin", "loop_to_largest", "temperature", "annealed"]
