"""Prediction: ours, the transformers pipeline in batches, sentence-transformers `encode`, onnxruntime int8.

Run: python benchmarks/prediction.py [sst quora] [--rows 512] [--repetitions 5]. First a small model is trained (ours) and
written for the peers too, so that labels can be compared. Writes results/prediction[-cuda].json.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments import HERE, python_of, why_missing
from harness import Measured, Side, alternate, checkpoint, part_name, progress, run_side, save, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import SOURCES, read_rows, sampled, what_data, write_rows
from sides import KEEP_MEMORY

TRAIN_ROWS = 1280
OURS = Side("smoothtune", "ours_predict.py", note="`Model.predict`, defaults")
PIPELINE = Side(
    "pipeline", "pipeline_predict.py", note="`transformers` text-classification pipeline, float32, batches of 32"
)
PIPELINE_BF16 = Side(
    "pipeline, bf16", "pipeline_predict.py", variables=KEEP_MEMORY, options={"dtype": "bfloat16"},
    note="the same in bf16, allocator keeps memory",
)  # fmt: skip
ENCODE = Side(
    "encode", "encode_predict.py", environment="sentence-transformers",
    note="`sentence-transformers` `encode`, float32, its batch of 32; embeddings only",
)  # fmt: skip
ENCODE_BEST = Side(
    "encode, bf16", "encode_predict.py", environment="sentence-transformers", variables=KEEP_MEMORY,
    options={"dtype": "bfloat16", "batch_size": 64}, note="the same in bf16, batches of 64, allocator keeps memory",
)  # fmt: skip
ONNX = Side("onnxruntime int8", "onnx_predict.py", environment="onnxruntime", note="dynamic int8, sorted by length")
WORKLOADS = {"sst": (OURS, PIPELINE, PIPELINE_BF16, ENCODE, ENCODE_BEST, ONNX), "quora": (OURS, PIPELINE, ONNX)}


def prepare(folder: Path, data_dir: Path | None, rows: int, threads: int | None) -> None:
    """Write the texts, train the model, write it for the peers."""
    for name in WORKLOADS:
        source = SOURCES[name]
        write_rows(folder / name / "train.tsv", sampled(read_rows(source, data_dir), TRAIN_ROWS))
        write_rows(folder / name / "dev.tsv", sampled(read_rows(source, data_dir, "dev"), 64))
        write_rows(folder / f"{name}.tsv", sampled(read_rows(source, data_dir), rows, seed=1))
    spec = {"data": str(folder), "checkpoint": checkpoint(), "out": str(folder / "model")}
    run_side(Side("preparing", "train_for_prediction.py"), spec, threads=threads)
    progress("prediction: the model is trained")


def export(folder: Path, name: str) -> str | None:
    """Write the ONNX file of a task; why that failed."""
    python = python_of(ONNX.environment)
    if python is None:
        return why_missing(ONNX.environment)
    command = [
        python,
        str(HERE / "workers" / "onnx_export.py"),
        str(folder / "model" / name),
        str(folder / f"{name}.onnx"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return None if done.returncode == 0 else f"the export failed: {done.stderr.splitlines()[-1]}"


def row_of(measured: Measured, others: Mapping[str, Measured]) -> dict[str, Any]:
    """A line of the table. Agreement is with the float32 pipeline."""
    side, ours, plain = measured.side, others[OURS.name], others[PIPELINE.name]
    row: dict[str, Any] = {"side": side.name, "note": side.note, "failure": measured.failure}
    if not measured.reports:
        return row
    seconds = measured.values("seconds")
    row |= {
        "seconds": seconds,
        "per_second": measured.reports[0]["examples"] / statistics.median(seconds),
        "first_pass_seconds": statistics.median(measured.values("first_pass_seconds")),
        "load_seconds": statistics.median(measured.values("load_seconds")),
        "peak_anonymous_mb": statistics.median(measured.values("peak_anonymous_mb")),
        "versions": measured.reports[0]["versions"],
    }
    if measured.reports[0]["answers"] is not None and plain.reports:
        pairs = zip(measured.reports[0]["answers"], plain.reports[0]["answers"], strict=True)
        row["agreement"] = statistics.fmean(a == b for a, b in pairs)
    return row | {"ratio": ratio_of_medians(seconds, ours.values("seconds")).to_json()} if ours.reports else row


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--rows", type=int, default=512)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.data_dir, options.rows, options.threads)
        for workload in options.workloads:
            failure = export(folder, workload)
            spec = {
                "texts": str(folder / f"{workload}.tsv"), "task": workload, "device": options.device,
                "model": str(folder / "model" / "run"), "peer_model": str(folder / "model" / workload),
                "onnx": str(folder / f"{workload}.onnx"), "checkpoint": checkpoint(),
            }  # fmt: skip
            sides = [side for side in WORKLOADS[workload] if side is not ONNX or failure is None]
            measured = alternate(sides, spec, options.repetitions, threads=options.threads, label=f"predict {workload}")
            others = {one.side.name: one for one in measured}
            measured += [] if failure is None else [Measured(ONNX, failure=failure)]
            found[workload] = [row_of(one, others) for one in measured]
    settings = settings_of(
        data=what_data(options.data_dir), rows=options.rows, repetitions=options.repetitions, threads=options.threads,
        device=options.device,
    )  # fmt: skip
    save(part_name("prediction", options.device), {**settings, "workloads": found})


if __name__ == "__main__":
    main()
