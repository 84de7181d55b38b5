"""Class weights of a task as an experiment writes them. Knows nothing of data: which labels there are is said by others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from smoothtune.config.problems import near
from smoothtune.errors import Problem

_SHOWN = 10


def _checked(value: Any) -> Any:
    if value is None or value in ("balanced", "none"):
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f'got {repr(value)[:80]}, expected "balanced", "none" or a table such as {{ rare = 3.0 }}')
    for label, weight in value.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ValueError(f"the weight of {str(label)[:80]!r} is {repr(weight)[:80]}, expected a positive number")
    return {str(label).strip(): float(weight) for label, weight in value.items()}


_Weight = Annotated[float, Field(gt=0)]
ClassWeights = Annotated[Literal["balanced", "none"] | dict[str, _Weight], BeforeValidator(_checked)]


def unknown_labels(task: str, weights: str | Mapping[str, float] | None, labels: Sequence[str]) -> list[Problem]:
    """A problem for each label of a table of weights that is none of the `labels` of the task."""
    names = ", ".join(labels[:_SHOWN]) + (f" and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else "")
    return [
        Problem(
            f"tasks.{task}.class_weights", f"there is no label {label[:80]!r} (labels: {names}).{near(label, labels)}"
        )
        for label in (weights if isinstance(weights, Mapping) else ())
        if label not in labels
    ]
