"""The whole experiment as one frozen object, and the questions other rooms ask of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.options import Name, Options
from smoothtune.config.stage import START, Stage
from smoothtune.config.tasks import AnyShape, Shape, Task
from smoothtune.config.trunks import MeanTrunk, SiameseTrunk, TrunkBase, TrunkOptions


class CheckpointEvery(Options):
    """When a run writes what it can go on from; 0 means: not for this reason."""

    epochs: int = Field(1, ge=0, description="epochs of a stage")
    steps: int = Field(0, ge=0, description="optimiser steps of a stage")
    minutes: float = Field(10.0, ge=0, allow_inf_nan=False, description="at most so many minutes of training apart")
    share: float = Field(
        0.02,
        gt=0,
        le=1,
        description="of the time that writing after epochs may take; where one would exceed it, a later one is "
        "written; 1: no limit",
    )

    @property
    def never(self) -> bool:
        """Whether nothing is ever written."""
        return not (self.epochs or self.steps or self.minutes)


def _as_every(value: Any) -> Any:
    if value is False:
        return {"epochs": 0, "steps": 0, "minutes": 0}
    if value is True or not isinstance(value, int | dict | CheckpointEvery):
        got = "true" if value is True else repr(value)[:80]
        raise ValueError(
            f"got {got}, expected a number of steps, a table such as {{ minutes = 5 }}, or false for never"
        )
    return {"steps": value} if isinstance(value, int) else value


class RuntimeOptions(Options):
    """Where the experiment runs."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if there is one")
    threads: int | None = Field(
        None, ge=1, le=1024, description="processor threads; default: one per core this process may use"
    )
    frozen_states: Literal["auto", "off"] = Field(
        "auto",
        description="auto: a stage that trains nothing in the encoder reads each text once and keeps the encoder's states in "
        "the cache, within a quarter of the free disk; off: encode at every step",
    )
    checkpoint_every: Annotated[
        CheckpointEvery,
        BeforeValidator(_as_every, json_schema_input_type=int | Literal[False] | CheckpointEvery),
        Field(
            description="when to write a checkpoint, from which an ended run goes on; a number: also each so many steps; "
            "`false`: never"
        ),
    ] = CheckpointEvery()


class Experiment(Options):
    """Tasks, encoder, trunks, an ordered list of stages and a seed."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9_./-]+$", max_length=120)
    seed: int = Field(1, ge=0, lt=2**63)
    hold_out: Literal["stratified", "hashed"] = Field(
        "stratified",
        description="how a fraction is held out as `dev`; stratified: the same share of each label; hashed: by the texts "
        "alone, as runs did before this key",
    )
    class_labels: Literal["names", "numbers"] = Field(
        "names",
        description="what the labels are that `datasets` writes as ClassLabel; numbers: as in runs before this key",
    )
    encoder: EncoderOptions = EncoderOptions()
    tasks: dict[Name, Task] = Field(min_length=1)
    trunks: dict[Name, TrunkOptions] = Field({})
    lora: LoraOptions = LoraOptions()
    adapters: AdapterOptions = AdapterOptions()
    recipe: Literal["auto", "none"] = Field(
        "none",
        description="auto: trunks, class weights and the one stage are chosen from the data, beginning with a linear probe; "
        "the default of an experiment without stages; none: the stages as they stand",
    )
    stages: tuple[Stage, ...] = Field((Stage(),), min_length=1)
    refit: Literal["none", "probes"] = Field(
        "none",
        description="probes: once the dev rows are scored, each task that is still the linear probe that a stage began with is "
        "fitted again, on training and dev rows together, if its dev part is a fraction of the training file",
    )
    runtime: RuntimeOptions = RuntimeOptions()

    @model_validator(mode="before")
    @classmethod
    def _choose_recipe(cls, values: Any) -> Any:
        """An experiment without stages leaves them to the recipe, unless it says otherwise."""
        if isinstance(values, dict) and "recipe" not in values and "stages" not in values:
            return {**values, "recipe": "auto"}
        return values

    @model_validator(mode="before")
    @classmethod
    def _number_stages(cls, values: Any) -> Any:
        """Unnamed stages are called stage-1, stage-2 ... so that reports can tell them apart."""
        if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
            return values
        stages = [
            {"name": f"stage-{number}", **stage} if isinstance(stage, dict) else stage
            for number, stage in enumerate(values["stages"], start=1)
        ]
        return {**values, "stages": stages}

    def stage_tasks(self, stage: Stage) -> tuple[str, ...]:
        """The names of the tasks of a stage, in the order of the file."""
        return tuple(self.tasks) if stage.tasks is None else stage.tasks

    def before(self, number: int) -> tuple[int, ...]:
        """The numbers of the stages, first to last, whose training is in the state that stage `number` begins with."""
        source = self.source(number)
        return () if source is None else (*self.before(source), source)

    def source(self, number: int) -> int | None:
        """The number of the stage from whose best state stage `number` begins; None for the state before any stage.

        Raises `KeyError` for a `from` that names no earlier stage.
        """
        named = self.stages[number].begins_from
        if named is None:
            return number - 1 if number else None
        earlier = {stage.name: place for place, stage in enumerate(self.stages[:number])}
        return None if named == START else earlier[named]

    def lora_after(self, number: int) -> dict[str, LoraOptions]:
        """By task, the LoRA in the model that stage `number` leaves: that of the stages it builds on, and its own."""
        return dict.fromkeys(self._adapted("lora", number), self.lora)

    def adapters_after(self, number: int) -> dict[str, AdapterOptions]:
        """By task, the adapters in the model that stage `number` leaves."""
        return dict.fromkeys(self._adapted("adapters", number), self.adapters)

    def adapts(self, part: Literal["lora", "adapters"]) -> bool:
        """Whether any stage trains LoRA, or adapters: otherwise nothing reads their options."""
        return any(stage.adapted(part, self.stage_tasks(stage)) for stage in self.stages)

    def _adapted(self, part: Literal["lora", "adapters"], number: int) -> list[str]:
        stages = [self.stages[place] for place in (*self.before(number), number)]
        tasks = {task for stage in stages for task in stage.adapted(part, self.stage_tasks(stage))}
        return [task for task in self.tasks if task in tasks]


class ModelConfig(Options):
    """What a model folder says of its model: the experiment without data and training.

    `lora` and `adapters` are those in the model, by task: a task that is not named there runs the encoder alone.
    """

    format: Literal[1] = 1
    encoder: EncoderOptions
    tasks: dict[Name, Shape]
    trunks: dict[Name, TrunkOptions]
    lora: dict[Name, LoraOptions] = Field({})
    adapters: dict[Name, AdapterOptions] = Field({})


def kind_of(options: Options) -> str:
    """The `kind` of a table of options."""
    return str(getattr(options, "kind"))  # noqa: B009 - the unions declare it, their base does not


def trunk_name(task: str, shape: AnyShape) -> str:
    """The name of the task's trunk: the one it names, else a trunk of its own."""
    return task if shape.trunk is None else shape.trunk


def trunk_options(task: str, shape: AnyShape, trunks: dict[str, Any]) -> TrunkBase:
    """The options of the task's trunk. Raises `KeyError` for a trunk that is not defined."""
    if shape.trunk is not None:
        return trunks[shape.trunk]  # type: ignore[no-any-return]
    return SiameseTrunk() if len(shape.text) == 2 else MeanTrunk()
