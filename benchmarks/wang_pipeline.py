"""Wang's whole pipeline on real data: `wang/full`, and beside it `wang/efficient`, which leaves the joint stage out.

Run: python benchmarks/wang_pipeline.py --data-dir DIR [--seeds 1] [--jobs 1] [--runs runs/wang]. Quora is cut to 20,000 training
rows; a stage of several tasks has at most 5 epochs, one of a single task at most 8; all else is as packaged, stopping included.
The runs lie in `--runs` and hold checkpoints: stopped at any moment, the command goes on where it was; `--jobs N` trains N at
once (give `--threads 1` with it). Then the model after every stage is scored on the whole dev sets, and the two ends are compared
on the same rows. Writes results/wang_pipeline.json, which `results_page.py` shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments import HERE
from harness import progress, save, settings_of
from options import parser_of
from rows import what_data

if TYPE_CHECKING:
    from smoothtune.workflow.evaluate import Evaluation

NAMES = ("wang/full", "wang/efficient")
QUORA_ROWS = 20_000
JOINT_EPOCHS, SINGLE_EPOCHS = 5, 8


def overrides(name: str) -> list[str]:
    """What differs from the packaged experiment."""
    from smoothtune.config.loading import load

    experiment = load(name).experiment
    return [f"tasks.quora.max_train_rows={QUORA_ROWS}", *_epochs(experiment)]


def _epochs(experiment: Any) -> Iterator[str]:
    for number, stage in enumerate(experiment.stages):
        most = SINGLE_EPOCHS if len(experiment.stage_tasks(stage)) == 1 else JOINT_EPOCHS
        yield f"stages.{number}.stop.max_epochs={most}"


def trained(name: str, seed: int, runs: Path, data_dir: Path, changes: list[str], threads: int | None) -> Path:
    """The run's folder when it is done: begun, gone on with, or found so. What its process says goes to a log beside it."""
    folder = runs / f"{name.replace('/', '-')}-{seed}"
    given = [*changes, *([] if threads is None else [f"runtime.threads={threads}"])]
    command = [
        sys.executable, "-m", "smoothtune", "train", name, "--data-dir", str(data_dir), "--run-dir", str(folder),
        "--seed", str(seed), "--resume", *(part for change in given for part in ("--set", change)),
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    progress(f"wang pipeline: {name}, seed {seed}: {log}")
    runs.mkdir(parents=True, exist_ok=True)
    with log.open("a") as lines:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=lines, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, seed {seed}, ended with status {done.returncode}: see {log}")
    return folder


def scored(run: Path) -> dict[str, Evaluation]:
    """The model after every stage of a finished run on the whole dev sets, in order."""
    from smoothtune.workflow.evaluate import evaluate_run

    found = {}
    for record in _records(run):
        found[record["name"]] = evaluate_run(run, stage=record["name"])
        progress(f"wang pipeline: {run.name}: scored after {record['name']}")
    return found


def _records(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "run.json").read_text())["stages"])


def told(run: Path, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The stages of a finished run, each with main metrics of the model after it, of the tasks that had been trained by then.

    The score is there where that is all of them.
    """
    from smoothtune.workflow.run import read_experiment

    main = {name: task.metric for name, task in read_experiment(run).tasks.items()}
    stages, known = [], set()
    for record in _records(run):
        known |= set(record["tasks"])
        scores = evaluations[record["name"]].to_json()
        stages.append(
            {
                **{key: record[key] for key in ("name", "tasks", "trained", "parameters", "precision", "reason")},
                "train_seconds": record["train_seconds"],
                **epochs_of(run, record["name"]),
                "scores": {task: found[main[task]] for task, found in scores["tasks"].items() if task in known},
                "score": scores["score"] if set(scores["tasks"]) <= known else None,
            }
        )
    return {"stages": stages, "metrics": main}


def epochs_of(run: Path, stage: str) -> dict[str, int]:
    """How many epochs a stage trained for, and the last that was the best so far (0: what it began with)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["stage"] == stage]
    return {
        "epochs": max(line["epoch"] for line in own),
        "best_epoch": max(line["epoch"] for line in own if line["best"]),
    }


def differences(full: Mapping[str, Evaluation], efficient: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Paired differences of main metrics: what the joint stage gave, what the efficient stages gave after it, and both.

    `joint` is the end of `full` less that of `efficient`; `efficient` the end of `full` less its model after the joint stage;
    `instead` that model less the end of `efficient`.
    """
    from smoothtune.evaluation.comparison import paired_difference

    (joint, *_, end), (*_, alone) = full.values(), efficient.values()
    pairs = {"joint": (end, alone), "efficient": (end, joint), "instead": (joint, alone)}
    found = {}
    for name, (one, other) in pairs.items():
        difference = paired_difference(one.answers, other.answers, seed=0)
        every = {**difference.tasks, "mean": difference.mean}
        found[name] = {task: {"value": e.value, "low": e.low, "high": e.high} for task, e in every.items()}
    return found


def main() -> None:
    """Train what is missing, score, save."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "wang", help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; give --threads 1 with several")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="for both experiments")
    options = parser.parse_args()
    if options.data_dir is None:
        parser.error("--data-dir: give the folder with sst/, quora/ and sts/")
    changes = {name: [*overrides(name), *options.set] for name in NAMES}
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = {
            (name, seed): pool.submit(
                trained, name, seed, options.runs, options.data_dir, changes[name], options.threads
            )
            for seed in range(1, options.seeds + 1)
            for name in NAMES
        }  # fmt: skip
        try:
            folders = {key: run.result() for key, run in begun.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that have begun go on
            raise
    seeds: dict[str, Any] = {}
    for seed in range(1, options.seeds + 1):
        both = {name: scored(folders[name, seed]) for name in NAMES}
        seeds[str(seed)] = {
            "runs": {name: told(folders[name, seed], evaluations) for name, evaluations in both.items()},
            "differences": differences(*both.values()),
        }
    threads = json.loads((folders[NAMES[0], 1] / "run.json").read_text())["threads"]
    settings = settings_of(data=what_data(options.data_dir), threads=threads, jobs=options.jobs, changes=changes)
    save("wang_pipeline", {**settings, "seeds": seeds})


if __name__ == "__main__":
    main()
