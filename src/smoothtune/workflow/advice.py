"""What a run tells its user to do next, with commands ready for a shell. Knows nothing of how a run comes to need it."""

from __future__ import annotations

import shlex
from pathlib import Path

from smoothtune.runtime.processes import launched
from smoothtune.training.checkpoint import Checkpoints
from smoothtune.workflow.run import CHECKPOINTS, EXPERIMENT


def going_on(run: Path, command: str) -> str:
    """The last checkpoint of `run`, and the `command` to go on from it."""
    written = Checkpoints(run / CHECKPOINTS).numbered()
    if written:
        return f"the last checkpoint is {written[-1]}; go on with: {command}"
    return f"there is no checkpoint yet; start over with: {command}"


def resume_command(run: Path) -> str:
    """Go on with `run`, started as this process was."""
    return f"{launched().launcher} resume {shlex.quote(str(run))}"


def skipping_command(run: Path, stage: int) -> str:
    """Go on with `run`, leaving out batches of stage number `stage` that are not finite."""
    file, folder = (shlex.quote(str(path)) for path in (run / EXPERIMENT, run))
    return (
        f"{launched().launcher} train {file} --run-dir {folder} --resume "
        f"--set stages.{stage}.on_nan=skip --allow configuration"
    )
