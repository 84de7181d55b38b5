"""What the sums of the cache cost: a run over 100,000 rows whose cache is empty, and the same run again, which compares them.

Run: python benchmarks/cache_sums.py [--repetitions 2] [--again 5] [--rows 100000]. SST sentences, drawn again and again, with
the bundled encoder left alone: its states are kept, which are the largest entries there are, and one epoch trains the rest, so
that there is little else to do. Each repetition fills a cache and then runs `again` times on it. The share is the time inside the
sums over the rest of the same run; its median has an interval over the runs. Writes results/cache_sums.json.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import zlib
from pathlib import Path
from statistics import median
from typing import Any

from harness import Side, checkpoint, progress, run_side, save, settings_of
from intervals import ratio_of_medians
from options import parser_of
from rows import SOURCES, read_rows, sampled, what_data, write_rows

RUNS = ("an empty cache", "a whole cache")


def experiment(folder: Path) -> dict[str, Any]:
    """SST alone, the encoder left alone."""
    task = {"kind": "classification", "text": "text", "label": "label", "trunk": "mean"}
    files = {split: str(folder / f"{split}.tsv") for split in ("train", "dev")}
    stage = {"batch_size": 32, "train": ["trunks", "outputs"], "stop": {"max_epochs": 1}}
    return {
        "encoder": {"name": checkpoint()},
        "tasks": {"sst": {**task, **files}},
        "trunks": {"mean": {"kind": "mean"}},
        "stages": [stage],
    }


def measure(folder: Path, repetitions: int, again: int, threads: int | None) -> dict[str, list[dict[str, Any]]]:
    """The reports of both runs, a new cache for each repetition."""
    from smoothtune.files import cache_folder
    from smoothtune.runtime.kernels.building import PLACE

    kernels = {PLACE: os.environ.get(PLACE) or str(cache_folder())}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            side = Side("ours", "cache_run.py", variables={"XDG_CACHE_HOME": cache, **kernels})
            for name in (RUNS[0], *again * RUNS[1:]):
                report = run_side(side, {"experiment": experiment(folder)}, threads=threads)
                found[name].append(report)
                progress(f"cache sums: {name}, repetition {repetition + 1} of {repetitions}: {report['seconds']:.0f} s")
    return found


def rates() -> dict[str, float]:
    """Bytes a second that each sum takes of 64 MiB in memory, the best of five."""
    content = os.urandom(1 << 26)
    sums = {"CRC-32": zlib.crc32, "Adler-32": zlib.adler32, "SHA-256": hashlib.sha256, "BLAKE2b": hashlib.blake2b}
    found = {}
    for name, take in sums.items():
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            take(content)
            seconds.append(time.perf_counter() - began)
        found[name] = len(content) / min(seconds)
    return found


def row_of(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs of one kind came to."""
    values = {key: [float(report[key]) for report in reports] for key in reports[0] if key != "versions"}
    shares = [sums / rest for sums, rest in zip(values["sum_seconds"], values["rest_seconds"], strict=True)]
    return {
        "seconds": [round(value, 2) for value in values["seconds"]],
        "megabytes": round(max(values["summed_megabytes"]), 1),
        "sum_seconds": median(values["sum_seconds"]),
        "sync_seconds": median(values["sync_seconds"]),
        "share": ratio_of_medians(shares, [1.0]).to_json(),
        "most": max(shares),
    }


def main() -> None:
    """Measure, save."""
    parser = parser_of(__doc__, repetitions=2)
    parser.add_argument("--again", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "train.tsv", sampled(read_rows(SOURCES["sst"], options.data_dir), options.rows))
        write_rows(folder / "dev.tsv", read_rows(SOURCES["sst"], options.data_dir, "dev"))
        found = measure(folder, options.repetitions, options.again, options.threads)
    settings = settings_of(
        data=what_data(options.data_dir),
        threads=options.threads,
        rows=options.rows,
        repetitions=options.repetitions,
    )
    save(
        "cache_sums", {**settings, "rates": rates(), "runs": {name: row_of(reports) for name, reports in found.items()}}
    )


if __name__ == "__main__":
    main()
