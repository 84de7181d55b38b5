"""A small experiment that learns: three tasks over the words of `tests/tiny.py`, written as TSV files."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.config.loading import load
from smoothtune.config.tasks import shape_of
from smoothtune.data.batching import Examples
from smoothtune.data.task_data import make_examples, read_tasks
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.nn.building import build_model
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.pretrained import load_encoder
from smoothtune.objective.look import Regulariser
from smoothtune.objective.weighting import TaskFacts
from smoothtune.training.loop import StepReport
from smoothtune.training.stage import StageRun
from smoothtune.training.stage_events import StageEpoch, StageEvent
from smoothtune.workflow.scoring import EpochEvaluation

TASKS = ("mood", "same", "near")
SINGLE = ("cls", "mean", "conv_bilstm")
ROWS = {"train": 40, "dev": 20}  # of each task: 120 training rows in all
GROUPS = {"beast": ("cat", "dog"), "place": ("house", "tree"), "sky": ("rain", "sun", "moon", "star")}
_FILLERS = ("the", "a", "this", "that", "very", "small", "big", "one", "two", "slow", "fast")


class Always:
    """What a regulariser that looks at every batch has beside its call; it has no memory."""

    layers: tuple[int, ...] = (0,)
    precision: Literal["float32", "bfloat16"] | None = None
    every: int = 1

    def applies(self, task: str) -> bool:
        return True

    def due(self, task: str) -> bool:
        return True

    def count(self, task: str) -> None:
        return

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state

    def check_memory(self, batches: Mapping[str, int], weights: Mapping[str, torch.Tensor], *, whole: bool) -> None:
        return


def write_data(folder: Path, seed: int = 0) -> Path:
    """mood.*.tsv (three classes by a word), same.*.tsv (pairs, 0 or 1), near.*.tsv (pairs, shared words out of 5)."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for split, count in ROWS.items():
        _write(folder / f"mood.{split}.tsv", "text\tlabel", [_mood(draw, number) for number in range(count)])
        _write(folder / f"same.{split}.tsv", "first\tsecond\tlabel", [_same(draw, number) for number in range(count)])
        _write(folder / f"near.{split}.tsv", "first\tsecond\tlabel", [_near(draw, number) for number in range(count)])
    return folder


def _write(path: Path, header: str, lines: Sequence[str]) -> None:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def _mood(draw: random.Random, number: int) -> str:
    label = tuple(GROUPS)[number % 3]
    words = [*draw.sample(_FILLERS, draw.randint(1, 6)), draw.choice(GROUPS[label])]
    draw.shuffle(words)
    return f"{' '.join(words)}\t{label}"


def _same(draw: random.Random, number: int) -> str:
    first = draw.sample(_FILLERS, 3)
    second = first if number % 2 else draw.sample(GROUPS["sky"], draw.randint(2, 4))
    return f"{' '.join(first)}\t{' '.join(second)}\t{number % 2}"


def _near(draw: random.Random, number: int) -> str:
    first = draw.sample(_FILLERS, 5)
    second = [*first[: number % 6], *draw.sample(GROUPS["sky"] + GROUPS["place"], 5 - number % 6)]
    return f"{' '.join(first)}\t{' '.join(second)}\t{number % 6}"


def table(encoder: Path, *, trunk: Mapping[str, Any] | None = None, **stage: Any) -> dict[str, Any]:
    """The experiment of the three tasks, without dropout, in float32, with the trunks `single` and `pair`.

    `trunk` takes the place of the one it can stand for. Keys of `stage` go into the only stage.
    """
    trunks: dict[str, Any] = {
        "single": {"kind": "mean", "dropout": 0.0},
        "pair": {"kind": "siamese", "dropout": 0.0},
    }
    if trunk is not None:
        trunks["single" if trunk["kind"] in SINGLE else "pair"] = dict(trunk)
    return {
        "name": "small",
        "seed": 3,
        "encoder": {"name": str(encoder), "max_length": 24, "dropout": 0.0, "attention_dropout": 0.0},
        "tasks": {
            "mood": _task("mood", "classification", "text"),
            "same": _task("same", "binary", ["first", "second"], labels=["0", "1"]),
            "near": _task("near", "regression", ["first", "second"], range=[0, 5]),
        },
        "trunks": trunks,
        "stages": [{**STAGE, **stage}],
    }


