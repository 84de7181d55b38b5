"""A task: its shape (what a model must know to answer it) and its data (what training must know)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, field_validator

from smoothtune.config.class_weights import ClassWeights
from smoothtune.config.options import Name, Options
from smoothtune.types import Kind

Column = Annotated[str, StringConstraints(min_length=1)]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


Label = Annotated[
    str,
    BeforeValidator(_as_text, json_schema_input_type=str | bool | int | float),
    StringConstraints(min_length=1, strip_whitespace=True),
]
TextColumns = Annotated[
    tuple[Column, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=Column | list[Column]),
    Field(min_length=1, max_length=2),
]


class TaskShape(Options):
    """What a model must know of a task to answer it."""

    text: TextColumns = Field(description="column of the text, or the two columns of a pair")
    trunk: Name | None = Field(
        None, description="a name of [trunks]; default: a trunk of its own (mean, or siamese for pairs)"
    )


class ClassShape(TaskShape):
    """Several classes, one answer."""

    kind: Literal["classification"]
    labels: tuple[Label, ...] | None = Field(None, min_length=2, description="default: fitted on the training data")
    metric: Literal["accuracy", "macro_f1"] = "accuracy"

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return _distinct(labels)


class BinaryShape(TaskShape):
    """Two classes; the second label is the positive one."""

    kind: Literal["binary"]
    labels: tuple[Label, Label] | None = Field(
        None, description="negative, positive; default: fitted on the training data"
    )
    metric: Literal["accuracy", "macro_f1"] = "accuracy"

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, str] | None) -> tuple[str, str] | None:
        _distinct(labels)
        return labels


class RegressionShape(TaskShape):
    """A number within a range."""

    kind: Literal["regression"]
    range: tuple[float, float] = Field((0.0, 1.0), description="smallest and largest label")
    squash: bool = Field(False, description="squash predictions into the range with a sigmoid")
    metric: Literal["pearson", "spearman"] = "pearson"

    @field_validator("range")
    @classmethod
    def _ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] >= limits[1]:
            raise ValueError(f"the range must rise, got [{limits[0]:g}, {limits[1]:g}]")
        if max(map(abs, limits)) > 1e38:  # near the end of float32
            raise ValueError(f"the range must lie within -1e38 and 1e38, got [{limits[0]:g}, {limits[1]:g}]")
        return limits


def _distinct(labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if labels is not None and len(set(labels)) < len(labels):
        raise ValueError(f"labels must differ, got {', '.join(labels)}")
    return labels


class TaskData(Options):
    """Where a task's examples are and how they are read."""

    label: Column = Field(description="column of the label")
    train: Column = Field(description="file, `datasets` folder, `hf:OWNER/NAME[/CONFIG]:SPLIT` or `packaged:FILE`")
    dev: Column | Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="file as for `train`, or the fraction of the training texts to hold out"
    )
    test: Column | None = None
    max_train_rows: int | None = Field(None, ge=1, description="train on a seeded sample of at most so many rows")
    loss_weight: float = Field(1.0, gt=0, description='read by weighting "fixed"')
    on_bad_row: Literal["error", "leave_out"] = Field("error", description="`leave_out` counts bad rows instead")


def _checked_temperature(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 20
    if value is None or value == "dev" or number:
        return float(value) if number else value
    raise ValueError(f'got {repr(value)[:80]}, expected a number from 1 to 20, or "dev"')


class ClassOptions(Options):
    """How much the classes count against each other, and how sure the answers are."""

    class_weights: ClassWeights | None = Field(
        None,
        description='weight of each class in the loss: "balanced" by the inverse of its training rows, "none", or a table by '
        "label, in which labels that it does not name have 1; scaled to a mean of 1 over the training rows",
    )
    temperature: Annotated[
        float | Literal["dev"] | None,
        BeforeValidator(
            _checked_temperature, json_schema_input_type=Annotated[float, Field(ge=1, le=20)] | Literal["dev"]
        ),
    ] = Field(
        None,
        description='once the run is trained, logits are divided by this number; "dev": fitted on the dev rows '
        "(temperature scaling)",
    )


class ClassificationTask(ClassOptions, TaskData, ClassShape):
    """Several classes, one answer: cross-entropy."""


class BinaryTask(ClassOptions, TaskData, BinaryShape):
    """Yes or no: binary cross-entropy with logits."""


class RegressionTask(TaskData, RegressionShape):
    """A number within a range: mean squared error."""


Task = Annotated[ClassificationTask | BinaryTask | RegressionTask, Field(discriminator="kind")]
AnyTask = ClassificationTask | BinaryTask | RegressionTask
Shape = Annotated[ClassShape | BinaryShape | RegressionShape, Field(discriminator="kind")]
AnyShape = ClassShape | BinaryShape | RegressionShape


def shape_of(task: AnyTask) -> AnyShape:
    """The task without its data."""
    shapes: dict[Kind, type[AnyShape]] = {
        "classification": ClassShape,
        "binary": BinaryShape,
        "regression": RegressionShape,
    }
    shape = shapes[task.kind]
    return shape.model_validate({name: getattr(task, name) for name in shape.model_fields})
