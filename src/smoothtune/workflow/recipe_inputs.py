"""What the recipe chooses from: the experiment, its data and its encoder, and the few questions that it asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer

from smoothtune.config.experiment import Experiment, trunk_options
from smoothtune.data.batching import Examples
from smoothtune.data.task_data import TaskData, make_examples
from smoothtune.evaluation.linear_probe import ProbeTargets
from smoothtune.nn.encoder import Encoder
from smoothtune.workflow.probe_fit import ProbeRows, probe_rows

_LITTLE_EXCESS = 0.05


@dataclass(frozen=True, slots=True)
class RecipeInputs:
    """The data are read; the encoder is the checkpoint's, in `dtype` on `device`; so many `processes` will train."""

    experiment: Experiment
    data: Mapping[str, TaskData]
    tokenizer: Tokenizer
    encoder: Encoder
    device: torch.device
    dtype: torch.dtype
    accelerator: Accelerator
    cache: Path
    processes: int = 1

    def rows(self, task: str, split: str) -> int:
        """Rows of a split."""
        return len(self.data[task].splits[split])

    def classes(self, task: str) -> int:
        """Labels of a task; 0 for a regression."""
        return len(self.data[task].labels or ())

    def dev_excess(self, task: str) -> float:
        """The share of the rows by which the dev part is larger than its fraction; 0 for a dev file, and up to 0.05.

        It is where many classes of few rows each have a dev row.
        """
        fraction, held = self.experiment.tasks[task].dev, self.rows(task, "dev")
        if isinstance(fraction, str):
            return 0.0
        excess = held / (held + self.rows(task, "train")) - fraction
        return excess if excess > _LITTLE_EXCESS else 0.0

    @property
    def labels(self) -> dict[str, tuple[str, ...] | None]:
        """Labels by task."""
        return {name: data.labels for name, data in self.data.items()}

    def probe_rows(self, task: str, experiment: Experiment | None = None) -> ProbeRows:
        """The training rows of a task, weighted as its class weights in `experiment` say, or else in the given one."""
        data = self.data[task]
        weighted = data if experiment is None else replace(data, task=experiment.tasks[task])
        return probe_rows(self._examples(data), weighted)

    def probe_targets(self, task: str, rows: ProbeRows) -> ProbeTargets:
        """What a probe is to learn of these rows, in label units and without class weights."""
        examples, shape = rows.examples, self.experiment.tasks[task]
        assert examples.labels is not None
        span = shape.range[1] - shape.range[0] if shape.kind == "regression" else 1.0
        targets = np.asarray(examples.labels[examples.chosen])
        return ProbeTargets(shape.kind, targets, max(self.classes(task), 1), rows.groups, None, span)

    def _examples(self, data: TaskData) -> Examples:
        make = partial(make_examples, data, data.splits["train"], self.tokenizer, cache=self.cache)
        return make(
            reads=trunk_options(data.name, data.task, self.experiment.trunks).input,
            max_length=self.experiment.encoder.max_length,
            pad_id=int(self.encoder.architecture.get("pad_token_id") or 0),
        )
