"""Options of every trunk kind. `input` says how the trunk wants its texts: one, two apart, or a pair as one sequence."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from smoothtune.config.options import Options
from smoothtune.types import Input, Needs

Pooling = Literal["cls", "mean"]
Scaling = Literal["none", "unit", "standard"]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


Layers = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None,
    BeforeValidator(_as_tuple, json_schema_input_type=int | list[int] | None),
    Field(description="whose states it pools, side by side; 0: the embeddings; default: the last layer"),
]


class TrunkBase(Options):
    """What every trunk kind declares beside its options: its input, and the output kind that reads its features."""

    input: ClassVar[Input]
    output: ClassVar[Literal["linear", "two_layer"]] = "linear"
    steady: ClassVar[bool] = True
    """Whether its features are those of training mode without dropout: not with batch norms before any training."""

    @property
    def needs(self) -> Needs:
        """All token states, or no more than their first (`cls`) or their mean: then it answers a pooled state alike."""
        return "states"

    @property
    def reads(self) -> tuple[int, ...] | None:
        """The layers whose states it reads, side by side; None for the last one."""
        return None


class PooledTrunk(TrunkBase):
    """What trunks of pooled states have in common.

    `unit` brings each pooled state to length sqrt(D); `standard` shifts and scales each feature by statistics of the
    training rows, which `init = "probe"` computes.
    """

    layers: Layers = None
    scaling: Scaling = Field("none", description='of the features: `unit` length, or `standard`, set by init = "probe"')

    @field_validator("layers")
    @classmethod
    def _rising(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and list(layers) != sorted(set(layers)):
            raise ValueError(f"layers must rise, got {', '.join(map(str, layers))}")
        return layers

    @property
    def reads(self) -> tuple[int, ...] | None:
        """See `TrunkBase.reads`."""
        return self.layers


class ClsTrunk(PooledTrunk):
    """One text: the state of its first token."""

    input: ClassVar[Input] = "single"
    kind: Literal["cls"] = "cls"
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def needs(self) -> Needs:
        """See `TrunkBase.needs`."""
        return "cls"


class MeanTrunk(PooledTrunk):
    """One text: the mean of its token states."""

    input: ClassVar[Input] = "single"
    kind: Literal["mean"] = "mean"
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def needs(self) -> Needs:
        """See `TrunkBase.needs`."""
        return "mean"


class ConvBilstmTrunk(TrunkBase):
    """One text: Conv1d that keeps the shape, BiLSTM, pooling over real tokens (Wang, section 3.2)."""

    input: ClassVar[Input] = "single"
    kind: Literal["conv_bilstm"] = "conv_bilstm"
    kernel: int = Field(3, ge=1, le=15, description="width of the convolution in tokens; odd")
    layers: int = Field(1, ge=1, le=4, description="BiLSTM layers")
    pool: Literal["max", "mean"] = Field("max", description="pooling over real tokens")
    dropout: float = Field(0.1, ge=0, lt=1)

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            near = f"take {kernel - 1} or {kernel + 1}"
            raise ValueError(f"{kernel} is even, so the text would change its length; {near}")
        return kernel


class SiameseTrunk(PooledTrunk):
    """Two texts: u, v, |u - v| and u * v of their pooled states."""

    input: ClassVar[Input] = "separate"
    kind: Literal["siamese"] = "siamese"
    pooling: Pooling = "mean"
    cosine: bool = Field(False, description="the cosine of u and v as one more feature, for each layer")
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def needs(self) -> Needs:
        """See `TrunkBase.needs`."""
        return self.pooling


class CosineTrunk(TrunkBase):
    """Two texts: one feature, the cosine of their pooled states."""

    input: ClassVar[Input] = "separate"
    kind: Literal["cosine"] = "cosine"
    pooling: Pooling = "mean"

    @property
    def needs(self) -> Needs:
        """See `TrunkBase.needs`."""
        return self.pooling


class JointTrunk(PooledTrunk):
    """Two texts read as one sequence by the encoder: its pooled state."""

    input: ClassVar[Input] = "joint"
    kind: Literal["joint"] = "joint"
    pooling: Pooling = "cls"
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def needs(self) -> Needs:
        """See `TrunkBase.needs`."""
        return self.pooling


class PwimDcnnTrunk(TrunkBase):
    """Two texts: word-by-word similarity cube read by a deep CNN (Wang, section 3.3 and Table 2)."""

    input: ClassVar[Input] = "separate"
    output: ClassVar[Literal["linear", "two_layer"]] = "two_layer"
    steady: ClassVar[bool] = False
    kind: Literal["pwim_dcnn"] = "pwim_dcnn"
    depth: int = Field(5, ge=2, le=12, description="convolutional layers")
    dropout: float = Field(0.5, ge=0, lt=1)


class PwimResnetTrunk(TrunkBase):
    """Two texts: word-by-word similarity cube read by residual blocks (Wang, section 3.3 and Table 3)."""

    input: ClassVar[Input] = "separate"
    output: ClassVar[Literal["linear", "two_layer"]] = "two_layer"
    steady: ClassVar[bool] = False
    kind: Literal["pwim_resnet"] = "pwim_resnet"
    depth: int = Field(5, ge=1, le=12, description="residual blocks")
    dropout: float = Field(0.5, ge=0, lt=1)


TrunkOptions = Annotated[
    ClsTrunk | MeanTrunk | ConvBilstmTrunk | SiameseTrunk | CosineTrunk | JointTrunk | PwimDcnnTrunk | PwimResnetTrunk,
    Field(discriminator="kind"),
]
