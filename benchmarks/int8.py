"""The products of a MiniLM layer in float32, bfloat16 and dynamic int8: why prediction chooses among the first two alone.

Run: python benchmarks/int8.py [--rows 2048] [--threads 1] [--repetitions 20]. One product X W^T without bias for each shape,
weights made ready before: torch in float32 and bfloat16, our packed bfloat16 (where the processor has tiles), and a linear layer
quantised by torch for each of its engines, which rounds X anew at every call as a model would. Ways take turns, after one
call of each that is not counted. Prints one line per shape and way: milliseconds, the median and the smallest.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch

SHAPES = ((384, 1536), (1536, 384))  # inputs and outputs of the two largest layers
ENGINES = ("x86", "onednn")

Way = Callable[[], object]


def quantised(x: torch.Tensor, weight: torch.Tensor, engine: str) -> Way:
    """X W^T by a linear layer with int8 weights (one scale per output), whose inputs are rounded at each call."""
    from torch.ao import quantization

    torch.backends.quantized.engine = engine  # what packs the weight; the packed weight remembers it
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but what torch offers without another package
        scheme = {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
        model = quantization.quantize_dynamic(torch.nn.Sequential(layer), scheme, dtype=torch.qint8)
    return lambda: model(x)


def ways(rows: int, inputs: int, outputs: int) -> dict[str, Way]:
    """Every way to multiply (rows, inputs) by a weight (outputs, inputs) on this machine, by name."""
    from smoothtune.runtime.kernels import gemm

    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5
    narrow_x, narrow = x.bfloat16(), weight.bfloat16()
    found: dict[str, Way] = {
        "float32": lambda: torch.mm(x, weight.t()),
        "bfloat16, torch": lambda: torch.mm(narrow_x, narrow.t()),
    }
    if gemm.available():
        packed = gemm.pack(weight)
        found["bfloat16, ours"] = lambda: gemm.multiply(narrow_x, packed)
    for engine in ENGINES:
        if engine in torch.backends.quantized.supported_engines:
            found[f"dynamic int8, {engine}"] = quantised(x, weight, engine)
    return found


def milliseconds(found: dict[str, Way], repetitions: int) -> dict[str, list[float]]:
    """Times of every way, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for repetition in range(repetitions + 1):
        for name, way in found.items():
            began = time.perf_counter()
            way()
            if repetition:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        for inputs, outputs in SHAPES:
            for name, taken in milliseconds(ways(options.rows, inputs, outputs), options.repetitions).items():
                shape = f"{options.rows} x {inputs} to {outputs}"
                print(f"{shape:20}{name:22}{statistics.median(taken):8.2f} ms, at best {min(taken):.2f}")


if __name__ == "__main__":
    main()
