"""One static table from kind to `module:attribute`, resolved when built. Nothing registers itself; nothing is imported early."""

from __future__ import annotations

from importlib import import_module
from typing import Any

TABLE: dict[str, dict[str, str]] = {
    "encoders": {
        "native": "smoothtune.nn.bert:BertEncoder",
        "transformers": "smoothtune.nn.wrapped:WrappedEncoder",
    },
    "trunks": {
        "cls": "smoothtune.nn.trunks.pooled:ClsTrunk",
        "mean": "smoothtune.nn.trunks.pooled:MeanTrunk",
        "conv_bilstm": "smoothtune.nn.trunks.conv_bilstm:ConvBilstmTrunk",
        "siamese": "smoothtune.nn.trunks.siamese:SiameseTrunk",
        "cosine": "smoothtune.nn.trunks.cosine:CosineTrunk",
        "joint": "smoothtune.nn.trunks.pooled:JointTrunk",
        "pwim_dcnn": "smoothtune.nn.trunks.pwim_dcnn:PwimDcnnTrunk",
        "pwim_resnet": "smoothtune.nn.trunks.pwim_resnet:PwimResnetTrunk",
    },
    "outputs": {
        "linear": "smoothtune.nn.outputs:LinearOutput",
        "two_layer": "smoothtune.nn.outputs:TwoLayerOutput",
    },
    "schedules": {
        "proportional": "smoothtune.data.schedules:Proportional",
        "round_robin": "smoothtune.data.schedules:RoundRobin",
        "loop_to_largest": "smoothtune.data.schedules:LoopToLargest",
        "temperature": "smoothtune.data.schedules:Temperature",
        "annealed": "smoothtune.data.schedules:Annealed",
    },
    "weightings": {
        "none": "smoothtune.objective.weighting:NoWeighting",
        "fixed": "smoothtune.objective.weighting:FixedWeighting",
        "inverse_size": "smoothtune.objective.weighting:InverseSizeWeighting",
        "learned": "smoothtune.objective.weighting:LearnedWeighting",
    },
    "regularisers": {
        "smoothness": "smoothtune.objective.smoothness:Smoothness",
        "proximal": "smoothtune.objective.proximal:Proximal",
        "r_drop": "smoothtune.objective.r_drop:RDrop",
        "r3f": "smoothtune.objective.r3f:R3f",
        "vat": "smoothtune.objective.vat:Vat",
        "freelb": "smoothtune.objective.freelb:Freelb",
    },
}


def resolve(table: str, kind: str) -> Any:
    """The class or function that stands under `kind` in `table`. Raises `KeyError` for names that are not there."""
    module, _, attribute = TABLE[table][kind].partition(":")
    return getattr(import_module(module), attribute)
