"""Trains an experiment from start to end and leaves a run folder. Prints nothing: whoever listens is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.config.loading import load
from smoothtune.config.stage import Stage
from smoothtune.data.batching import Examples
from smoothtune.data.task_data import TaskData, make_examples, read_tasks
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.errors import TrainingError
from smoothtune.evaluation.scores import Scores, score_tasks
from smoothtune.files import cache_folder
from smoothtune.nn.folder import write_model_folder
from smoothtune.nn.pretrained import find_checkpoint, read_architecture
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts
from smoothtune.runtime.device import keep_memory_mapped, pick_device, pick_dtype, set_threads
from smoothtune.runtime.kernels.building import notes
from smoothtune.runtime.signals import Interrupts
from smoothtune.training.notices import Notice
from smoothtune.training.stage import StageEpoch, StageEvent, StageRun
from smoothtune.workflow.check import CheckReport, check_encoder, encoding_of, report_on
from smoothtune.workflow.frozen import Encoding, FrozenStates, StateKeeper
from smoothtune.workflow.metrics_line import metrics_line
from smoothtune.workflow.run import CHECK, EVALUATION, MODEL, STATE, Run, RunFiles, machine, new_run_folder
from smoothtune.workflow.scoring import EpochEvaluation, answers_of, undefined
from smoothtune.workflow.staged_model import StagedModel
from smoothtune.workflow.stages import StageRecord, stage_folder


@dataclass(frozen=True, slots=True)
class RunBegin:
    """The data are read and checked and the run folder is there. `notes` are sentences on this machine."""

    folder: Path
    check: CheckReport
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The model is written; `scores` are those of all tasks on dev, None when the run was interrupted.

    `undefined` says, by `TASK.METRIC`, why a score is `nan`.
    """

    run: Run
    scores: Scores | None
    undefined: dict[str, str]


