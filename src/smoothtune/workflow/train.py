"""Trains an experiment from start to end, or goes on with a run that was ended. Prints nothing: whoever listens is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from smoothtune.config.experiment import Experiment
from smoothtune.config.loading import Loaded, load
from smoothtune.errors import UsageError
from smoothtune.runtime.processes import Processes, together
from smoothtune.runtime.signals import terminable
from smoothtune.system import check_locks
from smoothtune.workflow.earlier import as_of_run, read_earlier
from smoothtune.workflow.events import Event, RunBegin, RunEnd
from smoothtune.workflow.identity import check_kinds, configuration_of
from smoothtune.workflow.material import Material
from smoothtune.workflow.overwriting import check_run_folder
from smoothtune.workflow.paths import absolute, moved
from smoothtune.workflow.run import (
    EXPERIMENT,
    Run,
    check_free,
    check_own,
    finished_run,
    new_run_folder,
    read_experiment,
)
from smoothtune.workflow.run_lock import RunLock
from smoothtune.workflow.training_run import TrainingRun

__all__ = ["Event", "RunBegin", "RunEnd", "resume", "train"]


def _nobody(event: Event) -> None:
    return None


def train(
    experiment: str | Path | Mapping[str, Any] | Experiment,
    *,
    data_dir: str | Path | None = None,
    run_dir: str | Path | None = None,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    resume: bool = False,
    allow: Collection[str] = (),
    listen: Callable[[Event], None] = _nobody,
) -> Run:
    """Train an experiment (TOML path, packaged name, table or `Experiment`) and return its run.

    `listen` is told of everything that happens. Ctrl-C ends the run after the step under way, with a checkpoint and the best
    state so far as its model (`Run.interrupted`); a second one ends it at once, without a checkpoint. With `resume` a run that
    `run_dir` already holds goes on, as with the function `resume`; where there is none, one begins. Raises
    `ConfigurationError`, `DataError`, `UsageError` before anything is written, and `TrainingError` when training cannot go on;
    its text says where the best state so far is.

    Under `torchrun` or `accelerate launch` all processes call this and get the run; the first one writes and tells.
    """
    with together() as processes:
        with processes.agreeing():
            allowed = check_kinds(allow)
            loaded = load(experiment, overrides=overrides, data_dir=data_dir, seed=seed)
            wanted = absolute(loaded.experiment, loaded.base)
            if resume and run_dir is None:
                raise UsageError("--resume: give the folder of the run with --run-dir")
            if not resume and allowed:
                raise UsageError("--allow: is for runs that go on; give --resume as well")
            goes_on = resume and (Path(str(run_dir)) / EXPERIMENT).exists()
        if processes.any(goes_on)[0]:
            return _go_on(Path(str(run_dir)), wanted, allowed, listen, processes)
        with processes.agreeing():
            check_locks()
            if processes.is_main:
                check_run_folder(Path("runs" if run_dir is None else run_dir), wanted)
            if processes.is_main and run_dir is not None:
                check_free(Path(run_dir), empty=resume)
        with _before_training(processes):
            material = Material(wanted, listen=listen if processes.is_main else _nobody)
        folder = Path()
        with processes.agreeing():
            if processes.is_main:
                folder = new_run_folder(run_dir, wanted.name, empty=resume)
        folder = Path(processes.of_main(str(folder)))
        with processes.agreeing():
            if not folder.is_dir():
                raise UsageError(
                    f"{folder}: process {processes.rank} finds no such folder; give all a --run-dir they share"
                )
        with _locked(folder, processes):
            with _before_training(processes):
                run = TrainingRun(material, folder, listen)
            return run.run()


def chosen_experiment(loaded: Loaded, *, listen: Callable[[Event], None] = _nobody) -> Experiment:
    """The experiment with everything that its recipe chooses from the data; nothing is written but caches.

    Cost: that of the recipe, with fine-tuning in cross-validation where dev is small. Raises as `train` does.
    """
    with terminable("ended by SIGTERM while the recipe chose; give the same command again"):
        return Material(absolute(loaded.experiment, loaded.base), listen=listen).experiment


def resume(run_dir: str | Path, *, allow: Collection[str] = (), listen: Callable[[Event], None] = _nobody) -> Run:
    """Go on with the run of a folder from its last whole checkpoint, to the bits it would have reached without the stop.

    A run without a checkpoint starts over; one that is finished is returned as it is. `allow` names kinds of difference
    (`data`, `configuration`, `encoder`, `device`, `format`) to go on with all the same: the run then tells that it is no
    longer exact. Raises `ModelFileError` where there is no run, and `UsageError` for a difference that is not allowed,
    or when another process is at work on the run.
    """
    with together() as processes:
        with processes.agreeing():
            allowed = check_kinds(allow)
        return _go_on(Path(run_dir), None, allowed, listen, processes)


def _go_on(
    folder: Path,
    wanted: Experiment | None,
    allow: Collection[str],
    listen: Callable[[Event], None],
    processes: Processes,
) -> Run:
    with processes.agreeing():
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such run folder")
    with _locked(folder, processes):
        with processes.agreeing():
            check_own(folder)
            done = _finished(folder, wanted)
            earlier = read_earlier(folder, wanted, allow)
            if done is None:
                _check_places(folder, earlier.experiment)
        last = processes.of_main(str(earlier.folder))
        with processes.agreeing():
            if str(earlier.folder) != last:
                raise UsageError(
                    f"{folder}: process {processes.rank} does not find {last} whole; give all the same folder"
                )
        if done is not None:
            return done
        threads = None if earlier.state is None else earlier.state.threads
        with _before_training(processes):
            run = TrainingRun(Material(earlier.experiment, threads), folder, listen, earlier)
        return run.run()


def _before_training(processes: Processes) -> AbstractContextManager[None]:
    """SIGTERM ends the preparations in one line; of several processes the launcher says so, since they wait for each other."""
    if not processes.alone:
        return nullcontext()
    return terminable("ended by SIGTERM before the first step; give the same command again")


def _finished(folder: Path, wanted: Experiment | None) -> Run | None:
    """The run of a folder if it came to its end. Raises `UsageError` where another experiment is `wanted` of it."""
    own = read_experiment(folder)
    done = finished_run(folder, own)
    if done is None or wanted is None:
        return done
    if configuration_of(own) != configuration_of(as_of_run(folder, own, wanted)):
        raise UsageError(f"{folder}: the run is finished, and its experiment is another one; give another --run-dir")
    return done


def _check_places(folder: Path, experiment: Experiment) -> None:
    """Raise `UsageError` where files that an unfinished run needs are not there."""
    gone = moved(experiment)
    if gone:
        told = ", ".join(f"{key} = {path}" for key, path in gone.items())
        raise UsageError(
            f"{folder}: not there any more: {told}; put that back, or write its new place into {folder / EXPERIMENT}: what is "
            "in it is compared, not where it is"
        )


@contextmanager
def _locked(folder: Path, processes: Processes) -> Iterator[None]:
    """The first process holds the lock for all; they leave it together, where all goes well."""
    with ExitStack() as held:
        with processes.agreeing():
            if processes.is_main:
                held.enter_context(RunLock(folder))
        yield
        processes.barrier()
