"""Peak anonymous memory of training on few and on many rows: it must not grow with the file.

Run: python benchmarks/train_memory.py [--rows 10000 5000000] [--steps 100] [--tiny] [--warm]. Each size is read, checked,
tokenised and trained on through `smoothtune.train` in a process of its own, with a cache of its own. Prints the largest
RssAnon (memory that no file backs), where it stood when the data were ready, the rows per second until then, the ratio of
the two sizes and the machine. `--tiny` takes an encoder of width 32, beside which every byte per row shows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = (
    "the plot is slow but music saves it and every scene looks fine yet nobody laughs at all in this long film "
    "because an actor who was good once has little left to say when she walks home through rain while light fades"
).split()
SENTENCES = 20_000
DEV_ROWS = 500
SPREAD = 7_368_787  # shares no factor with 10: numbers below 10^7 stay different


def write_rows(path: Path, count: int, seed: int) -> None:
    """`count` different texts of 4 to 30 words with labels 0 and 1; every hundredth is written twice.

    The number in each text has seven digits whatever the count, so that more rows bring no other vocabulary: moments of
    words are only paid for once they are read.
    """
    draw = random.Random(seed)
    sentences = [" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) for _ in range(SENTENCES)]
    with path.open("w", encoding="utf-8") as file:
        file.write("text\tlabel\n")
        for number in range(count):
            name = number - 1 if number % 100 == 1 else number
            file.write(f"{sentences[name % SENTENCES]} {seed} {name * SPREAD % 10**7:07d}\t{number % 2}\n")


def tiny_encoder(folder: Path) -> Path:
    """A 2-layer encoder of width 32 with the bundled tokenizer."""
    from transformers import BertConfig, BertModel

    from smoothtune.config.encoder import EncoderOptions
    from smoothtune.nn.pretrained import find_checkpoint

    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**settings)).save_pretrained(folder)
    shutil.copy(find_checkpoint(EncoderOptions()) / "tokenizer.json", folder)
    return folder


def train_here(folder: Path, encoder: str, steps: int) -> None:
    """Train in this process; prints seconds until the data were ready, and in all, as JSON."""
    import smoothtune
    from smoothtune.workflow.train import RunBegin

    began, ready = time.perf_counter(), 0.0
    anonymous = 0

    def listen(event: object) -> None:
        nonlocal ready, anonymous
        if isinstance(event, RunBegin):
            ready, anonymous = time.perf_counter() - began, _anonymous(os.getpid())

    task = {"kind": "binary", "text": "text", "label": "label", "train": "train.tsv", "dev": "dev.tsv"}
    experiment = {"encoder": {"name": encoder}, "tasks": {"mood": task}, "stages": [{"stop": {"max_steps": steps}}]}
    smoothtune.train(experiment, data_dir=folder, run_dir=folder / f"run-{time.time_ns()}", listen=listen)
    print(json.dumps({"ready": ready, "anonymous": anonymous, "seconds": time.perf_counter() - began}))


def watched(folder: Path, encoder: str, steps: int) -> dict[str, Any]:
    """What `train_here` prints in a process of its own, and the largest RssAnon in KiB, sampled every 20 ms."""
    command = [sys.executable, __file__, "--in", str(folder), "--encoder", encoder, "--steps", str(steps)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"training failed with exit status {process.returncode}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**found, "peak": peak}


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def measure(folder: Path, rows: int, encoder: str, steps: int, *, warm: bool) -> int:
    """Print what one size costs, and with `warm` what it costs again from the cache; the larger peak in KiB."""
    folder.mkdir()
    write_rows(folder / "train.tsv", rows, seed=1)
    write_rows(folder / "dev.tsv", DEV_ROWS, seed=2)
    peaks = []
    for state in ("cold", "warm") if warm else ("cold",):
        found = watched(folder, encoder, steps)
        peaks.append(found["peak"])
        print(
            f"{rows:>9,} rows, {state} cache: RssAnon peak {found['peak'] / 1024:.0f} MiB, "
            f"{found['anonymous'] / 1024:.0f} MiB when the data were ready after {found['ready']:.1f} s "
            f"({rows / found['ready']:,.0f} rows/s), {found['seconds']:.1f} s in all",
            flush=True,
        )
    shutil.rmtree(folder)
    return max(peaks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 5_000_000])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="an encoder of width 32 instead of the bundled one")
    parser.add_argument("--warm", action="store_true", help="train once more from the cache")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", default="minilm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        train_here(options.folder, options.encoder, options.steps)
        return
    from smoothtune.workflow.run import machine

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        encoder = str(tiny_encoder(home / "encoder")) if options.tiny else options.encoder
        peaks = [
            measure(home / f"rows-{rows}", rows, encoder, options.steps, warm=options.warm) for rows in options.rows
        ]
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    print(json.dumps({**machine("cpu"), "date": time.strftime("%Y-%m-%d")}))


if __name__ == "__main__":
    main()