STAGE: dict[str, Any] = {
    "name": "together",
    "batch_size": 8,
    "learning_rate": {"encoder": 2e-3, "trunks": 2e-3, "outputs": 5e-3, "adaptations": 5e-4},
    "precision": "float32",
    "stop": {"max_epochs": 2},
}


def _task(name: str, kind: str, text: str | list[str], **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "text": text,
        "label": "label",
        "train": f"{name}.train.tsv",
        "dev": f"{name}.dev.tsv",
        "trunk": "single" if isinstance(text, str) else "pair",
        **more,
    }


@dataclass(slots=True)
class Prepared:
    """A small experiment up to its model, for tests below the workflow."""

    experiment: Experiment
    model: MultiTaskModel
    labels: dict[str, tuple[str, ...] | None]
    tokenizer: str
    train: dict[str, Examples]
    dev: dict[str, Examples]

    def run(
        self,
        *,
        evaluate: Any = None,
        regularisers: Sequence[Regulariser] = (),
        stage: int = 0,
        rows: int | None = None,
        examples: Mapping[str, Examples] | None = None,
    ) -> StageRun:
        """One stage, ready to run; `rows` keeps only the first training rows of each task."""
        chosen = self.experiment.stages[stage]
        names = self.experiment.stage_tasks(chosen)
        given = {name: (examples or self.train)[name] for name in names}
        train = {name: part if rows is None else first_rows(part, rows) for name, part in given.items()}
        tasks = self.experiment.tasks
        dev = {name: self.dev[name] for name in names}
        scores = EpochEvaluation(dev, train, tasks, seed=self.experiment.seed, dtype=torch.float32)
        return StageRun(
            model=self.model,
            stage=chosen,
            examples=train,
            facts={name: TaskFacts(len(part), tasks[name].loss_weight) for name, part in train.items()},
            evaluate=scores if evaluate is None else evaluate,
            seed=self.experiment.seed,
            dtype=torch.float32,
            accelerator=Accelerator(cpu=True),
            regularisers=regularisers,
        )


def first_rows(examples: Examples, count: int) -> Examples:
    """The first `count` of the examples."""
    return replace(examples, chosen=examples.chosen[:count])


def only(experiment: Mapping[str, Any], *tasks: str) -> dict[str, Any]:
    """The table with these of its tasks alone, and their trunks."""
    kept = {name: task for name, task in experiment["tasks"].items() if name in tasks}
    trunks = {task["trunk"]: experiment["trunks"][task["trunk"]] for task in kept.values()}
    return {**experiment, "tasks": kept, "trunks": trunks}


def prepare(experiment: Mapping[str, Any], data: Path, cache: Path, tasks: Sequence[str] = TASKS) -> Prepared:
    """Read the data and build the model of a table; other tasks than `tasks` are left out."""
    loaded = load(only(experiment, *tasks), data_dir=data).experiment
    folder = Path(loaded.encoder.name)
    tokenizer, found = load_tokenizer(folder), read_tasks(loaded, data, cache)
    labels = {name: part.labels for name, part in found.items()}
    shapes = {name: shape_of(task) for name, task in loaded.tasks.items()}
    encoder = load_encoder(folder, loaded.encoder)
    model = build_model(encoder, shapes, loaded.trunks, labels, seed=loaded.seed)

    def examples(split: str) -> dict[str, Examples]:
        return {
            name: make_examples(
                part,
                part.splits[split],
                tokenizer,
                reads=trunk_options(name, part.task, loaded.trunks).input,
                max_length=loaded.encoder.max_length,
                pad_id=int(encoder.architecture["pad_token_id"]),
                cache=cache,
            )
            for name, part in found.items()
        }

    return Prepared(loaded, model, labels, tokenizer.to_str(pretty=False), examples("train"), examples("dev"))


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: torch.nn.Module, before: Mapping[str, torch.Tensor]) -> set[str]:
    """The names of what differs from `before` in any bit."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def steps(events: Sequence[StageEvent]) -> list[StepReport]:
    """The reports of optimiser steps."""
    return [event for event in events if isinstance(event, StepReport)]


def epochs(events: Sequence[StageEvent]) -> list[StageEpoch]:
    """The reports of epochs."""
    return [event for event in events if isinstance(event, StageEpoch)]
