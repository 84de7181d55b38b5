"""Three tasks with LoRA and adapters of their own, 32 short texts each: one mixed batch against three batches, in turn.

Run: python benchmarks/mixed_batch.py [--repetitions 30] [--device cuda] [--words 3 6 14]. The bundled encoder with LoRA of rank
4 and adapters of size 64 for three tasks of one text with mean trunks; every text has as many words, of one token each,
beside [CLS] and [SEP]. `pass` is what the network does with batches that are made; `predict` is `predict_mixed` against three
calls of `predict`, tokenising included. Medians in milliseconds, and the time of three over that of one with its interval.
Prints one JSON line per setting. Writes results/mixed_batch[-cuda].json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from harness import part_name, save, settings_of
from intervals import ratio_of_medians
from options import parser_of
from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.experiment import ModelConfig
from smoothtune.config.tasks import ClassShape
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.inference.model import Model
from smoothtune.inference.precision import Precision
from smoothtune.nn.building import build_model
from smoothtune.nn.mixing import mixed
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.runtime.device import computing_in, has_bfloat16, keep_memory_mapped, pick_device, set_threads
from smoothtune.types import Batch, Tokens

TASKS = ("first", "second", "third")
ROWS = 32
WARM = 5
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def built(precision: str, device: torch.device) -> Model:
    """The model of three tasks, each adapted as it would be after training: no part of it is zero."""
    config = ModelConfig(
        encoder=EncoderOptions(),
        tasks={task: ClassShape(kind="classification", text=("text",)) for task in TASKS},
        trunks={},
        lora=dict.fromkeys(TASKS, LoraOptions()),
        adapters=dict.fromkeys(TASKS, AdapterOptions()),
    )
    folder = find_checkpoint(config.encoder)
    labels: dict[str, tuple[str, ...] | None] = dict.fromkeys(TASKS, ("no", "yes"))
    network = build_model(
        load_encoder(folder, config.encoder),
        config.tasks,
        {},
        labels,
        seed=1,
        lora=config.lora,
        adapters=config.adapters,
    )
    for part in network.lora.parameters():
        torch.nn.init.normal_(part, std=0.02)
    return Model(
        network.to(device).eval(), config, labels, load_tokenizer(folder),
        dtype=FORMATS[precision], precision=Precision(precision, "asked for"), identity="benchmark",
    )  # fmt: skip


def batches(words: int, device: torch.device) -> list[Batch]:
    """One batch of every task; which ids they hold costs nothing."""
    ids = torch.randint(2000, 20000, (len(TASKS), ROWS, words + 2), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(ROWS, words + 2, dtype=torch.bool)
    return [
        Batch(task, "single", Tokens(ids[number], mask), None, torch.arange(ROWS)).to(device)
        for number, task in enumerate(TASKS)
    ]


def sides(model: Model, words: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By level, one mixed batch and three batches."""
    network, device = model.network, model.network.device
    apart = batches(words, device)
    texts = {task: [" ".join(["good"] * words)] * ROWS for task in TASKS}

    def together() -> Any:
        with torch.inference_mode(), computing_in(dtype, device):
            return {task: found.float().cpu() for task, found in network.mixed_answers(mixed(apart)).items()}

    def one_by_one() -> Any:
        with torch.inference_mode(), computing_in(dtype, device):
            return {batch.task: network.answers(batch, [batch.task])[batch.task].float().cpu() for batch in apart}

    def predicted() -> Any:
        return {task: model.predict(task, texts[task]) for task in TASKS}

    return {"pass": (together, one_by_one), "predict": (lambda: model.predict_mixed(texts), predicted)}


def seconds(run: Callable[[], Any]) -> float:
    """What one call takes; its answers are on the CPU when it returns."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measured(one: Callable[[], Any], three: Callable[[], Any], repetitions: int) -> dict[str, Any]:
    """Both in turn."""
    for _ in range(WARM):
        one(), three()
    taken = [(seconds(one), seconds(three)) for _ in range(repetitions)]
    mixed_times, apart_times = ([pair[side] for pair in taken] for side in range(2))
    return {
        "one_ms": round(1e3 * statistics.median(mixed_times), 2),
        "three_ms": round(1e3 * statistics.median(apart_times), 2),
        "times_as_fast": ratio_of_medians(apart_times, mixed_times).to_json(),
    }


def main() -> None:
    """Measure, print and save."""
    parser = parser_of(__doc__, repetitions=30)
    parser.add_argument("--words", type=int, nargs="+", default=(3, 6, 14))
    given = parser.parse_args()
    threads, device = set_threads(given.threads), pick_device(given.device)
    keep_memory_mapped()
    rows = []
    for precision in ("float32", "bfloat16") if has_bfloat16(device) else ("float32",):
        model = built(precision, device)
        for words in given.words:
            for level, (one, three) in sides(model, words, FORMATS[precision]).items():
                found = measured(one, three, given.repetitions)
                rows.append({"precision": precision, "tokens": words + 2, "level": level, **found})
                print(json.dumps(rows[-1]), flush=True)
    settings = settings_of(repetitions=given.repetitions, threads=threads, device=given.device)
    save(part_name("mixed_batch", given.device), {**settings, "rows": rows})


if __name__ == "__main__":
    main()
