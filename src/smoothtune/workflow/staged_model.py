"""The model of a run as it goes from stage to stage: built, grown by LoRA and adapters, taken back to an earlier state.

Knows nothing of data beyond their labels, and nothing of how a stage trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smoothtune.config.experiment import Experiment, ModelConfig
from smoothtune.config.tasks import shape_of
from smoothtune.errors import UsageError
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.folder import read_model_folder
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.pretrained import load_encoder
from smoothtune.training.selection import begins_trained
from smoothtune.workflow.selections import Labels, any_labels, fresh_model, trained_by_stage
from smoothtune.workflow.stage_folders import stage_folder


def _without_place(config: ModelConfig) -> dict[str, Any]:
    """All that makes a model of it: not where its encoder was."""
    table = config.model_dump(mode="json")
    del table["encoder"]["name"], table["encoder"]["revision"]
    return table


class StagedModel:
    """What the stages of an experiment train, one after another.

    `model` is there once `make` has been told the labels. Raises `UsageError` where a stage selects nothing: told by a
    model whose labels stand in for those of the data, so before any data are read.
    """

    model: MultiTaskModel

    def __init__(
        self, experiment: Experiment, checkpoint: Path, device: torch.device, encoder: Encoder | None = None
    ) -> None:
        self.experiment = experiment
        self.device = device
        self._checkpoint = checkpoint
        self.encoder: Encoder = load_encoder(checkpoint, experiment.encoder) if encoder is None else encoder
        self._labels: Labels = any_labels(experiment)
        self._holds: int | None = None  # the stage whose best state the model is
        self._chosen = trained_by_stage(experiment, self.encoder)

    def make(self, labels: Labels) -> None:
        """A fresh model that answers with these labels."""
        self._labels = labels
        self.model = self._fresh()

    def begin(self, number: int, run: Path) -> bool:
        """Make the model what stage `number` begins with; whether that is a result (see `begins_trained`).

        That is an earlier state, of a folder of `run` where it is not the present one, and the LoRA and adapters that the
        stage trains. These come in here, fresh, so that stages before run the encoder alone.
        """
        experiment, source = self.experiment, self.experiment.source(number)
        if source is None and number:
            self.encoder = load_encoder(self._checkpoint, experiment.encoder)
            self.model = self._fresh(number)
        elif source is not None and source != self._holds:
            folder = stage_folder(run, experiment.stages[source].name)
            found = read_model_folder(folder)
            self._check_same(found.config, folder)
            self.model = found.model.to(self.device)
            self.encoder = self.model.encoder
        self._grow(number)
        self._holds = number  # when the stage is over
        trained = {name for earlier in experiment.before(number) for name in self._chosen[earlier]}
        return begins_trained(self.model, experiment.stage_tasks(experiment.stages[number]), trained)

    def _check_same(self, found: ModelConfig, folder: Path) -> None:
        """Raise `UsageError` where the model of an earlier stage is not one of this experiment, which may be another one now."""
        own = self.config().model_copy(update={"lora": {}, "adapters": {}})
        kept = found.model_copy(update={"lora": {}, "adapters": {}})
        adapted = all(part == self.experiment.lora for part in found.lora.values()) and all(
            part == self.experiment.adapters for part in found.adapters.values()
        )
        if adapted and _without_place(kept) == _without_place(own):
            return
        raise UsageError(
            f"{folder}: is a model of other encoder options, tasks, trunks, LoRA or adapters than the experiment's, and a "
            "later stage goes on from it; put them back, or begin another run"
        )

    def config(self) -> ModelConfig:
        """What the model's folder says of it."""
        experiment = self.experiment
        return ModelConfig(
            encoder=experiment.encoder,
            tasks={name: shape_of(task) for name, task in experiment.tasks.items()},
            trunks=experiment.trunks,
            lora=dict.fromkeys(self.model.lora, experiment.lora),
            adapters=dict.fromkeys(self.model.adapters, experiment.adapters),
        )

    def _grow(self, number: int) -> None:
        """Add the LoRA and adapters of stage `number` that the model does not have."""
        wanted = {*self.experiment.lora_after(number)}, {*self.experiment.adapters_after(number)}
        if wanted == ({*self.model.lora}, {*self.model.adapters}):
            return
        grown = self._fresh(number)
        beside = {name: part for name, part in self.model.state_dict().items() if not name.startswith("encoder.")}
        grown.load_state_dict(beside, strict=False)  # the encoder is the same object, what is new has no former state
        self.model = grown

    def _fresh(self, stage: int | None = None) -> MultiTaskModel:
        """A fresh model around the encoder, with the LoRA and adapters that there are in stage number `stage`."""
        return fresh_model(self.experiment, self.encoder, self._labels, stage).to(self.device)
