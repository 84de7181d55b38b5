"""An efficient stage against full fine-tuning of the same task: time of a step and peak anonymous memory, on SST.

Run: python benchmarks/efficient_stage.py [mean conv_bilstm] [--steps 24] [--repetitions 5]. Efficient: LoRA of rank 4,
adapters of size 64, the trunk and the output learn beside the frozen encoder. Full: encoder, trunk and output learn. Both
have the same rows, batches, seed and bundled encoder; every side is a process of its own, and sides take turns. One pass
over the rows pays all first-time costs, the next one is timed. Prints a table per trunk. Writes
results/efficient_stage[-cuda].json.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from adapted_sections import step_and_memory
from harness import Side, part_name, progress, run_side, save, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import what_data
from tables import milliseconds
from training import BATCH, write_workload

SIDE = Side("smoothtune", "ours_experiment.py")
TRUNKS = ("mean", "conv_bilstm")
LEARNS = {
    "efficient": ["lora", "adapters", "trunks", "outputs"],
    "full": ["encoder", "trunks", "outputs"],
}
RATES = {
    "efficient": {"adaptations": 5e-4, "trunks": 1e-3, "outputs": 1e-3},
    "full": {"encoder": 5e-5, "trunks": 1e-3, "outputs": 1e-3},
}


def experiment(side: str, trunk: str, spec: dict[str, Any], device: str) -> dict[str, Any]:
    """One task and one stage of two passes, in which what the side names learns."""
    data = Path(spec["data"])
    task = {
        "kind": spec["kind"],
        "text": "text",
        "label": "label",
        "train": str(data / "train.tsv"),
        "dev": str(data / "dev.tsv"),
        "trunk": "trunk",
    }
    stage = {
        "train": LEARNS[side],
        "batch_size": BATCH,
        "learning_rate": RATES[side],
        "stop": {"max_epochs": spec["passes"]},
    }
    return {
        "seed": 1,
        "encoder": {"name": spec["checkpoint"]},
        "tasks": {"sst": task},
        "trunks": {"trunk": {"kind": trunk}},
        "stages": [stage],
        "runtime": {"device": device},
    }


def alternated(
    trunk: str, spec: dict[str, Any], device: str, *, repetitions: int, threads: int | None
) -> dict[str, list[dict[str, Any]]]:
    """What the sides reported, in turn; seconds are those of the last pass."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in LEARNS}
    for repetition in range(repetitions):
        for side, reports in found.items():
            report = run_side(SIDE, {"experiment": experiment(side, trunk, spec, device)}, threads=threads)
            steps = report["seconds_per_step"]
            reports.append({**report, "seconds_per_step": steps[len(steps) // spec["passes"] :]})
            seconds = statistics.fmean(reports[-1]["seconds_per_step"])
            progress(f"{trunk}: {side}, repetition {repetition + 1} of {repetitions}: {milliseconds(seconds)} a step")
    return found


def compared(reports: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of the sides, and full over efficient: time of a step, and peak anonymous memory in MiB."""
    seconds = {
        side: [statistics.fmean(report["seconds_per_step"]) for report in every] for side, every in reports.items()
    }
    memory = {side: [float(report["peak_anonymous_mb"]) for report in every] for side, every in reports.items()}
    return {
        "seconds_per_step": seconds,
        "peak_anonymous_mb": memory,
        "median_seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "median_mb": {side: statistics.median(values) for side, values in memory.items()},
        "time_ratio": ratio_of_medians(seconds["full"], seconds["efficient"]).to_json(),
        "memory_ratio": ratio_of_medians(memory["full"], memory["efficient"]).to_json(),
    }


def main() -> None:
    """Measure, print and save."""
    parser = parser_of(__doc__)
    parser.add_argument("trunks", nargs="*", help=f"default: {' '.join(TRUNKS)}")
    parser.add_argument("--steps", type=int, default=24, help="batches of 32 rows in a pass")
    options = parser.parse_args()
    if unknown := set(options.trunks) - set(TRUNKS):
        parser.error(f"no such trunk: {', '.join(sorted(unknown))}; expected {', '.join(TRUNKS)}")
    found = {}
    for trunk in options.trunks or TRUNKS:
        with tempfile.TemporaryDirectory() as folder:
            spec = write_workload("sst", options.data_dir, options.steps, Path(folder))
            reports = alternated(
                trunk, spec, options.device, repetitions=options.repetitions, threads=options.threads
            )  # fmt: skip
        found[trunk] = compared(reports)
        print(f"{trunk}\n\n{step_and_memory(found[trunk])}\n", flush=True)
    settings = settings_of(
        data=what_data(options.data_dir), batch=BATCH, steps=options.steps, repetitions=options.repetitions,
        threads=options.threads, device=options.device,
    )  # fmt: skip
    save(part_name("efficient_stage", options.device), {**settings, "trunks": found})


if __name__ == "__main__":
    main()
