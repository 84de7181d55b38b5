"""Options of what a task gets inside the frozen encoder: LoRA and bottleneck adapters. Which tasks get them, the stages say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from smoothtune.config.options import Options

Target = Literal["query", "key", "value", "output", "up", "down"]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class LoraOptions(Options):
    """Low-rank changes of products in every layer (Hu et al., 2021, section 4.1): x W^T + (alpha / rank) x A^T B^T.

    `alpha` does not follow `rank`: another rank with the same alpha needs no other learning rate (section 4.1).
    """

    rank: int = Field(4, ge=1, le=1024)
    alpha: float = Field(4.0, gt=0, description="the change is scaled by alpha / rank")
    targets: Annotated[
        tuple[Target, ...],
        BeforeValidator(_as_tuple, json_schema_input_type=Target | list[Target]),
        Field(
            min_length=1,
            description="products that are changed: query, key, value and output of attention, up and down of the MLP",
        ),
    ] = ("query", "value")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what enters the low-rank product")

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        twice = [name for number, name in enumerate(targets) if name in targets[:number]]
        if twice:
            raise ValueError(f"{twice[0]!r} stands twice; name each product once")
        return targets


class AdapterOptions(Options):
    """Bottlenecks after attention and after the MLP of every layer (Houlsby et al., 2019, section 2.1).

    The paper also trains new LayerNorm parameters for each task; here these stay the encoder's, which all tasks share.
    """

    size: int = Field(64, ge=1, le=8192, description="width of the bottleneck")
