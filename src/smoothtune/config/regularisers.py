"""Options of every regulariser: a term computed from a second look at the batch. Knows nothing of how it is computed."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from smoothtune.config.options import Name, Options

Masks = Literal["independent", "shared", "off"]
Direction = Literal["raw", "normalised", "sign"]
Projection = Literal["ball", "sphere", "unit"]
Norm = Literal["inf", "2"]
Per = Literal["token", "text"]


def _as_layer(value: Any) -> Any:
    """One sentence for both forms, where pydantic has one for each."""
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not number and value != "middle":
        raise ValueError(f"got {value!r}, expected the number of a layer from 0 on, or 'middle'")
    return value


Layer = Annotated[
    Annotated[int, Field(ge=0)] | Literal["middle"],
    BeforeValidator(_as_layer, json_schema_input_type=Annotated[int, Field(ge=0)] | Literal["middle"]),
]

RADIUS = 0.01  # of `exact` and `cheap`, by measurement: benchmarks/little_data_tuning.py
# Noise and step as multiples of the radius, where they are not given. One step along the sign of the gradient has to cross
# the ball from wherever the noise begins: with 5, all but 6 entries of 100,000 end at the radius.
FOLLOWS: dict[str, tuple[float, float]] = {"wang": (1, 100), "paper": (1, 100), "exact": (1, 5), "cheap": (1, 5)}

# Every key that is not named here keeps its default, which is that of `exact`.
PRESETS: dict[str, dict[str, Any]] = {
    "wang": {  # Wang, section 4.3, item 2 and Appendix A; norm and dropout are not named there
        "radius": 1e-5, "steps": 1, "norm": "inf", "per": "token",
        "direction": "raw", "projection": "sphere", "dropout": "independent", "detach_clean": False,
    },
    "paper": {  # Jiang et al. (2020), Algorithm 1 and section 4
        "radius": 1e-5, "steps": 1, "norm": "inf", "per": "token",
        "direction": "normalised", "projection": "ball", "dropout": "independent", "detach_clean": False,
    },
    "mtdnn": {  # what the code of mt-dnn does: the radius is never used, the perturbation has per-token norm 1
        "radius": 1.0, "noise": 1e-5, "step_size": 1e-3, "steps": 1, "norm": "inf", "per": "token",
        "direction": "raw", "projection": "unit", "dropout": "independent", "detach_clean": False,
    },
    "exact": {},
    "cheap": {"every": 5},  # by measurement: the best of what costs at most 1.4 plain steps
}  # fmt: skip


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_norm(value: Any) -> Any:
    """TOML knows `norm = 2` and `norm = inf` as numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {2.0: "2", float("inf"): "inf"}.get(float(value), value)
    return value