Event = RunBegin | Encoding | FrozenStates | StageEvent | RunEnd


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
    (`Run.interrupted`); a second one changes nothing. Raises `ConfigurationError`, `DataError`, `UsageError` before
    anything is written, and `TrainingError` when training cannot go on; its text says where the best state so far is.
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
        self.notes = notes(self.device.type)
        self.cache = cache_folder()
        checkpoint = find_checkpoint(experiment.encoder)
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint)
        check_encoder(experiment, read_architecture(checkpoint))
        self.staged = StagedModel(experiment, checkpoint, self.device)
        self.data = read_tasks(experiment, Path.cwd(), self.cache)
        self.check = report_on(experiment, self.data, self.tokenizer, self.cache)
        self.labels = {name: data.labels for name, data in self.data.items()}
        self.staged.make(self.labels)
        self.stages: list[StageRecord] = []
        self.frozen: list[dict[str, Any]] = []
        self.notices: list[dict[str, Any]] = []
        self.interrupts = Interrupts()
        self.folder = new_run_folder(run_dir, experiment.name)
        self.files = RunFiles(self.folder)

    def run(self) -> Run:
        """All stages, then the model and its evaluation."""
        self.files.write_experiment(self.experiment)
        self.files.write_json(CHECK, self.check.to_json())
        self.listen(RunBegin(self.folder, self.check, self.notes))
        with self.interrupts:
            return self._finish(interrupted=self._train())

    def _train(self) -> bool:
        """All stages, then the best state; whether Ctrl-C ended them early."""
        current: StageRun | None = None
        try:
            with self.interrupts.allowed():
                for number in range(len(self.experiment.stages)):
                    current = self._stage(number)
                    for event in current.events():
                        self._record(event)
                    self._keep_stage(number)
        except KeyboardInterrupt:
            if current is not None:
                current.restore()
            return True
        except TrainingError as error:
            assert current is not None
            worth = current.restore() or current.stage != self.experiment.stages[0]
            raise TrainingError(f"{error}; {self._keep_failed(str(error), worth)}") from None
        return False

    def _keep_stage(self, number: int) -> None:
        """The model after a stage; that after the last one is the run's."""
        stage = self.experiment.stages[number]
        if stage != self.experiment.stages[-1]:
            dtype = pick_dtype(stage.precision, self.device)
            facts = {**self._facts(), "precision": str(dtype).removeprefix("torch."), "stage": stage.name}
            self._write_model(stage_folder(self.folder, stage.name), facts)

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
                pad_id=int(self.staged.encoder.architecture.get("pad_token_id") or 0),
                cache=self.cache,
            )
        return found

    def _stage(self, number: int) -> StageRun:
        stage = self.experiment.stages[number]
        entry_counts = self.staged.begin(number, self.folder)
        self.stages.append(StageRecord(self.experiment, number))
        names = self.experiment.stage_tasks(stage)
        train, dev = self._examples("train", names), self._examples("dev", names)
        dtype = pick_dtype(stage.precision, self.device)
        if self.experiment.runtime.frozen_states == "auto" and encoding_of(self.experiment, number) == "kept":
            train, dev = self._with_states(stage, train, dev, dtype)
        tasks = self.experiment.tasks
        evaluate = EpochEvaluation(dev, train, tasks, seed=self.experiment.seed, dtype=dtype)
        return StageRun(
            model=self.staged.model,
            stage=stage,
            examples=train,
            facts={name: TaskFacts(len(part), tasks[name].loss_weight) for name, part in train.items()},
            evaluate=evaluate,
            seed=self.experiment.seed,
            dtype=dtype,
            accelerator=_accelerator(self.device),
            regularisers=build_regularisers(stage.regularisers, depth=self.staged.encoder.depth),
            entry_counts=entry_counts,
        )

    def _with_states(
        self, stage: Stage, train: dict[str, Examples], dev: dict[str, Examples], dtype: torch.dtype
    ) -> tuple[dict[str, Examples], dict[str, Examples]]:
        """The examples of a stage with the states of the encoder, which it does not train."""
        trunks = self.experiment.trunks
        needs = {name: trunk_options(name, self.data[name].task, trunks).needs for name in train}
        together = len(train) if stage.every_task else 1
        steps = stage.stop.max_steps
        most = None if steps is None else steps * stage.accumulate * together * stage.batch_size
        keeper = StateKeeper(self.staged.encoder, dtype, self.cache, stage.name, self._hear_states)
        train, dev = keeper.give([train, dev], needs, at_most=most)
        return train, dev

    def _hear_states(self, event: Encoding | FrozenStates) -> None:
        if isinstance(event, FrozenStates):
            self.frozen.append(asdict(event))
        self.listen(event)

    def _record(self, event: StageEvent) -> None:
        if isinstance(event, StageEpoch):
            self.files.add_metrics(metrics_line(event))
        if isinstance(event, Notice):
            self.notices.append(asdict(event))
        self.stages[-1].take(event)
        self.listen(event)

    def _finish(self, *, interrupted: bool) -> Run:
        """The model, then its evaluation, which Ctrl-C may end."""
        facts = self._facts(interrupted=interrupted)
        self._write_model(self.folder / MODEL, facts)
        scores: Scores | None = None
        unknown: dict[str, str] = {}
        try:
            if not interrupted:
                with self.interrupts.allowed():
                    scores, unknown = self._evaluate()
        except KeyboardInterrupt:
            interrupted, scores = True, None
        if scores is not None:
            self.files.write_json(EVALUATION, scores.to_json())
        self.files.write_json(STATE, {**facts, "interrupted": interrupted})
        run = Run(self.folder, self.experiment, None if scores is None else scores.to_json(), interrupted)
        self.listen(RunEnd(run, scores, unknown))
        return run

    def _keep_failed(self, failure: str, worth: bool) -> str:
        """Leave what a failed run has: `run.json` and, if it is worth it, the model. Says where the model is."""
        facts = self._facts(failure=failure)
        if worth:
            self._write_model(self.folder / MODEL, facts)
        self.files.write_json(STATE, facts)
        if worth:
            return f"the best model before that is in {self.folder / MODEL}"
        return "no model was worth keeping: it came before the first evaluation"

    def _evaluate(self) -> tuple[Scores, dict[str, str]]:
        answers = answers_of(
            self.staged.model, self._examples("dev", self.data), self.experiment.tasks, dtype=self._dtype
        )
        return score_tasks(answers, seed=self.experiment.seed), undefined(answers)

    def _facts(self, *, interrupted: bool = False, failure: str | None = None) -> dict[str, Any]:
        return {
            "interrupted": interrupted,
            "failure": failure,
            "device": str(self.device),
            "threads": self.threads,
            "precision": str(self._dtype).removeprefix("torch."),
            "stages": [stage.to_json() for stage in self.stages],
            "frozen": self.frozen,
            "notices": self.notices,
            **machine(self.device.type),
        }

    @property
    def _dtype(self) -> torch.dtype:
        return pick_dtype(self.experiment.stages[-1].precision, self.device)

    def _write_model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        provenance = {
            **facts,
            "experiment": self.experiment.name,
            "seed": self.experiment.seed,
            "data": {name: _fingerprints(data) for name, data in self.data.items()},
        }
        write_model_folder(
            folder,
            self.staged.model,
            self.staged.config(),
            self.labels,
            tokenizer=self.tokenizer.to_str(pretty=False),
            provenance=provenance,
        )


def _accelerator(device: torch.device) -> Accelerator:
    """An accelerator of this very device: by itself it takes the current GPU."""
    if device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu")


def _fingerprints(data: TaskData) -> dict[str, Any]:
    return {
        split: {"rows": len(part), "content": part.table.source.fingerprint()} for split, part in data.splits.items()
    }
