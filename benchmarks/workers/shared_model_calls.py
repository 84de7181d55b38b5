"""Builds one model and times a call of `predict_probabilities` for every line of stdin, which is the number of its texts.

Arguments: implementation (native, transformers), adaptation (bare, lora, adapters, both). The smoothtune that runs is that of
PYTHONPATH. Prints `ready`, then seconds of the processor, one number a line.
"""

from __future__ import annotations

import sys
import time

import torch

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.experiment import ModelConfig
from smoothtune.config.tasks import ClassShape
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.inference.model import Model
from smoothtune.inference.precision import Precision
from smoothtune.nn.building import build_model
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.runtime.device import keep_memory_mapped, set_threads

TASKS = ("first", "second")
WARM = 5


def built(implementation: str, adaptation: str) -> Model:
    """The model of two tasks, adapted as after training: no part of it is zero."""
    lora = dict.fromkeys(TASKS, LoraOptions()) if adaptation in ("lora", "both") else {}
    adapters = dict.fromkeys(TASKS, AdapterOptions()) if adaptation in ("adapters", "both") else {}
    shapes = {task: ClassShape(kind="classification", text=("text",)) for task in TASKS}
    options = EncoderOptions.model_validate({"implementation": implementation})
    config = ModelConfig(encoder=options, tasks=shapes, trunks={}, lora=lora, adapters=adapters)
    folder = find_checkpoint(config.encoder)
    labels: dict[str, tuple[str, ...] | None] = dict.fromkeys(TASKS, ("no", "yes"))
    encoder = load_encoder(folder, config.encoder)
    network = build_model(encoder, shapes, {}, labels, seed=1, lora=lora, adapters=adapters)
    for part in network.lora.parameters():
        torch.nn.init.normal_(part, std=0.02)
    return Model(
        network.eval(), config, labels, load_tokenizer(folder),
        dtype=torch.float32, precision=Precision("float32", "asked for"), identity="benchmark",
    )  # fmt: skip


def main() -> None:
    """Answer until stdin ends."""
    set_threads(None)
    keep_memory_mapped()
    model = built(*sys.argv[1:3])
    for _ in range(WARM):
        model.predict_probabilities("first", ["the film was good and the story was better"] * 8)
    print("ready", flush=True)
    for line in sys.stdin:
        rows = int(line)
        texts = ["the film was good and the story was better"] * rows
        began = time.process_time()
        model.predict_probabilities("first", texts)
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