class RegulariserBase(Options):
    """What every regulariser can be told: how much, on which tasks, how often, on how much of a batch."""

    name: Name | None = Field(None, description="its name among the losses; default: its kind")
    weight: float = Field(
        1.0,
        ge=0,
        description="factor of the term, relative to the loss of its task (of regression: that is in squared units of the "
        "label, the term in squared shares of the range)",
    )
    tasks: Annotated[
        tuple[Name, ...] | None,
        BeforeValidator(_as_tuple, json_schema_input_type=Name | list[Name] | None),
        Field(min_length=1, description="default: all of the stage"),
    ] = None
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="of the steps in which it looks, the clean pass included; default: the stage's"
    )
    every: int = Field(1, ge=1, description="look at each n-th batch of a task, with n times the weight")
    fraction: float = Field(
        1.0, gt=0, le=1, description="look at a random part of the batch: the mean is over these rows"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the steps over which the weight rises from 0")

    @property
    def label(self) -> str:
        """Its name among the losses."""
        return self.kind if self.name is None else self.name  # type: ignore[attr-defined, no-any-return]


class SmoothnessOptions(RegulariserBase):
    """Adversarial smoothness: the worst small perturbation of a layer's input (Jiang et al., 2020; Wang, section 3.1)."""

    kind: Literal["smoothness"] = "smoothness"
    preset: Literal["wang", "paper", "mtdnn", "exact", "cheap"] = Field(
        "exact", description="sets the keys below that are not given"
    )
    radius: float = Field(RADIUS, gt=0, description="largest norm of the perturbation; read by `ball` and `sphere`")
    noise: float = Field(
        RADIUS, gt=0, description="standard deviation of what the search begins with; default: the radius"
    )
    step_size: float = Field(
        5 * RADIUS,
        gt=0,
        description="length of a step along `direction`; default: 5 times the radius, 100 times in `wang` and `paper`",
    )
    steps: int = Field(1, ge=1, le=20, description="steps of the search, a forward and backward pass each")
    norm: Annotated[Norm, BeforeValidator(_as_norm, json_schema_input_type=Norm | Literal[2])] = "inf"
    per: Per = Field("token", description="the radius holds for each token, or for each text as a whole")
    direction: Direction = Field("sign", description="g, g / norm(g), or sign(g) of the gradient g")
    projection: Projection = Field(
        "ball", description="ball: norm at most the radius; sphere: norm equal to the radius; unit: norm 1"
    )
    dropout: Masks = Field(
        "shared", description="masks of the perturbed passes: new ones, those of the clean pass, or none in either"
    )
    layer: Layer = Field(0, description="0: embedding output; k: input of layer k; `middle`: half-way up")
    detach_clean: bool = Field(False, description="no gradient through the clean side of the divergence")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = values.get("preset", "exact")
        if not isinstance(preset, str):
            return values
        filled = {**PRESETS.get(preset, {}), **values}
        radius, follows = filled.get("radius", RADIUS), FOLLOWS.get(preset)
        if follows and isinstance(radius, int | float) and 0 < radius < math.inf:  # else the radius alone is reported
            noise, step = follows
            return {"noise": noise * radius, "step_size": step * radius, **filled}
        return filled


class ProximalOptions(RegulariserBase):
    """Distance to a slow moving average of the model itself (Jiang et al., 2020, section 3.2: Bregman proximal point)."""

    kind: Literal["proximal"] = "proximal"
    beta_first: float = Field(0.99, ge=0, lt=1, description="memory of the teacher in the first tenth of the steps")
    beta: float = Field(0.999, ge=0, lt=1, description="memory of the teacher after that")
    dropout: Masks = "shared"


class RDropOptions(RegulariserBase):
    """Two passes with dropout should agree (Liang et al., 2021)."""

    kind: Literal["r_drop"] = "r_drop"
    second_loss: bool = Field(True, description="the second pass has a task loss too (equation 3)")


class R3fOptions(RegulariserBase):
    """A random perturbation of the embedding output should change nothing (Aghajanyan et al., 2021)."""

    kind: Literal["r3f"] = "r3f"
    noise: float = Field(
        1e-5, gt=0, description="half-width of the uniform, or standard deviation of the normal, draws"
    )
    distribution: Literal["uniform", "normal"] = "uniform"
    dropout: Masks = "independent"
    layer: Layer = 0


class VatOptions(RegulariserBase):
    """Virtual adversarial training: one-sided KL in the worst direction of a given length (Miyato et al., 2018)."""

    kind: Literal["vat"] = "vat"
    radius: float = Field(1.0, gt=0, description="2-norm of the perturbation of a text")
    finite_difference: float = Field(1e-2, gt=0, description="2-norm of the step by which the direction is found (xi)")
    steps: int = Field(1, ge=1, le=20, description="power iterations")
    dropout: Masks = "shared"
    layer: Layer = 0


class FreelbOptions(RegulariserBase):
    """The task's loss under ascent steps on the embeddings, every one of which teaches the weights (Zhu et al., 2020)."""

    kind: Literal["freelb"] = "freelb"
    radius: float = Field(0.3, gt=0, description="largest 2-norm of the perturbation of a text")
    noise: float = Field(0.1, ge=0, description="2-norm of the perturbation that the ascent begins with, at most")
    step_size: float = Field(0.1, gt=0, description="length of a step")
    steps: int = Field(2, ge=1, le=20, description="ascent steps, a forward and backward pass each")
    dropout: Literal["independent", "shared"] = "shared"
    layer: Layer = 0


RegulariserOptions = Annotated[
    SmoothnessOptions | ProximalOptions | RDropOptions | R3fOptions | VatOptions | FreelbOptions,
    Field(discriminator="kind"),
]
