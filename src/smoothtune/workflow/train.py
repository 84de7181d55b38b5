"""Trains an experiment from start to end and leaves a run folder. Prints nothing: whoever listens is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tokenizers import Tokenizer

from smoothtune.config.experiment import Experiment, ModelConfig, trunk_options
from smoothtune.config.loading import load
from smoothtune.config.stage import Stage
from smoothtune.config.tasks import shape_of
from smoothtune.data.batching import Examples
from smoothtune.data.task_data import TaskData, make_examples, read_tasks
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.errors import ConfigurationError, Problem
from smoothtune.evaluation.scores import Scores, score_tasks
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.folder import write_model_folder
from smoothtune.nn.model import MultiTaskModel, build_model
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.objective.weighting import TaskFacts
from smoothtune.runtime.device import keep_memory_mapped, pick_device, pick_dtype, set_threads
from smoothtune.training.stage import StageEpoch, StageEvent, StageRun, chosen_parameters
from smoothtune.workflow.cache import cache_folder
from smoothtune.workflow.check import CheckReport, report_on
from smoothtune.workflow.run import CHECK, EVALUATION, STATE, Run, RunFiles, machine, new_run_folder
from smoothtune.workflow.scoring import EpochEvaluation, answers_of


@dataclass(frozen=True, slots=True)
class RunBegin:
    """The data are read and checked and the run folder is there."""

    folder: Path
    check: CheckReport


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The model is written; `scores` are those of all tasks on dev, None when the run was interrupted."""

    run: Run
    scores: Scores | None


Event = RunBegin | StageEvent | RunEnd


