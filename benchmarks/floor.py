"""The floor of a training step: nothing but its matrix products, and its FLOPs over the best rate this machine reached.

Run: python benchmarks/floor.py [sst siamese joint] [--steps 12]. The batches are those that our side is timed on: same rows,
same order of lengths, real tokens only in linear layers, each text up to its batch's longest in attention. Products are
bf16, contiguous, into preallocated outputs: of every linear layer forward, input gradient and weight gradient; of attention
two forward and four backward. All layers of a step are run in turn, each with its own weights. Our training of these batches and
the products are processes of their own that take turns, each process of the products with 4 runs per batch: 20 in 5
repetitions. Writes results/floor.json; embeddings, norms, activations, dropout, head, optimiser and data are not in it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from harness import Measured, Side, alternate, checkpoint, part_name, save, seconds_per_step, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import what_data
from sides import OURS
from smoothtune.runtime.device import set_threads
from training import BATCH, WORKLOADS, write_workload
from workers.worker import read_rows

RUNS = 20
MAX_LENGTH = 128


class Shape(NamedTuple):
    """A batch: real tokens, sequences, tokens of the longest."""

    tokens: int
    sequences: int
    longest: int


def batches_of(spec: dict[str, Any]) -> list[Shape]:
    """The shapes of one pass, bucketed as our loop does it where all rows fit one window (64 batches)."""
    tokenizer = Tokenizer.from_file(str(Path(spec["checkpoint"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    rows = read_rows(spec)
    pairs = [(row["text_a"], row["text_b"]) if "text_a" in row else (row["text"],) for row in rows]
    if spec["reads"] == "joint":
        lengths = [[len(tokenizer.encode(*texts).ids)] for texts in pairs]
    else:
        lengths = [[len(tokenizer.encode(text).ids) for text in texts] for texts in pairs]
    lengths.sort(key=max)
    size = spec["batch_size"]
    batches = [[n for row in lengths[start : start + size] for n in row] for start in range(0, len(lengths), size)]
    return [Shape(sum(batch), len(batch), max(batch)) for batch in batches]


def products(shape: Shape, settings: dict[str, int], device: str) -> Iterator[tuple[Callable[[], Tensor], int]]:
    """Every product of a step with its floating-point operations."""
    width, inner, heads = settings["hidden_size"], settings["intermediate_size"], settings["num_attention_heads"]
    for _ in range(settings["num_hidden_layers"]):
        for out, into in ((3 * width, width), (width, width), (inner, width), (width, inner)):
            yield from _linear(shape.tokens, out, into, device)
        yield from _attention(shape.sequences * heads, shape.longest, width // heads, device)


def _linear(tokens: int, out: int, into: int, device: str) -> Iterator[tuple[Callable[[], Tensor], int]]:
    x, weight, gradient = (_random(size, device) for size in ((tokens, into), (out, into), (tokens, out)))
    for left, right in ((x, weight.t()), (gradient, weight), (gradient.t(), x)):
        left, right = left.contiguous(), right.contiguous()
        result = torch.empty(left.shape[0], right.shape[1], dtype=torch.bfloat16, device=device)
        yield _call(torch.mm, left, right, result), 2 * tokens * out * into


def _attention(groups: int, length: int, width: int, device: str) -> Iterator[tuple[Callable[[], Tensor], int]]:
    states, square = (groups, length, width), (groups, length, length)
    flat = (groups, width, length)
    for left, right in (
        (states, flat),
        (square, states),
        (square, states),
        (states, flat),
        (square, states),
        (square, states),
    ):
        result = torch.empty(groups, left[1], right[2], dtype=torch.bfloat16, device=device)
        yield _call(torch.bmm, _random(left, device), _random(right, device), result), 2 * groups * length**2 * width


def _call(product: Callable[..., Tensor], left: Tensor, right: Tensor, out: Tensor) -> Callable[[], Tensor]:
    return lambda: product(left, right, out=out)


def _random(size: tuple[int, ...], device: str) -> Tensor:
    return torch.randn(size, dtype=torch.float32, device=device).to(torch.bfloat16)


def median_seconds(run: Callable[[], object], device: str, runs: int = RUNS) -> float:
    """Median time of `run`, after one that is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def best_rate(device: str) -> float:
    """FLOP/s of the fastest square bf16 product among a few sizes."""
    rates = []
    for size in (1024, 2048, 4096) if device == "cpu" else (4096, 8192, 16384):
        left, right, out = (_random((size, size), device) for _ in range(3))
        rates.append(2 * size**3 / median_seconds(_call(torch.mm, left, right, out), device))
    return max(rates)


def floor_of(shapes: list[Shape], settings: dict[str, int], device: str, runs: int) -> float:
    """Mean over the batches of the median seconds of their products."""
    seconds = 0.0
    for shape in shapes:
        calls = tuple(call for call, _ in products(shape, settings, device))

        def run(calls: tuple[Callable[[], Tensor], ...] = calls) -> None:
            for call in calls:
                call()

        seconds += median_seconds(run, device, runs)
    return seconds / len(shapes)


def row_of(ours: Measured, alone: Measured, shapes: list[Shape], flops: float, rate: float) -> dict[str, Any]:
    """What is kept of a workload: the floor, and our step as a multiple of it."""
    products, steps = ([seconds_per_step(report) for report in side.reports] for side in (alone, ours))
    found = {
        "products_seconds": statistics.median(products),
        "best_rate_seconds": flops / rate,
        "flops": flops,
        "tokens": statistics.fmean(shape.tokens for shape in shapes),
        "failure": ours.failure or alone.failure,
    }
    if not steps or not products:
        return found
    return {**found, "ours_seconds": statistics.median(steps), "ratio": ratio_of_medians(steps, products).to_json()}


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    set_threads(options.threads)
    settings = json.loads((Path(checkpoint()) / "config.json").read_text())
    rate, found = best_rate(options.device), {}
    for workload in options.workloads:
        with tempfile.TemporaryDirectory() as folder:
            spec = write_workload(workload, options.data_dir, options.steps, Path(folder)) | {"device": options.device}
            shapes = batches_of(spec)
            sides = (OURS, Side("matrix products alone", "floor_train.py"))
            ours, alone = alternate(
                sides, spec, options.repetitions, threads=options.threads, label=f"floor of {workload}"
            )
        flops = statistics.fmean(sum(count for _, count in products(shape, settings, "meta")) for shape in shapes)
        found[workload] = row_of(ours, alone, shapes, flops, rate)
    told = settings_of(
        data=what_data(options.data_dir), batch=BATCH, steps=options.steps, best_rate=rate, device=options.device,
        threads=torch.get_num_threads(), repetitions=options.repetitions,
    )  # fmt: skip
    save(part_name("floor", options.device), {**told, "workloads": found})


if __name__ == "__main__":
    main()
