"""Where the data and the encoder of an experiment are, whatever folder a process is in."""

from __future__ import annotations

from pathlib import Path

from smoothtune.config.experiment import Experiment
from smoothtune.nn.pretrained import folder_on_disk


def absolute(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with paths that no longer depend on a folder: of data, in `base`; of the encoder, in the present one."""
    tasks = {}
    for name, task in experiment.tasks.items():
        sources = {
            split: _path(value, base)
            for split in ("train", "dev", "test")
            if isinstance(value := getattr(task, split), str)
        }
        tasks[name] = task.model_copy(update=sources)
    folder = folder_on_disk(experiment.encoder.name)
    name = experiment.encoder.name if folder is None else str(folder.absolute())
    encoder = experiment.encoder.model_copy(update={"name": name})
    return experiment.model_copy(update={"tasks": tasks, "encoder": encoder})


def moved(experiment: Experiment) -> dict[str, str]:
    """What an absolute experiment names by path and is not there, by key path."""
    named = {"encoder.name": experiment.encoder.name}
    for name, task in experiment.tasks.items():
        named |= {f"tasks.{name}.{split}": str(getattr(task, split)) for split in ("train", "dev", "test")}
    return {key: path for key, path in named.items() if path.startswith("/") and not Path(path).exists()}


def _path(text: str, base: Path) -> str:
    if text.startswith("packaged:"):
        return text
    if text.startswith("hf:"):
        local = text.removeprefix("hf:")
        return f"hf:{base / local}" if local.startswith(("./", "../")) else text
    try:
        return str(base / Path(text).expanduser())
    except RuntimeError:  # of an unknown user, or there is no home folder: whoever reads it says so
        return text
