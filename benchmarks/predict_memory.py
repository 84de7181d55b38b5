"""Peak anonymous memory of `smoothtune predict` on few and on many rows: it must not grow with the file.

Run: python benchmarks/predict_memory.py [--rows 10000 1000000]. Prints RssAnon per size, the ratio, machine and date.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "the",
    "plot",
    "is",
    "slow",
    "but",
    "music",
    "saves",
    "it",
    "and",
    "every",
    "scene",
    "looks",
    "fine",
    "yet",
    "nobody",
    "laughs",
    "at",
    "all",
    "in",
    "this",
    "long",
    "film",
]


def tiny_run(folder: Path) -> Path:
    """A run with a 2-layer encoder of width 32 and the bundled tokenizer."""
    from transformers import BertConfig, BertModel

    import smoothtune
    from smoothtune.config.encoder import EncoderOptions
    from smoothtune.nn.pretrained import find_checkpoint

    encoder = folder / "encoder"
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**settings)).save_pretrained(encoder)
    shutil.copy(find_checkpoint(EncoderOptions()) / "tokenizer.json", encoder)
    write_rows(folder / "train.tsv", 200)
    experiment = {
        "encoder": {"name": str(encoder)},
        "tasks": {"mood": {"kind": "binary", "text": "text", "label": "label", "train": str(folder / "train.tsv")}},
        "stages": [{"stop": {"max_steps": 3}}],
    }
    smoothtune.train(experiment, run_dir=folder / "run")
    return folder / "run"


def write_rows(path: Path, count: int) -> None:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("text\tlabel\n")
        for number in range(count):
            file.write(" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) + f" {number}\t{number % 2}\n")


def peak_memory(run: Path, source: Path, out: Path) -> tuple[int, float]:
    """Largest RssAnon in KiB that was seen, sampled every 50 ms, and seconds."""
    command = [
        sys.executable,
        "-m",
        "smoothtune",
        "predict",
        str(run),
        str(source),
        "--task",
        "mood",
        "--out",
        str(out),
    ]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"predict failed with exit status {process.returncode}")
    return peak, time.perf_counter() - began


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 1_000_000])
    sizes = parser.parse_args().rows
    from smoothtune.workflow.run import machine

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, peaks = tiny_run(folder), []
        for size in sizes:
            write_rows(folder / "rows.tsv", size)
            peak, seconds = peak_memory(run, folder / "rows.tsv", folder / "out.tsv")
            with (folder / "out.tsv").open(encoding="utf-8") as file:
                assert sum(1 for _ in file) == size + 1
            peaks.append(peak)
            print(f"{size:>9,} rows: RssAnon peak {peak / 1024:.0f} MiB, {seconds:.0f} s", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    print(json.dumps(machine("cpu")))


if __name__ == "__main__":
    main()
