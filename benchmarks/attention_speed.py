"""The time of the attention kernels over that of an earlier commit's, pair by pair: a table of docs/kernels.md.

Run: python benchmarks/attention_speed.py FOLDER [--repetitions 1000]. FOLDER is a checkout of the earlier commit, whose C
functions take the same arguments. Both libraries are called in turn in one process, first one, then the other first; times
are of the processor, on one thread. Writes results/attention_speed.json.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from harness import progress, save, settings_of
from intervals import DRAWS, Interval
from kernel_errors import fill
from smoothtune.runtime.kernels import attention
from tables import ratio, table, where

HEADS, SIZE, RATE = 12, 32, 0.1
BATCHES = {
    "32 rows of 20 tokens": (20,) * 32,
    "32 rows of 5 to 40 tokens": (9, 14, 23, 40, 20, 5, 17, 31) * 4,
    "16 rows of 64 tokens": (64,) * 16,
    "8 rows of 128 tokens": (128,) * 8,
    "2 rows of 512 tokens": (512,) * 2,
}
DTYPES = {"float32": (torch.float32, "float"), "bfloat16": (torch.bfloat16, "bf16")}
ASK = "from smoothtune.runtime.kernels import building; print(building._files()['attention'])"


def library_of(folder: Path) -> ctypes.CDLL:
    """The attention kernels of a checkout, built if need be, with the signatures of ours."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(folder.resolve() / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    earlier, ours = ctypes.CDLL(done.stdout.strip()), attention._library()
    assert ours is not None, "this machine builds no kernels"
    for _, kind in DTYPES.values():
        for name in ("forward", "backward"):
            function = getattr(earlier, f"attention_{name}_{kind}")
            function.argtypes, function.restype = getattr(ours, f"attention_{name}_{kind}").argtypes, None
    return earlier


class Work(NamedTuple):
    """The two calls of one batch, each with a library."""

    forward: Callable[[ctypes.CDLL], None]
    backward: Callable[[ctypes.CDLL], None]


def work_of(lengths: tuple[int, ...], dtype: torch.dtype, kind: str) -> Work:
    """Attention over rows of these lengths, with dropout. What each library keeps for its backward has its own place."""
    tokens, width = sum(lengths), HEADS * SIZE
    draw = torch.Generator().manual_seed(1)
    qkv, gradient = (torch.randn(tokens, columns, generator=draw).to(dtype) for columns in (3 * width, width))
    bias, starts = torch.randn(3 * width, generator=draw), torch.tensor([0, *lengths]).cumsum(0).int()
    mixed, dqkv, dbias = torch.empty_like(gradient), torch.empty_like(qkv), torch.empty_like(bias)
    peaks: dict[int, torch.Tensor] = {}
    problem = (len(lengths), HEADS, SIZE, max(lengths), RATE, 77)

    def place(library: ctypes.CDLL) -> int:
        return int(peaks.setdefault(id(library), torch.empty(2, HEADS, tokens)).data_ptr())

    def forward(library: ctypes.CDLL) -> None:
        getattr(library, f"attention_forward_{kind}")(
            qkv.data_ptr(), bias.data_ptr(), starts.data_ptr(), *problem, mixed.data_ptr(), place(library)
        )

    def backward(library: ctypes.CDLL) -> None:
        getattr(library, f"attention_backward_{kind}")(
            gradient.data_ptr(), qkv.data_ptr(), bias.data_ptr(), place(library), starts.data_ptr(), *problem,
            dqkv.data_ptr(), dbias.data_ptr(),
        )  # fmt: skip

    return Work(forward, backward)


def paired(
    call: Callable[[ctypes.CDLL], None], ours: ctypes.CDLL, earlier: ctypes.CDLL, repetitions: int
) -> np.ndarray:
    """Nanoseconds of both, (repetitions, 2)."""
    times = np.empty((repetitions, 2))
    for repetition in range(-3, repetitions):
        order = (0, 1) if repetition % 2 else (1, 0)
        for side in order:
            began = time.process_time_ns()
            call((ours, earlier)[side])
            if repetition >= 0:
                times[repetition, side] = time.process_time_ns() - began
    return times


def median_ratio(times: np.ndarray) -> Interval:
    """The median of the pairs' ratios; percentile bootstrap over pairs, with a fixed seed."""
    ratios = times[:, 0] / times[:, 1]
    draw = np.random.default_rng(0)
    medians = np.median(ratios[draw.integers(0, len(ratios), (DRAWS // 10, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high))


def measure(ours: ctypes.CDLL, earlier: ctypes.CDLL, repetitions: int) -> list[dict[str, Any]]:
    """A line for each batch and dtype."""
    lines = []
    for batch, lengths in BATCHES.items():
        for name, (dtype, kind) in DTYPES.items():
            work = work_of(lengths, dtype, kind)
            line: dict[str, Any] = {"batch": batch, "dtype": name}
            for part, call in zip(("forward", "backward"), work, strict=True):
                times = paired(call, ours, earlier, repetitions)
                line[part] = {**median_ratio(times).to_json(), "milliseconds": float(np.median(times[:, 0])) / 1e6}
            progress(f"{batch}, {name}: {line['forward']['value']:.3f}, {line['backward']['value']:.3f}")
            lines.append(line)
    return lines


def page_of(result: dict[str, Any]) -> str:
    """The table of the ratios."""
    lines = [
        [f"{line['batch']}, {line['dtype']}"]
        + [
            cell
            for part in ("forward", "backward")
            for cell in (f"{line[part]['milliseconds']:.2f} ms", ratio(line[part]))
        ]
        for line in result["lines"]
    ]
    note = f"Medians of {result['pairs']:,} pairs; commit before: {result['before']}. {where(result)}"
    return f"{table(('batch', 'forward', 'over before', 'backward', 'over before'), lines)}\n\n{note}"


def main() -> None:
    """Measure, save and fill the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, metavar="FOLDER", help="a checkout of the earlier commit")
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours, earlier = attention._library(), library_of(options.before)
    assert ours is not None
    commit = subprocess.run(
        ["git", "-C", str(options.before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    settings = settings_of(threads=1)
    lines = measure(ours, earlier, options.repetitions)
    result = {**settings, "before": commit.stdout.strip(), "pairs": options.repetitions, "lines": lines}
    save("attention_speed", result)
    fill("attention speed", page_of(result))


if __name__ == "__main__":
    main()
