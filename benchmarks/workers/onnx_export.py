"""Writes the int8 ONNX file of a transformers folder: exported by torch, quantised dynamically by onnxruntime.

Run: python onnx_export.py FOLDER OUT. Linear layers are int8 with one scale per output channel.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import AutoTokenizer, BertForSequenceClassification

NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Logits(nn.Module):
    """The model with positional tensors in and logits out, as an exporter wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) each to logits (B, C)."""
        logits: Tensor = self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits
        return logits


def export(folder: str, out: str) -> None:
    """Export and quantise."""
    model = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    example = AutoTokenizer.from_pretrained(folder)(
        ["a few words", "and some more words"], padding=True, return_tensors="pt"
    )
    axes = {name: {0: "rows", 1: "tokens"} for name in NAMES} | {"logits": {0: "rows"}}
    with tempfile.TemporaryDirectory() as aside:
        plain = str(Path(aside) / "model.onnx")
        torch.onnx.export(
            Logits(model),
            tuple(example[name] for name in NAMES),
            plain,
            input_names=list(NAMES),
            output_names=["logits"],
            dynamic_axes=axes,
            dynamo=False,
        )
        quantize_dynamic(plain, out, per_channel=True, weight_type=QuantType.QInt8)


if __name__ == "__main__":
    export(sys.argv[1], sys.argv[2])
