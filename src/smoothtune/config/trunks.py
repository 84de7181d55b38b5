"""Options of every trunk kind. `input` says how the trunk wants its texts: one, two apart, or a pair as one sequence."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from smoothtune.config.options import Options
from smoothtune.types import Input, Needs

Pooling = Literal["cls", "mean"]


class TrunkBase(Options):
    """What every trunk kind declares beside its options: its input, and the output kind that reads its features."""

    input: ClassVar[Input]
    output: ClassVar[Literal["linear", "two_layer"]] = "linear"

    @property
    def needs(self) -> Needs:
        """All token states, or no more than their first (`cls`) or their mean: then it answers a pooled state alike."""
        return "states"


class ClsTrunk(TrunkBase):
    """One text: the state of its first token."""

    input: ClassVar[Input] = "single"
    kind: Literal["cls"] = "cls"
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def needs(self) -> Needs:
        """See `TrunkBase.needs`."""
        return "cls"


class MeanTrunk(TrunkBase):
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


class SiameseTrunk(TrunkBase):
    """Two texts: u, v, |u - v| and u * v of their pooled states."""

    input: ClassVar[Input] = "separate"
    kind: Literal["siamese"] = "siamese"
    pooling: Pooling = "mean"
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


class JointTrunk(TrunkBase):
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
    kind: Literal["pwim_dcnn"] = "pwim_dcnn"
    depth: int = Field(5, ge=2, le=12, description="convolutional layers")
    dropout: float = Field(0.5, ge=0, lt=1)


class PwimResnetTrunk(TrunkBase):
    """Two texts: word-by-word similarity cube read by residual blocks (Wang, section 3.3 and Table 3)."""

    input: ClassVar[Input] = "separate"
    output: ClassVar[Literal["linear", "two_layer"]] = "two_layer"
    kind: Literal["pwim_resnet"] = "pwim_resnet"
    depth: int = Field(5, ge=1, le=12, description="residual blocks")
    dropout: float = Field(0.5, ge=0, lt=1)


TrunkOptions = Annotated[
    ClsTrunk | MeanTrunk | ConvBilstmTrunk | SiameseTrunk | CosineTrunk | JointTrunk | PwimDcnnTrunk | PwimResnetTrunk,
    Field(discriminator="kind"),
]
