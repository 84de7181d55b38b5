"""Ends runs where it hurts, and compares what is left with a run that nobody ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from smoothtune.training.loop import StepReport
from smoothtune.training.stage_events import StageEpoch
from smoothtune.workflow.run import METRICS, MODEL
from tests.small_data import table

TIMES = ("train_seconds", "seconds_plain", "seconds_with")
SMOOTH = {"kind": "smoothness", "preset": "exact", "radius": 0.03}


class Killed(BaseException):
    """What a listener raises in place of a signal that no code can catch."""


class KillAt:
    """A listener that ends the process, so to say, at event number `place` of those that come after a step or an epoch."""

    def __init__(self, place: float = math.inf) -> None:
        self.place = place
        self.count = 0

    def __call__(self, event: Any) -> None:
        self.count += isinstance(event, StepReport | StageEpoch)
        if isinstance(event, StepReport | StageEpoch) and self.count == self.place:
            raise Killed


def hard(encoder: Path, *, every: Any = 1) -> dict[str, Any]:
    """Two stages that hold all that a checkpoint must: see the keys."""
    wanted = table(encoder, trunk={"kind": "pwim_resnet", "depth": 1, "dropout": 0.2})
    wanted["encoder"] |= {"dropout": 0.1, "attention_dropout": 0.1}
    wanted["runtime"] = {"threads": 1, "checkpoint_every": every}
    wanted["tasks"]["mood"]["class_weights"] = "balanced"
    wanted["lora"] = {"rank": 2, "dropout": 0.1}
    wanted["adapters"] = {"size": 4}
    wanted["stages"] = [
        {
            **wanted["stages"][0],
            "name": "joint",
            "learning_rate": 5e-4,
            "schedule": "annealed",
            "schedule_options": {"steps_per_epoch": 11},
            "weighting": ["inverse_size", "learned"],
            "accumulate": 2,
            "regularisers": [
                {**SMOOTH, "every": 2, "fraction": 0.5, "tasks": ["mood", "same"]},
                {"kind": "proximal", "warmup": 0.5},
                {"kind": "r_drop", "tasks": ["mood"]},
            ],
            "stop": {"metric": "score", "patience": 2, "max_epochs": 3},
        },
        {
            **wanted["stages"][0],
            "name": "own",
            "tasks": ["mood", "near"],
            "train": ["lora", "adapters", "trunks.pair", "outputs"],
            "learning_rate": 1e-3,
            "frozen_dropout": True,
            "regularisers": [{**SMOOTH, "tasks": ["near"]}],
            "stop": {"metric": "score", "patience": 1, "threshold": 0.02, "max_epochs": 2, "per_task": True},
        },
    ]
    return wanted


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the run's model, and of the models of its stages."""
    files = [run / MODEL / "model.safetensors", *sorted(run.glob("stages/*/model.safetensors"))]
    return {
        f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()
    }  # fmt: skip


def metrics(run: Path) -> list[Any]:
    """metrics.jsonl, times aside."""
    return [without_times(json.loads(line)) for line in (run / METRICS).read_text().splitlines()]


def without_times(value: Any) -> Any:
    """A value from JSON, times aside."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs left the same weights, model files, metrics, evaluation and stages, to the bit."""
    ours, theirs = weights(a), weights(b)
    assert set(ours) == set(theirs)
    assert metrics(a) == metrics(b)
    for name in ("config.toml", "encoder.json", "labels.json", "tokenizer.json"):
        assert (a / MODEL / name).read_bytes() == (b / MODEL / name).read_bytes()
    read = [json.loads((run / "evaluation.json").read_text()) for run in (a, b)]
    told = [without_times(json.loads((run / "run.json").read_text())["stages"]) for run in (a, b)]
    return read[0] == read[1] and told[0] == told[1] and all(torch.equal(ours[name], theirs[name]) for name in ours)


def until_killed(run: Callable[[], Any]) -> bool:
    """Whether `run` was ended by `Killed`."""
    try:
        run()
    except Killed:
        return True
    return False
