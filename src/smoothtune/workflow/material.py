"""What a run trains on: data, tokenizer and model, read and checked before anything is written.

Every process of a run has all of it. Knows nothing of what a run folder holds, nor of when what happens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer
from torch import Tensor

from smoothtune import cache
from smoothtune.bounded import parse_toml
from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.config.loading import to_toml, validated
from smoothtune.config.stage import Stage
from smoothtune.data.batching import Examples
from smoothtune.data.class_weights import class_weights_of
from smoothtune.data.task_data import TaskData, make_examples, read_tasks, with_dev_rows
from smoothtune.data.tokenising import load_tokenizer
from smoothtune.evaluation.largest_class import largest_class
from smoothtune.files import cache_folder
from smoothtune.nn.folder import write_model_folder
from smoothtune.nn.pretrained import find_checkpoint, load_encoder, read_architecture
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts
from smoothtune.runtime import processes
from smoothtune.runtime.device import keep_memory_mapped, pick_device, pick_dtype, set_threads
from smoothtune.runtime.kernels.building import notes
from smoothtune.runtime.processes import ALONE, computing_with
from smoothtune.training.stage import StageRun
from smoothtune.workflow.check import check_encoder, encoding_of, report_on
from smoothtune.workflow.evaluation import Baselines, Evaluation, evaluation_of
from smoothtune.workflow.frozen import Encoding, FrozenStates, StateKeeper, content_of
from smoothtune.workflow.identity import Identity, check_alike, data_of, identity_of
from smoothtune.workflow.probe_baseline import NAME as PROBE_BASELINE
from smoothtune.workflow.probe_baseline import probe_answers, probe_weights
from smoothtune.workflow.probe_fit import ProbeRows, probe_rows, set_probes
from smoothtune.workflow.recipe import Choosing, Recipe, RecipeChosen, choose_recipe
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.scoring import EpochEvaluation, answers_from, logits_of
from smoothtune.workflow.staged_model import StagedModel
from smoothtune.workflow.temperatures import set_temperatures, tasks_fitted_on_dev, temperatures_of


@dataclass(frozen=True, slots=True)
class Begun:
    """A stage about to run, and the state that it goes on from, if an earlier process began it."""

    number: int
    run: Path
    listen: Callable[[Encoding | FrozenStates], None]
    goes_on_from: Mapping[str, Any] | None = None


class Material:
    """Reads and checks everything that `experiment` names. `threads` are used where the experiment names no number.

    Raises `ConfigurationError`, `DataError`, `ModelFileError` or `UsageError`.
    """

    def __init__(
        self,
        experiment: Experiment,
        threads: int | None = None,
        listen: Callable[[Choosing | RecipeChosen], None] = lambda event: None,
    ) -> None:
        self.experiment = experiment
        self.recipe: Recipe | None = None
        self.probe: dict[str, Tensor] | None = None  # that a stage began with, around the checkpoint's encoder
        self.staged: StagedModel
        self._together = processes.current()
        self._cache = cache_folder()
        self._reports = len(cache.reports())
        with self._together.agreeing():
            self._prepare(threads)
        with self._together.in_turn():
            self.data = read_tasks(experiment, Path.cwd(), self._cache)
            self.check = report_on(experiment, self.data, self._tokenizer, self._cache)
        self._labels = {name: data.labels for name, data in self.data.items()}
        if experiment.recipe == "auto":
            self._choose_recipe(listen)
        self.staged.make(self._labels)

    def _choose_recipe(self, listen: Callable[[Choosing | RecipeChosen], None]) -> None:
        """Take the experiment that the recipe makes of this one; the first process decides."""
        inputs = RecipeInputs(
            self.experiment, self.data, self._tokenizer, self.staged.encoder, self.device, self.dtype, self._accelerator,
            self._cache, self._together.world,
        )  # fmt: skip
        with self._together.agreeing(), computing_with(ALONE):
            if self._together.is_main:
                self.recipe = choose_recipe(inputs, listen)
                listen(RecipeChosen(self.recipe.sentences))
                self.experiment = self.recipe.experiment
        if not self._together.alone:
            own = to_toml(self.experiment) if self._together.is_main else ""
            table = parse_toml(self._together.of_main(own))
            self.experiment = validated(table, "the experiment that the recipe chose:")
        self.data = {name: replace(data, task=self.experiment.tasks[name]) for name, data in self.data.items()}
        self.staged = StagedModel(self.experiment, self._checkpoint, self.device, self.staged.encoder)

    def _prepare(self, threads: int | None) -> None:
        """All but the data."""
        experiment = self.experiment
        self.device = pick_device(experiment.runtime.device, self._together)
        self._accelerator = _accelerator(self.device)
        asked = threads if experiment.runtime.threads is None else experiment.runtime.threads
        self.threads = set_threads(asked, self._together)
        keep_memory_mapped()
        self.notes = notes(self.device.type)
        self._checkpoint = find_checkpoint(experiment.encoder)
        self._tokenizer: Tokenizer = load_tokenizer(self._checkpoint, experiment.encoder.special_tokens)
        check_encoder(experiment, read_architecture(self._checkpoint))
        self.staged = StagedModel(experiment, self._checkpoint, self.device)

    def identity(self) -> Identity:
        """What must be equal for a run to go on, and in all its processes. To be asked before any training."""
        tokenizer = hashlib.sha256(self._tokenizer.to_str(pretty=False).encode()).hexdigest()
        encoder = {"content": content_of(self.staged.encoder), "tokenizer": tokenizer}
        found = identity_of(self.experiment, self.data, encoder, self.device, self._together.world)
        if not self._together.alone:
            first = json.loads(self._together.of_main(json.dumps(found)))
            with self._together.agreeing():
                check_alike(first, json.loads(json.dumps(found)), self._together.rank)
            processes.connect(self.device)
        return found

    def stage_run(self, begun: Begun) -> StageRun:
        """A stage ready to run; the model is made what the stage begins with."""
        number, stage = begun.number, self.experiment.stages[begun.number]
        entry_counts = self.staged.begin(number, begun.run) or stage.init == "probe"
        names = self.experiment.stage_tasks(stage)
        with self._together.in_turn():
            train, dev = self._examples("train", names), self._examples("dev", names)
        dtype = pick_dtype(stage.precision, self.device)
        if stage.init == "probe" and begun.goes_on_from is None:
            self._set_probes(train, dtype)
            if self.experiment.source(number) is None:
                self.probe = probe_weights(self.staged.model, train)
        keeps = stage.stop.max_steps != 0 and encoding_of(self.experiment, number) == "kept"
        if self.experiment.runtime.frozen_states == "auto" and keeps:
            train, dev = self._with_states(stage, train, dev, begun.listen)
        tasks = self.experiment.tasks
        return StageRun(
            model=self.staged.model,
            stage=stage,
            examples=train,
            facts={name: TaskFacts(len(part), tasks[name].loss_weight) for name, part in train.items()},
            evaluate=EpochEvaluation(
                dev, train, tasks, seed=self.experiment.seed, dtype=dtype, with_loss=stage.init == "probe"
            ),
            seed=self.experiment.seed,
            dtype=dtype,
            accelerator=self._accelerator,
            regularisers=build_regularisers(stage.regularisers, depth=self.staged.encoder.depth),
            entry_counts=entry_counts,
            goes_on_from=begun.goes_on_from,
            class_weights=self._class_weights(names),
        )

    def _set_probes(self, train: Mapping[str, Examples], dtype: torch.dtype) -> None:
        """Let the outputs of the stage's tasks begin as linear probes."""
        rows = {name: probe_rows(examples, self.data[name]) for name, examples in train.items()}
        set_probes(self.staged.model, rows, dtype=dtype, seed=self.experiment.seed)

    def refit(self, tasks: Iterable[str], temperatures: Mapping[str, float]) -> tuple[str, ...]:
        """Fit the probes of those `tasks` that hold out dev rows again, on these too; which ones they are.

        They answer at their `temperatures` as before.
        """
        held_out = [name for name in tasks if not isinstance(self.data[name].task.dev, str)]
        rows = {name: self._probe_rows(with_dev_rows(self.data[name])) for name in held_out}
        if rows:
            set_probes(self.staged.model, rows, dtype=self.dtype, seed=self.experiment.seed)
            set_temperatures(self.staged.model, {name: temperatures[name] for name in rows if name in temperatures})
        return tuple(rows)

    def _probe_rows(self, data: TaskData) -> ProbeRows:
        with self._together.in_turn():
            examples = self._examples_of(data, "train")
        return probe_rows(examples, data)

    def set_temperatures(self, probes: tuple[str, ...]) -> dict[str, float]:
        """Fold the temperatures of the tasks but `probes` into the trained model; they are returned. The first process fits."""
        model = self.staged.model
        tasks = {name: task for name, task in self.experiment.tasks.items() if name not in probes}
        with self._together.in_turn():
            dev = self._examples("dev", tasks_fitted_on_dev(tasks))
        own = temperatures_of(tasks, logits_of(model, dev, dtype=self.dtype), dev)
        temperatures: dict[str, float] = json.loads(self._together.of_main(json.dumps(own)))
        set_temperatures(model, temperatures)
        return temperatures

    def evaluate(
        self, probe_of: Path | None = None, probes: Collection[str] = ()
    ) -> tuple[Evaluation, dict[str, np.ndarray]]:
        """The evaluation of the model on dev, and its logits by task.

        Tasks that are no `probes` stand beside the probe that the run in `probe_of` began with.
        """
        with self._together.in_turn():
            dev = self._examples("dev", self.data)
        logits = logits_of(self.staged.model, dev, dtype=self.dtype)
        answers = answers_from(logits, dev, self.experiment.tasks)
        baselines: Baselines | None = None
        if probe_of is not None:
            encoder = load_encoder(self._checkpoint, self.experiment.encoder).to(self.device)
            tuned = {name: part for name, part in dev.items() if name not in probes}
            answered = probe_answers(probe_of, self.experiment, encoder, self._labels, tuned, self.dtype)
            baselines = {PROBE_BASELINE: answered}
        return evaluation_of(answers, self._labels, largest=self.largest_classes(), baselines=baselines), logits

    def cache_reports(self) -> list[str]:
        """What was damaged in the cache, or went, since this was made; all of it was made again."""
        return list(cache.reports()[self._reports :])

    def largest_classes(self) -> dict[str, str]:
        """The commonest label of the training rows, by task; a regression has none."""
        return {
            name: data.labels[largest_class(data.targets("train"))]
            for name, data in self.data.items()
            if data.labels is not None
        }

    def write_model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """The model folder; `facts` go into its provenance beside experiment, seed and data. Raises `WriteError`."""
        provenance = {
            **facts,
            "experiment": self.experiment.name,
            "seed": self.experiment.seed,
            "data": {name: _splits(data_of(data)) for name, data in self.data.items()},
            "largest_class": self.largest_classes(),
        }
        write_model_folder(
            folder,
            self.staged.model,
            self.staged.config(),
            self._labels,
            tokenizer=self._tokenizer.to_str(pretty=False),
            provenance=provenance,
        )

    @property
    def dtype(self) -> torch.dtype:
        """That of the last stage, in which the run's model is evaluated."""
        return pick_dtype(self.experiment.stages[-1].precision, self.device)

    def _class_weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """By task, for those that have any; the same in all stages and processes."""
        weights = {}
        for name in names:
            data = self.data[name]
            of_classes = class_weights_of(data.task, data.labels, data.targets("train"))
            if of_classes is not None:
                weights[name] = torch.from_numpy(of_classes)
        return weights

    def _examples(self, split: str, names: Iterable[str]) -> dict[str, Examples]:
        return {name: self._examples_of(self.data[name], split) for name in names}

    def _examples_of(self, data: TaskData, split: str) -> Examples:
        return make_examples(
            data,
            data.splits[split],
            self._tokenizer,
            reads=trunk_options(data.name, data.task, self.experiment.trunks).input,
            max_length=self.experiment.encoder.max_length,
            pad_id=int(self.staged.encoder.architecture.get("pad_token_id") or 0),
            cache=self._cache,
        )

    def _with_states(
        self,
        stage: Stage,
        train: dict[str, Examples],
        dev: dict[str, Examples],
        listen: Callable[[Encoding | FrozenStates], None],
    ) -> tuple[dict[str, Examples], dict[str, Examples]]:
        """The examples of a stage with the states of the encoder, which it does not train."""
        trunks, dtype = self.experiment.trunks, pick_dtype(stage.precision, self.device)
        options = {name: trunk_options(name, self.data[name].task, trunks) for name in train}
        needs = {name: (option.needs, option.reads) for name, option in options.items()}
        together = len(train) if stage.every_task else 1
        steps = stage.stop.max_steps
        batch = stage.batch_size * self._together.world
        most = None if steps is None else steps * stage.accumulate * together * batch
        told: list[FrozenStates] = []

        def hear(event: Encoding | FrozenStates) -> None:
            if isinstance(event, FrozenStates):
                told.append(event)
            else:
                listen(event)

        keeper = StateKeeper(self.staged.encoder, dtype, self._cache, stage.name, hear)
        with self._together.in_turn():
            given = keeper.give([train, dev], needs, at_most=most)
        (lacking,) = self._together.any(told[0].obstacle is not None)  # then all encode at every step
        if lacking and told[0].obstacle is None:
            told[0] = replace(told[0], encoded=0, obstacle="another process of the run cannot keep them")
        listen(told[0])
        return (train, dev) if lacking else (given[0], given[1])


def _accelerator(device: torch.device) -> Accelerator:
    """An accelerator of this very device: by itself it takes the current GPU."""
    if device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu")


def _splits(data: Mapping[str, Any]) -> dict[str, Any]:
    return {split: found for split, found in data.items() if split != "labels"}
