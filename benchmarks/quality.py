"""Same quality: one epoch on SST with ours and with Trainer at its best, 10 seeds each, the same model and hyper-parameters.

Run: python benchmarks/quality.py [--seeds 10]. Both sides: mean of the token states, dropout 0.1, linear; rate 5e-5 for the
encoder and 1e-3 for the head, linear decay after 10 % warm-up, weight decay 0.01 on matrices, clipping at 1, batch 32. Every
run is kept as results/quality[-cuda]/SIDE-SEED.json with what it was made with, so that this can be stopped and goes on where
it was; a run made with other settings, data, versions or code is made again. Writes results/quality[-cuda].json: accuracies on
dev, Welch's 95 % interval of the difference, seconds of the epoch and peak memory.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, Side, checkpoint, part_name, progress, run_side, save, settings_of
from intervals import difference_of_means, ratio_of_medians
from options import parser_of
from rows import SOURCES, read_rows, what_data, write_rows
from sides import BEST_ARGUMENTS, OURS, at_its_best
from sources import package_code
from workers.worker import versions

BOUND = 0.015


def sides(device: str) -> dict[str, Side]:
    """Both sides with the hyper-parameters above."""
    best = at_its_best(device)
    arguments = {**BEST_ARGUMENTS, "learning_rate": 5e-5, "warmup_steps": 0.1, "lr_scheduler_type": "linear"}
    options = {**best.options, "arguments": arguments, "head": "mean", "head_rate": 1e-3, "weight_decay": 0.01}
    return {"ours": OURS, "trainer": replace(best, options={**options, "evaluate": True})}


def accuracy_of(name: str, report: dict[str, Any]) -> float:
    """Accuracy on dev."""
    return float(report["dev"]["tasks"]["task"]["accuracy"]["value"] if name == "ours" else report["dev_accuracy"])


def made_with(side: Side, seed: int, spec: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """All that a run of a side depends on. The code of the package only where the side runs it."""
    from smoothtune.workflow.run import machine

    told = machine(spec["device"])
    found = {
        "seed": seed,
        "side": [side.worker, side.variables, side.options],
        "spec": {name: value for name, value in spec.items() if name not in ("data", "checkpoint")},
        "data": _content(Path(spec["data"])),
        "threads": threads,
        "machine": [told["processor"], told["cores"]],
        "versions": versions(),
        "code": package_code() if side is OURS else None,
    }
    return dict(json.loads(json.dumps(found)))


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for split in ("train", "dev"):
        digest.update((folder / f"{split}.tsv").read_bytes())
    return digest.hexdigest()


def kept_run(path: Path, rows: int, made: dict[str, Any]) -> dict[str, Any] | None:
    """The run in a file, None where there is none or it was made with something else; a line says what.

    A run that does not say what it was made with is taken if it has as many rows.
    """
    if not path.exists():
        return None
    kept = dict(json.loads(path.read_text()))
    if "made_with" not in kept and kept["rows"] == rows:
        progress(
            f"quality: {path.name} does not say what it was made with and is taken as it is; remove it to run anew"
        )
        return kept
    before = kept.get("made_with", {})
    other = [name for name, value in made.items() if before.get(name) != value]
    if other:
        progress(f"quality: {path.name} is run anew, for these differ: {', '.join(other)}")
    return None if other else kept


def run_seed(name: str, side: Side, seed: int, spec: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """One run, from its file when it is there."""
    path = RESULTS / part_name("quality", spec["device"]) / f"{name}-{seed}.json"
    made = made_with(side, seed, spec, threads)
    if (kept := kept_run(path, spec["rows"], made)) is not None:
        return kept
    report = run_side(replace(side, options={**side.options, "seed": seed}), spec, threads=threads)
    found = {
        "rows": spec["rows"],
        "made_with": made,
        "accuracy": accuracy_of(name, report),
        "epoch_seconds": report["first_pass_seconds"],
        "peak_anonymous_mb": report["peak_anonymous_mb"],
        "versions": report["versions"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    progress(f"quality: {name}, seed {seed}: {found['accuracy']:.4f} in {found['epoch_seconds']:.0f} s")
    return found


def main() -> None:
    """Run what is missing, then judge all."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=int, help="training rows, default: all")
    options = parser.parse_args()
    source, chosen = SOURCES["sst"], sides(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = read_rows(source, options.data_dir)[: options.rows]
        write_rows(folder / "train.tsv", rows)
        write_rows(folder / "dev.tsv", read_rows(source, options.data_dir, "dev"))
        spec = {
            "data": name, "kind": source.kind, "labels": source.labels, "reads": "single", "checkpoint": checkpoint(),
            "batch_size": 32, "passes": 1, "device": options.device, "rows": len(rows),
        }  # fmt: skip
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in chosen}
        for seed in range(1, options.seeds + 1):
            for side in chosen:
                found[side].append(run_seed(side, chosen[side], seed, spec, options.threads))
    settings = settings_of(
        data=what_data(options.data_dir), rows=len(rows), threads=options.threads, device=options.device
    )
    judge(found, settings)


def judge(found: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> None:
    """Save the comparison of all runs."""
    values = {side: {key: [run[key] for run in runs] for key in runs[0]} for side, runs in found.items()}
    difference = difference_of_means(values["ours"]["accuracy"], values["trainer"]["accuracy"])
    seconds = ratio_of_medians(values["trainer"]["epoch_seconds"], values["ours"]["epoch_seconds"])
    memory = {side: statistics.median(part["peak_anonymous_mb"]) for side, part in values.items()}
    save(
        part_name("quality", settings["device"]),
        {
            **settings,
            "bound": BOUND,
            "accuracy": {side: part["accuracy"] for side, part in values.items()},
            "difference": difference.to_json(),
            "within": difference.low >= -BOUND and difference.high <= BOUND,
            "epoch_seconds": {side: part["epoch_seconds"] for side, part in values.items()},
            "epoch_ratio": seconds.to_json(),
            "peak_anonymous_mb": memory,
        },
    )


if __name__ == "__main__":
    main()
