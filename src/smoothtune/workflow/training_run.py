"""One training run from its first step, or from a checkpoint, to its model: who is told what, and what is written when.

Every process of a run trains; the first one tells and writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from smoothtune.errors import (
    ElsewhereError,
    NotFiniteError,
    OneProcessError,
    TerminatedError,
    TrainingError,
)
from smoothtune.files import WriteError
from smoothtune.nn.folder import read_json
from smoothtune.runtime import processes
from smoothtune.runtime.device import pick_dtype
from smoothtune.runtime.signals import Interrupts
from smoothtune.training.checkpoint import Checkpoints
from smoothtune.training.loop import StepReport
from smoothtune.training.stage import StageRun
from smoothtune.training.stage_events import StageBegin, StageEnd, StageEpoch, StageEvent
from smoothtune.training.state import State
from smoothtune.workflow.advice import going_on, resume_command, skipping_command
from smoothtune.workflow.dev_predictions import remove_dev_predictions, write_dev_predictions
from smoothtune.workflow.earlier import Earlier
from smoothtune.workflow.evaluation import Evaluation
from smoothtune.workflow.events import Event, Interrupting, Resumed, RunBegin, RunEnd
from smoothtune.workflow.final_model import FinalModel, check_cache
from smoothtune.workflow.frozen import Encoding, FrozenStates
from smoothtune.workflow.kept_stages import check_kept, sums_of
from smoothtune.workflow.material import Begun, Material
from smoothtune.workflow.metrics_line import metrics_line
from smoothtune.workflow.probe_baseline import write_probe
from smoothtune.workflow.run import (
    CHECK,
    CHECKPOINTS,
    EVALUATION,
    EXPERIMENT,
    MODEL,
    PROBE,
    RECIPE,
    STAGES,
    STATE,
    Run,
    RunFiles,
    machine,
)
from smoothtune.workflow.saving import Saver
from smoothtune.workflow.scoring import undefined
from smoothtune.workflow.stage_folders import stage_folder
from smoothtune.workflow.stages import StageRecord
from smoothtune.workflow.told import Told


def _nobody(event: Event) -> None:
    return None


class TrainingRun:
    """`run()` trains in `folder`, which is there and locked; with `earlier` it goes on from what another process left."""

    def __init__(
        self, material: Material, folder: Path, listen: Callable[[Event], None], earlier: Earlier | None = None
    ) -> None:
        self.material = material
        self.experiment = material.experiment
        self.folder = folder
        self.files = RunFiles(folder)
        self._together = processes.current()
        self._writes = self._together.is_main
        self.listen = listen if self._writes else _nobody
        self._earlier = earlier
        self._identity = material.identity()
        self._checkpoints = Checkpoints(folder / CHECKPOINTS)
        self._saver = Saver(self._checkpoints, self.experiment.runtime.checkpoint_every, self._state)
        self._interrupts = Interrupts(self._interrupting)
        self._recipe = self._read_recipe()
        self._told = Told(recipe=self._recipe)
        self._current: StageRun | None = None
        self._trained = False  # the last stage has ended: there is no step to write a checkpoint after

    def run(self) -> Run:
        """All stages, then the model and its evaluation."""
        try:
            with self._interrupts:
                first, goes_on_from = self._start()
                return self._finish(interrupted=self._train(first, goes_on_from))
        except (WriteError, TrainingError) as error:
            if not self._writes and not isinstance(error, OneProcessError):
                raise ElsewhereError(str(error), error.exit_code) from None
            if self._writes and isinstance(error, WriteError):
                self._note_failure(str(error))
            raise type(error)(f"{error}; {self._how_to_go_on(isinstance(error, NotFiniteError))}") from None

    def _note_failure(self, failure: str) -> None:
        """Say in `run.json` why the run ended, where there is a run to resume and room to say so."""
        if (self.folder / EXPERIMENT).is_file():
            with suppress(WriteError):
                self._write_state(self._told.facts(self.material, failure=failure))

    def _write_state(self, facts: Mapping[str, Any]) -> None:
        """`run.json`: the facts, and what became of the cache up to now."""
        self.files.write_json(STATE, {**facts, "cache": self.material.cache_reports()})

    def _start(self) -> tuple[int, Any]:
        """The stage to begin with, and the state to begin it from."""
        earlier = self._earlier
        if earlier is None or earlier.state is None:
            with self._together.agreeing():
                if self._writes:
                    self._begin(earlier)
            return 0, None
        state = earlier.state
        with self._together.agreeing():
            differs = earlier.compare(self._identity, machine(self.material.device.type))
            check_kept(self.folder, self.experiment, state.told)
        step = earlier.stage["progress"]["step"]
        name = self.experiment.stages[state.stage].name
        now = {"date": machine(self.material.device.type)["date"], "stage": name, "step": step, "differs": differs}
        frozen = [record for record in state.frozen if record.get("stage") != name]  # the stage tells of them again
        self._told = Told(state.told, [], frozen, state.notices, [*state.resumed, now], self._recipe)
        self.listen(RunBegin(self.folder, self.material.check, self.material.notes))
        self.listen(
            Resumed(self.folder, earlier.folder, name, step, tuple(earlier.damaged), tuple(differs))
        )  # fmt: skip
        return state.stage, earlier.stage

    def _take_back(self) -> None:
        """Make the folder what it was at the checkpoint, once the stage has taken its state: till then nothing changes."""
        earlier = self._earlier
        assert earlier is not None
        assert earlier.state is not None
        self.files.remove_leftovers()
        self.files.cut_metrics(earlier.state.metrics)
        self._checkpoints.drop_after(earlier.folder)
        self.files.write_experiment(self.experiment)

    def _begin(self, earlier: Earlier | None) -> None:
        if earlier is not None:
            self.files.remove_leftovers()
            self._clear()
            first = self.experiment.stages[0].name
            self.listen(Resumed(self.folder, None, first, 0, damaged=tuple(earlier.damaged)))
        self.files.write_json(CHECK, self.material.check.to_json())
        if self._recipe is not None:
            self.files.write_json(RECIPE, self._recipe)
        self.files.write_experiment(self.experiment)  # from here on there is a run to resume
        self.listen(RunBegin(self.folder, self.material.check, self.material.notes))

    def _read_recipe(self) -> dict[str, Any] | None:
        """What chose the stages: in this process, or in the one that began the run."""
        if self.material.recipe is not None:
            return self.material.recipe.record
        path = self.folder / RECIPE
        return read_json(path) if path.is_file() else None

    def _clear(self) -> None:
        """Take away what a process left that came to no checkpoint."""
        self._checkpoints.drop_after(None)
        self.files.remove_results()
        remove_dev_predictions(self.folder)
        for name in (STAGES, PROBE):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _train(self, first: int, goes_on_from: Any) -> bool:
        """The stages from `first`, then the best state; whether Ctrl-C ended them early."""
        try:
            with self._interruptible(second=True):
                for number in range(first, len(self.experiment.stages)):
                    self._run_stage(number, goes_on_from if number == first else None)
        except KeyboardInterrupt:
            if self._current is not None:
                self._current.restore()
            return True
        except TrainingError as error:
            check_cache(self.folder)  # before advice on rates, which would be no help
            if not self._writes:
                raise
            raise type(error)(f"{error}; {self._keep_failed(str(error))}") from None
        return False

    def _interruptible(self, *, second: bool = False) -> AbstractContextManager[None]:
        """Ctrl-C, or the second one, interrupts one process wherever it is, and several after a step: they leave together."""
        return self._interrupts.allowed(second=second) if self._together.alone else nullcontext()

    def _run_stage(self, number: int, goes_on_from: Any) -> None:
        self._current = None
        current = self.material.stage_run(Begun(number, self.folder, self._hear_states, goes_on_from))
        if self._writes and self.material.probe is not None and goes_on_from is None:
            write_probe(self.folder, self.material.probe)
        record = StageRecord(self.experiment, number)
        if goes_on_from is not None:
            before = goes_on_from["before"]
            record.before = None if before is None else current.evaluate.scores_of(before)
            record.train_seconds = goes_on_from["progress"]["seconds"]
        self._told.stages.append(record)
        self._current = current
        for event in current.events():
            if goes_on_from is not None and isinstance(event, StageBegin):
                with self._together.agreeing():
                    if self._writes:
                        self._take_back()
            self._record(event)
            if self._writes:
                self._saver.take(event)
            self._heed_signals(event)
        with self._together.agreeing():
            if self._writes:
                self._keep_stage(number)

    def _heed_signals(self, event: Any) -> None:
        """After a step or an epoch the state is one to go on from; while texts are encoded the last checkpoint must do.

        After a step or an epoch several processes learn of each other's signals.
        """
        whole, signals = isinstance(event, StepReport | StageEpoch), self._interrupts
        if whole:
            terminated, interrupted = self._together.any(signals.terminated, signals.pending)
        elif self._together.alone and isinstance(event, Encoding | FrozenStates):
            terminated, interrupted = signals.terminated, signals.pending
        else:
            return
        if whole and (terminated or interrupted):
            self._write_last()
        if terminated:
            with self._together.agreeing():
                if self._writes:
                    raise TerminatedError(f"{self.folder}: ended by SIGTERM; {self._how_to_go_on()}")
        if interrupted:
            raise KeyboardInterrupt

    def _interrupting(self) -> None:
        writes = not self.experiment.runtime.checkpoint_every.never and not self._trained
        self.listen(Interrupting(writes, self._together.alone))

    def _write_last(self) -> None:
        """A checkpoint of the step after which a signal ends the run."""
        with self._together.agreeing():
            if self._writes and not self.experiment.runtime.checkpoint_every.never:
                self._saver.write()

    def _keep_stage(self, number: int) -> None:
        """The model after a stage; that after the last one is the run's."""
        stage = self.experiment.stages[number]
        if number < len(self.experiment.stages) - 1:
            dtype = pick_dtype(stage.precision, self.material.device)
            facts = {
                **self._told.facts(self.material),
                "precision": str(dtype).removeprefix("torch."),
                "stage": stage.name,
            }
            folder = stage_folder(self.folder, stage.name)
            self.material.write_model(folder, facts)
            self._told.stages[-1].files = sums_of(folder)

    def _state(self) -> State:
        """What a checkpoint holds now."""
        assert self._current is not None
        run = self._told.run_state(self._identity, self.material, self.files.metrics_size())
        return run.with_stage(self._current.state_dict())

    def _hear_states(self, event: Encoding | FrozenStates) -> None:
        if isinstance(event, FrozenStates):
            self._told.take(event)
        self.listen(event)
        self._heed_signals(event)

    def _record(self, event: StageEvent) -> None:
        if isinstance(event, StageEpoch) and self._writes:
            self.files.add_metrics(metrics_line(event))
        self._told.take(event)
        self._trained = isinstance(event, StageEnd) and self._told.stages[-1].number == len(self.experiment.stages) - 1
        self.listen(event)

    def _finish(self, *, interrupted: bool) -> Run:
        """The model, then its evaluation, which Ctrl-C may end."""
        final = FinalModel(self.material, self.folder, self._told)
        facts = final.write(interrupted=interrupted)
        evaluation: Evaluation | None = None
        logits: dict[str, np.ndarray] = {}
        try:
            if not interrupted:
                with self._interruptible():
                    evaluation, logits = final.evaluate()
        except KeyboardInterrupt:
            interrupted, evaluation = True, None
        table = None if evaluation is None else evaluation.to_json()
        if evaluation is not None:
            facts |= final.refit(facts)
        with self._together.agreeing():
            if self._writes:
                self._write_end({**facts, "interrupted": interrupted}, table, logits)
        run = Run(self.folder, self.experiment, table, interrupted)
        if evaluation is None:
            self.listen(RunEnd(run, None, {}))
        else:
            self.listen(RunEnd(run, evaluation.scores, undefined(evaluation.answers)))
        return run

    def _write_end(
        self, facts: dict[str, Any], evaluation: dict[str, Any] | None, logits: dict[str, np.ndarray]
    ) -> None:
        if evaluation is not None:
            write_dev_predictions(self.folder, self.material.data, logits)
            self.files.write_json(EVALUATION, evaluation)
        self._write_state(facts)
        if not facts["interrupted"]:
            self._checkpoints.drop_after(None)  # the run is whole: nothing is left to go on with

    def _keep_failed(self, failure: str) -> str:
        """Leave what a failed run has: `run.json` and, if it is worth it, the model. Says where the model is."""
        current = self._current
        worth = current is not None and (current.restore() or current.stage != self.experiment.stages[0])
        facts = self._told.facts(self.material, failure=failure)
        if worth:
            self.material.write_model(self.folder / MODEL, facts)
        self._write_state(facts)
        if worth:
            return f"the best model before that is in {self.folder / MODEL}"
        return "no model was worth keeping: it came before the first evaluation"

    def _how_to_go_on(self, changed: bool = False) -> str:
        """The last checkpoint and a command; `changed` where the same steps would end in the same way."""
        return going_on(self.folder, self._changed() if changed else resume_command(self.folder))

    def _changed(self) -> str:
        names = [stage.name for stage in self.experiment.stages]
        number = 0 if self._current is None else names.index(self._current.stage.name)
        return f"{skipping_command(self.folder, number)} (the same steps would end in the same way)"
