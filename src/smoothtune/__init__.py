"""smoothtune: one small text model for several labelled tasks, fine-tuned together from plain files.

`train(experiment) -> Run`, `resume(run_dir) -> Run`, `load(run_dir) -> Model`, `model.predict("task", texts)`.
Importing this loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from smoothtune.config.experiment import Experiment as Experiment
    from smoothtune.errors import SmoothtuneError as SmoothtuneError
    from smoothtune.inference.model import Model as Model
    from smoothtune.workflow.run import Run as Run
    from smoothtune.workflow.train import resume as resume
    from smoothtune.workflow.train import train as train

__version__ = "0.1.0"

_HOME = {
    "Experiment": "smoothtune.config.experiment",
    "Model": "smoothtune.inference.model",
    "Run": "smoothtune.workflow.run",
    "SmoothtuneError": "smoothtune.errors",
    "resume": "smoothtune.workflow.train",
    "train": "smoothtune.workflow.train",
}
__all__ = ["Experiment", "Model", "Run", "SmoothtuneError", "__version__", "load", "resume", "train"]


def load(run_dir: str | Path, *, device: str = "auto", precision: str = "auto") -> Model:
    """The trained model of a run folder or model folder. Raises `ModelFileError` when it is neither, `UsageError` for no path."""
    from os import PathLike

    from smoothtune.errors import UsageError
    from smoothtune.inference.model import Model

    if not isinstance(run_dir, str | PathLike):
        raise UsageError(f"load: got {type(run_dir).__name__}, expected the folder of a run or model")
    return Model.load(run_dir, device=device, precision=precision)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smoothtune' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
