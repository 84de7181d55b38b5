"""How far gradients of our encoder in float32 are from those in float64, beside scores of every size. Prints one JSON line."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothtune.nn.bert import BertEncoder
from smoothtune.runtime.kernels import attention
from smoothtune.types import Tokens

LENGTHS = (24, 1, 7, 16, 2, 23)
SHAPE = {
    "vocab_size": 90,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 96,
}


def encoder(spread: float, seed: int) -> BertEncoder:
    """A small one in eval mode, its weights drawn with the deviation `spread`."""
    torch.manual_seed(seed)
    model = BertEncoder({**SHAPE, "initializer_range": spread})
    return model.eval()


def gradients(model: BertEncoder, scale: float) -> Tensor:
    """Those of all weights, end to end, of a pass whose embeddings are moved by N(0, 1) times `scale`."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 90, mask.shape, generator=draw) * mask
    wide = next(model.parameters()).dtype
    pull, push = (torch.randn(*mask.shape, model.width, generator=draw).to(wide) for _ in range(2))
    states = model(Tokens(ids, mask, None), perturbation=push * scale).states
    (states * pull * mask.unsqueeze(2)).sum().backward()
    return torch.cat([part.grad.double().flatten() for part in model.parameters() if part.grad is not None])


def error(spread: float, scale: float, seed: int) -> float:
    """The distance from float64, relative to the length of the gradient."""
    found, exact = gradients(encoder(spread, seed), scale), gradients(encoder(spread, seed).double(), scale)
    return float((found - exact).norm() / exact.norm())


def main() -> None:
    """Median errors by deviation of the weights and by scale."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    spec: dict[str, Any] = json.loads(parser.parse_args().spec.read_text())
    errors = {
        f"{spread:g}": {
            f"{scale:g}": statistics.median(error(spread, scale, seed) for seed in range(spec["seeds"]))
            for scale in spec["scales"]
        }
        for spread in spec["spreads"]
    }
    print(json.dumps({"errors": errors, "kernels": attention.available()}))


if __name__ == "__main__":
    main()
