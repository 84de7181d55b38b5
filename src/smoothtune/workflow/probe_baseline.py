"""The linear probe that a run began with, as a baseline: its weights in the run's folder, and what it answers.

The encoder is the checkpoint's own: the probe is kept where a stage begins from that alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from smoothtune.bounded import UnreadableError
from smoothtune.config.experiment import Experiment
from smoothtune.data.batching import Examples
from smoothtune.errors import ModelFileError
from smoothtune.evaluation.scores import TaskAnswers
from smoothtune.files import WriteError, folder_aside
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.weights_file import tensors_of
from smoothtune.tensor_file import save_tensors
from smoothtune.workflow.run import PROBE
from smoothtune.workflow.scoring import answers_from, logits_of
from smoothtune.workflow.selections import Labels, fresh_model

NAME = "probe"
_FILE = "probe.safetensors"


def probe_weights(model: MultiTaskModel, tasks: Iterable[str]) -> dict[str, Tensor]:
    """A copy of the outputs and trunks of `tasks`, by full name."""
    parts = tuple(part for task in tasks for part in (f"outputs.{task}.", f"trunks.{model.tasks[task].trunk}."))
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(parts)}


def write_probe(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Keep the probe in the folder of a run. Raises `WriteError`."""
    try:
        with folder_aside(run / PROBE) as aside:
            save_tensors(weights, aside / _FILE)
    except OSError as error:
        raise WriteError(f"{run / PROBE}: cannot be written: {error.strerror}") from None


def probe_answers(
    run: Path,
    experiment: Experiment,
    encoder: Encoder,
    labels: Labels,
    examples: Mapping[str, Examples],
    dtype: torch.dtype,
) -> dict[str, TaskAnswers]:
    """What the probe of a run answers to labelled examples, of the tasks that it has; `encoder` is the checkpoint's.

    Raises `ModelFileError` for a probe that is damaged or of another model.
    """
    path = run / PROBE / _FILE
    device = next(encoder.parameters()).device
    model = fresh_model(experiment, encoder, labels).to(device)
    held = model.state_dict()
    try:
        weights = tensors_of(path)
    except (OSError, UnreadableError) as error:
        raise ModelFileError(f"{path}: cannot be read: {error}") from None
    for name, tensor in weights.items():
        if name not in held or held[name].shape != tensor.shape:
            raise ModelFileError(f"{path}: holds {name}, which the model of this run does not have in that shape")
    model.load_state_dict(weights, strict=False)
    probed = {
        name: part for name, part in examples.items() if any(key.startswith(f"outputs.{name}.") for key in weights)
    }
    return answers_from(logits_of(model.eval(), probed, dtype=dtype), probed, experiment.tasks)
