"""A stage: what trains, on which tasks, with which schedule and weighting, until which stopping rule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from smoothtune.config.options import Name, Options
from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.config.schedules import ProportionalOptions, ScheduleName, ScheduleOptions

WeightingName = Literal["none", "fixed", "inverse_size", "learned"]
START = "start"  # as `from`: the state before any stage
Rate = Annotated[float, Field(gt=0, le=1)]
Norm = Annotated[float, Field(gt=0)]


class Rates(Options):
    """Peak learning rates by part of the model.

    That of adaptations (LoRA and adapters) is what the scripts of LoRA's authors give RoBERTa-base on MNLI, QQP and RTE
    (microsoft/LoRA, examples/NLU).
    """

    encoder: Rate = 5e-5
    trunks: Rate = 1e-3
    outputs: Rate = 1e-3
    adaptations: Rate = Field(5e-4, description="of LoRA and adapters")


class Stop(Options):
    """When a stage ends. Without patience it runs `max_epochs`."""

    metric: str = Field("score", description="`score`, `plain_mean`, `TASK` (its main metric) or `TASK.METRIC`")
    patience: int | None = Field(None, ge=1, description="epochs without improvement before the stage ends")
    threshold: float = Field(0.0, ge=0, description="an improvement must exceed the best value by more than this")
    max_epochs: int = Field(3, ge=1)
    max_steps: int | None = Field(None, ge=0, description='optimiser steps; 0, with init = "probe": the probe as it is')
    keep: Literal["best", "last"] = Field("best", description="the state that the stage leaves, of those it evaluates")
    no_task_below_start: bool = Field(
        False, description="only a state in which no task is below its metric before the first step counts as the best"
    )
    per_task: bool = Field(
        False,
        description="each task is judged by its own metric. With `patience` it leaves the schedule when that is spent, and "
        "its best output is kept; without, each task leaves its own best (or last) state, in a stage that trains nothing shared",
    )

    @property
    def leaves_each_task(self) -> bool:
        """Whether each task leaves a state of its own, be it of another epoch than that of the others."""
        return self.per_task and self.patience is None


def _as_rates(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return dict.fromkeys(Rates.model_fields, value)
    return value


def _as_norm(value: Any) -> Any:
    if value is True:
        raise ValueError("got true, expected a number, or false for none")
    return None if value is False else value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_selection(value: Any) -> Any:
    if isinstance(value, list | tuple) and not value:
        raise ValueError('names nothing; name what learns, for example ["encoder", "trunks", "outputs"]')
    return _as_tuple(value)


class Stage(Options):
    """One stage of training."""

    name: Name = "train"
    kind: Literal["tasks"] = "tasks"
    tasks: Annotated[
        tuple[Name, ...] | None,
        BeforeValidator(_as_tuple, json_schema_input_type=Name | list[Name] | None),
        Field(min_length=1, description="default: all"),
    ] = None
    train: Annotated[
        tuple[str, ...],
        BeforeValidator(_as_selection, json_schema_input_type=str | list[str]),
        Field(
            min_length=1,
            description="what learns: encoder, encoder.embeddings, encoder.layers.A-B, trunks, trunks.NAME, outputs, "
            "outputs.TASK, lora, lora.TASK, adapters, adapters.TASK; all else is frozen",
        ),
    ] = ("encoder", "trunks", "outputs")
    begins_from: Name | None = Field(
        None,
        alias="from",
        description="the earlier stage whose best state this one begins with, or `start`, the state before any stage; "
        "default: the stage before",
    )
    init: Literal["probe"] | None = Field(
        None,
        description="probe: outputs begin as a linear probe of the features of the training rows, by cross-validation",
    )
    frozen_dropout: bool = Field(
        False, description="whether dropout stays on inside what is frozen; its running statistics never move"
    )
    schedule: ScheduleName = "proportional"
    schedule_options: ScheduleOptions = ProportionalOptions()
    weighting: Annotated[
        tuple[WeightingName, ...],
        BeforeValidator(_as_tuple, json_schema_input_type=WeightingName | list[WeightingName]),
        Field(min_length=1),
    ] = ("none",)
    regularisers: tuple[RegulariserOptions, ...] = Field(
        (), description="terms from a second look at the batch, each a table [[stages.regularisers]]"
    )
    batch_size: int = Field(32, ge=1, le=4096)
    learning_rate: Annotated[Rates, BeforeValidator(_as_rates, json_schema_input_type=Rate | Rates)] = Rates()
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps over which the rate rises")
    weight_decay: float = Field(0.01, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of each encoder layer relative to the one above")
    gradient_clip: Annotated[
        Norm | None,
        BeforeValidator(_as_norm, json_schema_input_type=Norm | Literal[False] | None),
        Field(description="largest norm of all gradients; `false`: none"),
    ] = 1.0
    accumulate: int = Field(1, ge=1, description="batches (or rounds of every task) per optimiser step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor has it"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="what to do at a loss or a gradient that is not finite; `skip` leaves its batches out"
    )
    stop: Stop = Stop()

    @model_validator(mode="before")
    @classmethod
    def _join_schedule(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        schedule = values.get("schedule", "proportional")
        options = values.get("schedule_options", {})
        if not isinstance(options, dict) or not isinstance(schedule, str):
            return values
        if options.get("kind", schedule) != schedule:
            raise ValueError(
                f"schedule_options.kind is {options['kind']!r}, but schedule is {schedule!r}; "
                f"set schedule alone and leave out schedule_options.kind"
            )
        return {**values, "schedule_options": {**options, "kind": schedule}}

    @property
    def trains_encoder(self) -> bool:
        """Whether anything inside the encoder learns."""
        return any(selector.partition(".")[0] == "encoder" for selector in self.train)

    @property
    def rates_read(self) -> tuple[str, ...]:
        """Those of the learning rates that something it trains has."""
        parts = {selector.partition(".")[0] for selector in self.train}
        adapts = not parts.isdisjoint(("lora", "adapters"))
        return tuple(name for name in Rates.model_fields if name in parts or (name == "adaptations" and adapts))

    def adapted(self, part: Literal["lora", "adapters"], tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the stage's `tasks` whose LoRA, or adapters, it trains."""
        return tuple(task for task in tasks if part in self.train or f"{part}.{task}" in self.train)

    @property
    def every_task(self) -> bool:
        """Whether one optimiser step takes one batch of every task."""
        return bool(getattr(self.schedule_options, "every_task", False))
