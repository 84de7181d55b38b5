"""The whole experiment as one frozen object, and the questions other rooms ask of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.options import Name, Options
from smoothtune.config.stage import Stage
from smoothtune.config.tasks import AnyShape, Shape, Task
from smoothtune.config.trunks import MeanTrunk, SiameseTrunk, TrunkBase, TrunkOptions


class RuntimeOptions(Options):
    """Where the experiment runs."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if there is one")
    threads: int | None = Field(None, ge=1, description="processor threads; default: one per core this process may use")
    frozen_states: Literal["auto", "off"] = Field(
        "auto",
        description="auto: a stage that trains nothing in the encoder reads each text once and keeps the encoder's states in "
        "the cache, within a quarter of the free disk; off: encode at every step",
    )


class Experiment(Options):
    """Tasks, encoder, trunks, an ordered list of stages and a seed."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9_./-]+$", max_length=120)
    seed: int = Field(1, ge=0, lt=2**63)
    encoder: EncoderOptions = EncoderOptions()
    tasks: dict[Name, Task] = Field(min_length=1)
    trunks: dict[Name, TrunkOptions] = Field({})
    stages: tuple[Stage, ...] = Field((Stage(),), min_length=1)
    runtime: RuntimeOptions = RuntimeOptions()

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


class ModelConfig(Options):
    """What a model folder says of its model: the experiment without data and training."""

    format: Literal[1] = 1
    encoder: EncoderOptions
    tasks: dict[Name, Shape]
    trunks: dict[Name, TrunkOptions]


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
