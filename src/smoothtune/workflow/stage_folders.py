"""Where a run keeps the model after each of its stages. Knows nothing of how a stage trains, nor of how a model is read."""

from __future__ import annotations

from pathlib import Path

from smoothtune.config.experiment import Experiment
from smoothtune.config.problems import near
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn.folder import read_json
from smoothtune.workflow.run import EXPERIMENT, MODEL, STAGES, STATE, read_experiment


def stage_folder(run: Path, name: str) -> Path:
    """The model folder of a stage. The last stage has none: its model is that of the run."""
    return run / STAGES / name


def model_after(run: Path, experiment: Experiment, stage: str) -> Path:
    """The model folder of a run after `stage`. Raises `UsageError` for an unknown stage, or one that did not end."""
    names = [known.name for known in experiment.stages]
    if stage not in names:
        raise UsageError(
            f"--stage {stage}: this run has no such stage; its stages: {', '.join(names)}.{near(stage, names)}"
        )
    ended = [record["name"] for record in read_json(run / STATE).get("stages", []) if record["reason"] is not None]
    if stage not in ended:
        raise UsageError(
            f"--stage {stage}: this run ended before the stage did; leave it out for the best model it has"
        )
    return run / MODEL if stage == names[-1] else stage_folder(run, stage)


def model_of(run: Path, stage: str | None) -> Path:
    """The folder to load the model of `run` from, or that after `stage`, of which only a run folder knows.

    Raises `UsageError` as `model_after` does, `ModelFileError` where a stage is asked of what is no run.
    """
    return run if stage is None else model_after(run, experiment_of(run), stage)


def experiment_of(run: Path) -> Experiment:
    """The resolved experiment of a run. Raises `ModelFileError` for another folder; of one in a run, it says which."""
    inside = run.is_dir() and not (run / EXPERIMENT).exists()
    if inside and run.name == MODEL and (run.parent / EXPERIMENT).is_file():
        raise ModelFileError(f"{run}: is the model of a run, not the run's folder; give {run.parent}")
    if inside and run.parent.name == STAGES and (run.parent.parent / EXPERIMENT).is_file():
        raise ModelFileError(
            f"{run}: is the model after a stage, not the run's folder; give {run.parent.parent} --stage {run.name}"
        )
    return read_experiment(run)
