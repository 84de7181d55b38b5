"""One epoch over three tasks through the public API: SST 8,544 texts, Quora 20,000 pairs, STS 6,040 pairs; batches of 32.

Run: python benchmarks/three_tasks.py [--quora-rows 20000] [--repetitions 1]. Trunks: mean, siamese, cosine. Writes
results/three_tasks.json. Without a data folder the demo data stand in.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import Side, alternate, checkpoint, part_name, save, settings_of
from options import parser_of
from rows import SOURCES, read_rows, sampled, what_data, write_rows

TRUNKS = {"sst": "mean", "quora": "siamese", "sts": "cosine"}
SIDE = Side("smoothtune", "ours_experiment.py")


def experiment(folder: Path, device: str) -> dict[str, Any]:
    """The three tasks, one epoch."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, trunk in TRUNKS.items():
        source = SOURCES[name]
        files = {split: str(folder / name / f"{split}.tsv") for split in ("train", "dev")}
        text = "text" if len(source.text) == 1 else ["text_a", "text_b"]
        tasks[name] = {"kind": source.kind, "text": text, "label": "label", "trunk": trunk, **files}
    tasks["sts"]["range"] = [0, 5]
    return {
        "encoder": {"name": checkpoint()},
        "tasks": tasks,
        "trunks": {trunk: {"kind": trunk} for trunk in TRUNKS.values()},
        "stages": [{"batch_size": 32, "stop": {"max_epochs": 1}}],
        "runtime": {"device": device},
    }


def write_tasks(folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """The rows of every task; how many there are to train on."""
    counts = {}
    for name in TRUNKS:
        rows = read_rows(SOURCES[name], options.data_dir)
        wanted = {"quora": options.quora_rows}.get(name, options.rows) or len(rows)
        counts[name] = min(wanted, len(rows))
        write_rows(folder / name / "train.tsv", sampled(rows, counts[name]))
        write_rows(folder / name / "dev.tsv", read_rows(SOURCES[name], options.data_dir, "dev")[:1000])
    return counts


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__, repetitions=1)
    parser.add_argument("--quora-rows", type=int, default=20_000)
    parser.add_argument("--rows", type=int, help="rows of SST and of STS, default: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts = write_tasks(Path(name), options)
        spec = {"experiment": experiment(Path(name), options.device)}
        measured = alternate([SIDE], spec, options.repetitions, threads=options.threads, label="three tasks")[0]
    if measured.failure is not None:
        raise SystemExit(measured.failure)
    save(
        part_name("three_tasks", options.device),
        {
            **settings_of(data=what_data(options.data_dir), threads=options.threads, device=options.device),
            "rows": counts,
            "train_seconds": measured.values("train_seconds"),
            "seconds": measured.values("seconds"),
            "median": statistics.median(measured.values("train_seconds")),
            "peak_anonymous_mb": statistics.median(measured.values("peak_anonymous_mb")),
        },
    )


if __name__ == "__main__":
    main()