def train(
    experiment: str | Path | Mapping[str, Any] | Experiment,
    *,
    data_dir: str | Path | None = None,
    run_dir: str | Path | None = None,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    listen: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Train an experiment (TOML path, packaged name, table or `Experiment`) and return its run.

    `listen` is told of everything that happens. Ctrl-C ends the run early with the best state so far as its model
    (`Run.interrupted`). Raises `ConfigurationError`, `DataError`, `UsageError` before anything is written, and
    `TrainingError` when training cannot go on.
    """
    loaded = load(experiment, overrides=overrides, data_dir=data_dir, seed=seed)
    return _Training(_absolute(loaded.experiment, loaded.base), run_dir, listen).run()


def _absolute(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with data paths that no longer depend on a folder."""
    tasks = {}
    for name, task in experiment.tasks.items():
        sources = {
            split: _absolute_path(value, base)
            for split in ("train", "dev", "test")
            if isinstance(value := getattr(task, split), str)
        }
        tasks[name] = task.model_copy(update=sources)
    return experiment.model_copy(update={"tasks": tasks})


def _absolute_path(text: str, base: Path) -> str:
    if text.startswith("packaged:"):
        return text
    if text.startswith("hf:"):
        local = text.removeprefix("hf:")
        return f"hf:{base / local}" if local.startswith(("./", "../")) else text
    return str(base / Path(text).expanduser())


class _Training:
    """The state of one training run, so that each step of it is a short method."""

    def __init__(self, experiment: Experiment, run_dir: str | Path | None, listen: Callable[[Event], None]) -> None:
        self.experiment = experiment
        self.listen = listen
        self.device = pick_device(experiment.runtime.device)
        self.threads = set_threads(experiment.runtime.threads)
        keep_memory_mapped()
        self.cache = cache_folder()
        checkpoint = find_checkpoint(experiment.encoder)
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint)
        self.data = read_tasks(experiment, Path.cwd(), self.cache)
        self.encoder = load_encoder(checkpoint, experiment.encoder)
        _check_length(experiment, self.encoder)
        self.check = report_on(experiment, self.data, self.tokenizer, self.cache)
        self.labels = {name: data.labels for name, data in self.data.items()}
        self.model = self._build()
        for stage in experiment.stages:
            chosen_parameters(self.model, stage, experiment.stage_tasks(stage))
        self.folder = new_run_folder(run_dir, experiment.name)
        self.files = RunFiles(self.folder)

    def run(self) -> Run:
        """All stages, then the model and its evaluation."""
        self.files.write_experiment(self.experiment)
        self.files.write_json(CHECK, self.check.to_json())
        self.listen(RunBegin(self.folder, self.check))
        current: StageRun | None = None
        try:
            for stage in self.experiment.stages:
                current = self._stage(stage)
                for event in current.events():
                    self._record(event)
        except KeyboardInterrupt:
            if current is not None and hasattr(current, "best"):
                current.best.restore()
            return self._finish(interrupted=True)
        return self._finish(interrupted=False)

    def _build(self) -> MultiTaskModel:
        shapes = {name: shape_of(task) for name, task in self.experiment.tasks.items()}
        model = build_model(self.encoder, shapes, self.experiment.trunks, self.labels, seed=self.experiment.seed)
        return model.to(self.device)

    def _examples(self, split: str, names: Iterable[str]) -> dict[str, Examples]:
        found = {}
        for name in names:
            data = self.data[name]
            found[name] = make_examples(
                data,
                data.splits[split],
                self.tokenizer,
                reads=trunk_options(name, data.task, self.experiment.trunks).input,
                max_length=self.experiment.encoder.max_length,
                pad_id=int(self.encoder.architecture.get("pad_token_id") or 0),
                cache=self.cache,
            )
        return found

    def _stage(self, stage: Stage) -> StageRun:
        names = self.experiment.stage_tasks(stage)
        train = self._examples("train", names)
        dtype = pick_dtype(stage.precision, self.device)
        tasks = self.experiment.tasks
        evaluate = EpochEvaluation(self._examples("dev", names), train, tasks, seed=self.experiment.seed, dtype=dtype)
        return StageRun(
            model=self.model,
            stage=stage,
            examples=train,
            facts={name: TaskFacts(len(part), tasks[name].loss_weight) for name, part in train.items()},
            evaluate=evaluate,
            seed=self.experiment.seed,
            dtype=dtype,
            accelerator=Accelerator(cpu=self.device.type == "cpu"),
        )

    def _record(self, event: StageEvent) -> None:
        if isinstance(event, StageEpoch):
            self.files.add_metrics(_metrics_line(event))
        self.listen(event)

    def _finish(self, *, interrupted: bool) -> Run:
        dtype = pick_dtype(self.experiment.stages[-1].precision, self.device)
        facts = {
            "interrupted": interrupted,
            "device": str(self.device),
            "threads": self.threads,
            "precision": str(dtype).removeprefix("torch."),
            **machine(),
        }
        self._write_model(facts)
        scores = None
        if not interrupted:
            answers = answers_of(self.model, self._examples("dev", self.data), self.experiment.tasks, dtype=dtype)
            scores = score_tasks(answers, seed=self.experiment.seed)
            self.files.write_json(EVALUATION, scores.to_json())
        self.files.write_json(STATE, facts)
        run = Run(self.folder, self.experiment, None if scores is None else scores.to_json(), interrupted)
        self.listen(RunEnd(run, scores))
        return run

    def _write_model(self, facts: Mapping[str, Any]) -> None:
        config = ModelConfig(
            encoder=self.experiment.encoder,
            tasks={name: shape_of(task) for name, task in self.experiment.tasks.items()},
            trunks=self.experiment.trunks,
        )
        provenance = {
            **facts,
            "experiment": self.experiment.name,
            "seed": self.experiment.seed,
            "data": {name: _fingerprints(data) for name, data in self.data.items()},
        }
        write_model_folder(
            self.folder / "model",
            self.model,
            config,
            self.labels,
            tokenizer=self.tokenizer.to_str(pretty=False),
            provenance=provenance,
        )


def _fingerprints(data: TaskData) -> dict[str, Any]:
    return {
        split: {"rows": len(part), "content": part.table.source.fingerprint()} for split, part in data.splits.items()
    }


def _check_length(experiment: Experiment, encoder: Encoder) -> None:
    limit = encoder.max_tokens
    if limit is not None and experiment.encoder.max_length > limit:
        what = f"got {experiment.encoder.max_length}, but {experiment.encoder.name!r} reads at most {limit} tokens"
        raise ConfigurationError("the experiment cannot be run:", [Problem("encoder.max_length", what)])


def _metrics_line(event: StageEpoch) -> dict[str, Any]:
    report = event.report
    scores = report.dev
    line = {
        "stage": report.stage,
        "epoch": report.epoch + 1,
        "step": report.step,
        "train_seconds": round(report.train_seconds, 3),
        "losses": report.losses,
        "train": scores.train.tasks,
        "dev": scores.dev.tasks,
        "score": scores.score,
        "plain_mean": scores.plain_mean,
        "best": event.best,
        "finished": list(event.finished),
        "coverage": {
            task: {"once": seen.once, "repeated": seen.repeated, "unseen": seen.unseen}
            for task, seen in report.coverage.items()
        },
        "skipped": report.skipped,
    }
    if event.factors:
        line["weights"] = event.factors
    found: dict[str, Any] = _plain(line)
    return found


def _plain(value: Any) -> Any:
    """Numbers that JSON cannot hold become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
