"""A stage on a frozen encoder: what its first epoch costs, and those after it, when states are kept.

Run: python benchmarks/frozen.py [--data-dir DIR] [--epochs 3] [--repetitions 3] [--trunks wang/baseline siamese conv_bilstm
pwim_resnet]. The data folder has sst/ and, for pair trunks, quora/. `wang/baseline` is the SST stage of the packaged experiment
on all rows, `--repetitions` times; the other trunks train once on a sample. Every run has a cache of its own, after a few steps
that build kernels and fill it with all but states. An epoch is timed from report to report, evaluation included, the first from
the end of reading the data, encoding included. Prints one JSON line per run, in seconds: the first epoch, encoding, the later
epochs (minimum and median), and the first over that median; for `wang/baseline` what `Model.predict` takes for the same texts
(tokenising included), for trunks that compute much an epoch without kept states.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rows import SOURCES, data_folder, read_rows, sampled, write_rows

BASELINE = "wang/baseline"
# Task and training rows of the other trunks, so that each takes well under two minutes.
SAMPLES = {"siamese": ("quora", 1024), "conv_bilstm": ("sst", 2048), "pwim_resnet": ("quora", 640)}
COMPUTING = ("conv_bilstm", "pwim_resnet")


def baseline() -> Any:
    """The packaged experiment with its SST stage alone."""
    from smoothtune.config.loading import load

    packaged = load(BASELINE).experiment
    task = packaged.tasks["sst"]
    return packaged.model_copy(
        update={
            "tasks": {"sst": task},
            "trunks": {str(task.trunk): packaged.trunks[str(task.trunk)]},
            "stages": tuple(stage for stage in packaged.stages if stage.tasks == ("sst",)),
        }
    )


def sample(trunk: str, data_dir: Path, folder: Path) -> dict[str, Any]:
    """An experiment with `trunk` on rows that are written to `folder`; a dev row for every 8 training rows."""
    name, rows = SAMPLES[trunk]
    source = SOURCES[name]
    for split, count in (("train", rows), ("dev", rows // 8)):
        write_rows(folder / f"{split}.tsv", sampled(read_rows(source, data_dir, split), count))
    task = {
        "kind": source.kind,
        "text": "text" if len(source.text) == 1 else ["text_a", "text_b"],
        "label": "label",
        "train": str(folder / "train.tsv"),
        "dev": str(folder / "dev.tsv"),
        "trunk": "trunk",
    }
    stage = {"train": ["trunks", "outputs"], "learning_rate": 1e-3, "stop": {"max_epochs": 1}}
    return {"tasks": {name: task}, "trunks": {"trunk": {"kind": trunk}}, "stages": [stage]}


def epochs_of(experiment: Any, data_dir: Path, run: Path, *settings: str) -> tuple[list[float], float, int]:
    """Seconds of every epoch, seconds of encoding, and how many texts were encoded."""
    import smoothtune
    from smoothtune.training.stage_events import StageEpoch
    from smoothtune.workflow.frozen import FrozenStates
    from smoothtune.workflow.train import RunBegin

    marks: list[float] = []
    encoding, texts = 0.0, 0

    def listen(event: object) -> None:
        nonlocal encoding, texts
        if isinstance(event, RunBegin | StageEpoch):
            marks.append(time.perf_counter())
        if isinstance(event, FrozenStates):
            encoding, texts = event.seconds, event.encoded

    smoothtune.train(experiment, data_dir=data_dir, run_dir=run, overrides=settings, listen=listen)
    return [end - begin for begin, end in pairwise(marks)], encoding, texts


def predicting(run: Path, data_dir: Path) -> dict[str, Any]:
    """What `Model.predict` takes for the SST rows of both splits, and in which precision; the first texts choose that before."""
    import smoothtune

    texts = [row[0][0] for split in ("train", "dev") for row in read_rows(SOURCES["sst"], data_dir, split)]
    model = smoothtune.load(run)
    model.predict("sst", texts[:256])
    began = time.perf_counter()
    model.predict("sst", texts)
    seconds = time.perf_counter() - began
    precision = model.precision_of(("sst",))
    assert precision is not None
    return {"predicting": round(seconds, 3), "predict_precision": precision.name}


def measure(trunk: str, epochs: int, data_dir: Path) -> dict[str, Any]:
    """One run, in a cache of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        experiment = baseline() if trunk == BASELINE else sample(trunk, data_dir, folder)
        # Everything that the first run alone would pay for, but no states.
        epochs_of(experiment, data_dir, folder / "warm", "runtime.frozen_states=off", "stages.0.stop.max_steps=3")
        asked = f"stages.0.stop.max_epochs={epochs}"
        (first, *later), encoding, texts = epochs_of(experiment, data_dir, folder / "run", asked)
        found = {
            "trunk": trunk,
            "texts": texts,
            "first": round(first, 3),
            "encoding": round(encoding, 3),
            "later_min": round(min(later), 4),
            "later_median": round(statistics.median(later), 4),
            "ratio": round(first / statistics.median(later), 1),
        }
        if trunk == BASELINE:
            found |= predicting(folder / "run", data_dir)
        if trunk in COMPUTING:
            off = ("runtime.frozen_states=off", "stages.0.stop.max_epochs=1")
            (without,), *_ = epochs_of(experiment, data_dir, folder / "off", *off)
            found["epoch_without_states"] = round(without, 3)
    return found


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=data_folder, default=data_folder(None), help="folder with sst/, quora/")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3, help=f"of {BASELINE}; the other trunks run once")
    parser.add_argument("--trunks", nargs="+", choices=[BASELINE, *SAMPLES], default=[BASELINE, *SAMPLES])
    asked = parser.parse_args(arguments)
    if asked.epochs < 2:
        parser.error(
            f"--epochs: got {asked.epochs}, expected at least 2, since later epochs are compared with the first"
        )
    if asked.repetitions < 1:
        parser.error(f"--repetitions: got {asked.repetitions}, expected at least 1")
    if asked.data_dir is None:
        parser.error("name the folder of the data with --data-dir, or in SMOOTHTUNE_DATA")
    return asked


def main() -> None:
    """Measure and print."""
    asked = options_of()
    for trunk in asked.trunks:
        for _ in range(asked.repetitions if trunk == BASELINE else 1):
            print(json.dumps(measure(trunk, asked.epochs, asked.data_dir)), flush=True)


if __name__ == "__main__":
    main()
