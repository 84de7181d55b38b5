"""How the time of a training step grows: with length 16 to 512, with the batch, with the number of tasks, with the rows.

Run: python benchmarks/growth.py [length batch tasks rows]. Texts are made of words that are one token each, so that every
text has exactly the length wanted. Writes results/growth[-cuda].json and, where the environment `plot` is, a plot of the same
name in docs/images. Axes that are not named stay as they were measured, if the settings are the same.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from environments import HERE, python_of, why_missing
from harness import RESULTS, Side, alternate, checkpoint, part_name, progress, read, save, settings_of
from options import parser_of
from rows import write_rows
from sources import package_code

SIDE = Side("smoothtune", "ours_experiment.py")
BASE = {"length": 32, "batch": 32, "tasks": 1, "rows": 400}
AXES: dict[str, Sequence[int]] = {
    "length": (16, 32, 64, 128, 256, 512),
    "batch": (8, 16, 32, 64, 128),
    "tasks": (1, 3, 10),
    "rows": (1_000, 10_000, 100_000),
}
WARM, STEPS = 4, 6
KEPT = ("base", "warm", "steps", "repetitions", "threads", "device", "code")
DEV_ROWS = 32


def one_token_words() -> list[str]:
    """Words of the encoder's vocabulary."""
    vocabulary = Tokenizer.from_file(str(Path(checkpoint()) / "tokenizer.json")).get_vocab()
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 3)


def write_task(folder: Path, words: Sequence[str], length: int, rows: int, seed: int) -> dict[str, Any]:
    """Rows of exactly `length` tokens with one of two labels, and the task that reads them."""
    draw = random.Random(seed)
    for split, count in (("train", rows), ("dev", DEV_ROWS)):
        texts = [((" ".join(draw.choices(words, k=length - 2)),), str(number % 2)) for number in range(count)]
        write_rows(folder / f"{split}.tsv", texts)
    return {
        "kind": "binary",
        "text": "text",
        "label": "label",
        "train": str(folder / "train.tsv"),
        "dev": str(folder / "dev.tsv"),
    }


def experiment(folder: Path, words: Sequence[str], point: dict[str, int], device: str) -> dict[str, Any]:
    """The experiment of a point: a few steps of all its tasks."""
    tasks = {
        f"task{number}": write_task(folder / str(number), words, point["length"], point["rows"], number)
        for number in range(point["tasks"])
    }
    return {
        "encoder": {"name": checkpoint(), "max_length": point["length"]},
        "tasks": tasks,
        "stages": [{"batch_size": point["batch"], "stop": {"max_epochs": 1, "max_steps": WARM + STEPS}}],
        "runtime": {"device": device},
    }


def measure(
    axis: str, value: int, words: Sequence[str], repetitions: int, threads: int | None, device: str
) -> dict[str, Any]:
    """A point: the median step after the warm-up, the seconds of the rest of the call, peak memory."""
    point = {**BASE, axis: value}
    point["rows"] = max(point["rows"], point["batch"] * (WARM + STEPS))
    with tempfile.TemporaryDirectory() as folder:
        spec = {"experiment": experiment(Path(folder), words, point, device)}
        found = alternate([SIDE], spec, repetitions, threads=threads, label=f"{axis} {value}")[0]
    if found.failure is not None:
        raise SystemExit(found.failure)
    steps = [statistics.median(report["seconds_per_step"][WARM:]) for report in found.reports]
    rest = [report["seconds"] - report["train_seconds"] for report in found.reports]
    return {
        "value": value,
        "seconds_per_step": statistics.median(steps),
        "other_seconds": statistics.median(rest),
        "peak_anonymous_mb": statistics.median(found.values("peak_anonymous_mb")),
    }


def kept_axes(before: dict[str, Any] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The axes measured before, if that was with these settings; else none, and a line says what differs."""
    if before is None:
        return {}
    other = [name for name in KEPT if before.get(name) != settings[name]]
    other += ["processor"] if before["machine"]["processor"] != settings["machine"]["processor"] else []
    if other:
        progress(f"growth: the axes measured before are dropped, for these settings differ: {', '.join(other)}")
    return {} if other else dict(before["axes"])


def plot(part: str) -> None:
    """Draw the plot of the saved results, where matplotlib is."""
    python = python_of("plot")
    if python is None:
        progress(f"no plot: {why_missing('plot')}")
        return
    out = HERE.parent / "docs" / "images" / f"{part}.svg"
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([python, str(HERE / "growth_plot.py"), str(RESULTS / f"{part}.json"), str(out)], check=True)


def main() -> None:
    """Measure, save, draw."""
    parser = parser_of(__doc__, repetitions=1)
    parser.add_argument("axes", nargs="*", default=list(AXES))
    options = parser.parse_args()
    words = one_token_words()
    part = part_name("growth", options.device)
    settings = settings_of(
        threads=options.threads, device=options.device, repetitions=options.repetitions, base=BASE, warm=WARM, steps=STEPS,
        code=package_code(),
    )  # fmt: skip
    axes = kept_axes(read(part), settings)
    for axis in options.axes:
        axes[axis] = [
            measure(axis, value, words, options.repetitions, options.threads, options.device) for value in AXES[axis]
        ]
    save(part, {**settings, "axes": {axis: axes[axis] for axis in AXES if axis in axes}})
    plot(part)


if __name__ == "__main__":
    main()
