"""Training with `pwim_resnet`: ours and the reference of `references/pwim_resnet.py`, on pairs of Quora and of STS.

Run: python benchmarks/pwim_resnet.py [quora sts] [--steps 12] [--repetitions 5]. Every side is a process of its own, in
turn; one pass over the rows pays all first-time costs, the next one is timed. Writes results/pwim_resnet[-cuda].json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import Side, alternate, checkpoint, part_name, save, settings_of
from options import parser_of
from rows import SOURCES, read_rows, sampled, what_data, write_rows
from training import BATCH, DEV_ROWS, row_of

SIDES = (
    Side("smoothtune", "ours_train.py", options={"trunk": "pwim_resnet"}, note="pwim_resnet, as a user calls it"),
    Side(
        "reference",
        "../references/pwim_resnet.py",
        note="BertModel, nn.Conv2d and nn.BatchNorm2d, NCHW, padded to the batch's longest, autocast bfloat16, AdamW",
    ),
    Side(
        "reference, grouped",
        "../references/pwim_resnet.py",
        options={"grouped": True},
        note="the same with batches of similar length",
    ),
)


def write_pairs(name: str, data_dir: Path | None, steps: int, folder: Path) -> dict[str, Any]:
    """`steps` batches of pairs written to `folder`, and the spec that all sides are given."""
    source = SOURCES[name]
    for split, count in (("train", steps * BATCH), ("dev", DEV_ROWS)):
        rows = sampled(read_rows(source, data_dir, split), count)
        if source.kind == "regression":  # similarities go from 0 to 5, the range of both sides from 0 to 1
            rows = [(texts, str(float(label) / 5)) for texts, label in rows]
        write_rows(folder / f"{split}.tsv", rows)
    return {
        "data": str(folder),
        "kind": source.kind,
        "reads": "separate",
        "checkpoint": checkpoint(),
        "batch_size": BATCH,
        "passes": 2,
    }


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", default=["quora", "sts"])
    parser.add_argument("--steps", type=int, default=12, help="batches of 32 pairs in a pass")
    options = parser.parse_args()
    found = {}
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            spec = write_pairs(name, options.data_dir, options.steps, Path(folder)) | {"device": options.device}
            measured = alternate(SIDES, spec, options.repetitions, threads=options.threads, label=f"pwim_resnet {name}")
        found[name] = [row_of(one, measured[0]) for one in measured]
    settings = settings_of(
        data=what_data(options.data_dir), batch=BATCH, steps=options.steps, repetitions=options.repetitions,
        threads=options.threads, device=options.device,
    )  # fmt: skip
    save(part_name("pwim_resnet", options.device), {**settings, "workloads": found})


if __name__ == "__main__":
    main()
