"""Where the data of an experiment are, whatever folder a process is in."""

from __future__ import annotations

from pathlib import Path

from smoothtune.config.experiment import Experiment


def absolute(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with data paths that no longer depend on a folder."""
    tasks = {}
    for name, task in experiment.tasks.items():
        sources = {
            split: _path(value, base)
            for split in ("train", "dev", "test")
            if isinstance(value := getattr(task, split), str)
        }
        tasks[name] = task.model_copy(update=sources)
    return experiment.model_copy(update={"tasks": tasks})


def _path(text: str, base: Path) -> str:
    if text.startswith("packaged:"):
        return text
    if text.startswith("hf:"):
        local = text.removeprefix("hf:")
        return f"hf:{base / local}" if local.startswith(("./", "../")) else text
    return str(base / Path(text).expanduser())
