"""Sets the outputs of a model to a linear probe of its own features. Knows nothing of stages, files or what trains later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from smoothtune.data.batching import Examples
from smoothtune.data.class_weights import class_weights_of
from smoothtune.data.columns import gathered
from smoothtune.data.task_data import TaskData
from smoothtune.evaluation import linear_probe
from smoothtune.evaluation.linear_probe import MOST_FITTED, LinearFit, ProbeChoice, ProbeTargets
from smoothtune.evaluation.metrics import Floats, Rows
from smoothtune.inference.answering import features_of
from smoothtune.nn.model import MultiTaskModel
from smoothtune.nn.outputs import set_linear
from smoothtune.runtime import processes
from smoothtune.runtime.random import numpy_stream

_MARGIN = 0.02  # of the range of a regression that squashes: a label at an end has no finite place before the sigmoid


@dataclass(frozen=True, slots=True)
class ProbeRows:
    """What a task's probe learns from: its examples, the text `groups` of these (n,), and class `weights` if any."""

    examples: Examples
    groups: Rows
    weights: Floats | None = None

    def sample(self, most: int, seed: int) -> ProbeRows:
        """At most so many of them, the same for the same seed."""
        if len(self.examples) <= most:
            return self
        stream = numpy_stream(seed, "linear probe", self.examples.task)
        rows = np.sort(stream.choice(len(self.examples), size=most, replace=False))
        return self.part(rows)

    def part(self, rows: Rows) -> ProbeRows:
        """Some of the rows, by position."""
        return replace(
            self, examples=replace(self.examples, chosen=self.examples.chosen[rows]), groups=self.groups[rows]
        )


def probe_rows(examples: Examples, data: TaskData) -> ProbeRows:
    """The training rows of a task with their groups and the weights of their classes."""
    split = data.splits["train"]
    groups = np.unique(gathered(split.table.keys(), split.chosen), return_inverse=True)[1]
    weights = class_weights_of(data.task, data.labels, data.targets("train"))
    return ProbeRows(examples, groups, None if weights is None else weights.astype(np.float64))


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """The fit of one task, and what cross-validation said of its strength."""

    fit: LinearFit
    choice: ProbeChoice


def targets_of(model: MultiTaskModel, rows: ProbeRows) -> ProbeTargets:
    """The targets of a task's rows, as its output is to learn them."""
    examples = rows.examples
    node = model.tasks[examples.task]
    assert examples.labels is not None
    targets = np.asarray(examples.labels[examples.chosen])
    span = node.span
    if node.kind == "regression" and _squashes(model, examples.task):
        assert node.value_range is not None
        share = (targets - node.value_range[0]) / span
        targets, span = logit(np.clip(share, _MARGIN, 1 - _MARGIN)), float(2 * logit(1 - _MARGIN))
    return ProbeTargets(node.kind, targets, node.classes, rows.groups, rows.weights, span)


def set_probes(
    model: MultiTaskModel, tasks: Mapping[str, ProbeRows], *, dtype: torch.dtype, seed: int
) -> dict[str, FittedProbe]:
    """Set the output of each of `tasks` to a probe of its features, and the statistics of its trunk where it has some.

    The same in all processes: the first one fits. Cost: one pass of the encoder over the rows, and the fits.
    """
    sampled = {name: rows.sample(MOST_FITTED, seed) for name, rows in tasks.items()}
    for name in sampled:
        _forget_statistics(model.trunks[model.tasks[name].trunk])
    features = {name: features_of(model, rows.examples, dtype=dtype) for name, rows in sampled.items()}
    for trunk, names in _by_trunk(model, features).items():
        scaling = getattr(model.trunks[trunk], "scaling", None)
        if scaling is not None and scaling.kind == "standard":
            shift, scale = statistics([features[name] for name in names], model.trunks[trunk])
            scaling.set_statistics(torch.from_numpy(shift), torch.from_numpy(scale))
            features.update({name: ((features[name] - shift) * scale).astype(np.float32) for name in names})
    probes: dict[str, FittedProbe] = {}
    for name, rows in sampled.items():
        about = targets_of(model, rows)
        choice = linear_probe.choose(features[name], about, seed=seed)
        fit = _of_first_process(linear_probe.fit(features[name], about, choice.strength, seed=seed))
        set_linear(model.outputs[name], _tensor(fit.weight, model), _tensor(fit.bias, model))
        probes[name] = FittedProbe(fit, choice)
    return probes


def statistics(features: Sequence[Rows], trunk: torch.nn.Module) -> tuple[Rows, Rows]:
    """`shift` and `scale` (F,) float32 that bring features (n, F) to mean 0 and deviation 1; constant ones stay.

    Cosines, a few among many features, count as much as the other features of their layer together.
    """
    every = np.concatenate(features).astype(np.float64)
    deviation = every.std(axis=0)
    scale = 1 / np.where(deviation > 1e-6, deviation, 1.0)
    cosines = getattr(trunk, "cosines", 0)
    if cosines:
        scale[-cosines:] *= np.sqrt((len(scale) - cosines) / cosines) / 2
    return every.mean(axis=0).astype(np.float32), scale.astype(np.float32)


def _forget_statistics(trunk: torch.nn.Module) -> None:
    scaling = getattr(trunk, "scaling", None)
    if scaling is not None and scaling.kind == "standard":
        scaling.set_statistics(torch.zeros_like(scaling.shift), torch.ones_like(scaling.scale))


def _by_trunk(model: MultiTaskModel, features: Mapping[str, Rows]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in features:
        found.setdefault(model.tasks[name].trunk, []).append(name)
    return found


def _of_first_process(fit: LinearFit) -> LinearFit:
    """The fit of the first process, in all of them: solvers of two machines may differ in the last bits."""
    together = processes.current()
    if together.alone:
        return fit
    own = together.is_main
    weight, bias = (
        together.joined_rows((part if own else np.zeros_like(part)).astype(np.float32))
        for part in (fit.weight, fit.bias)
    )
    return LinearFit(weight.astype(np.float64), bias.astype(np.float64))


def _tensor(values: Floats, model: MultiTaskModel) -> Tensor:
    return torch.from_numpy(values).to(model.device, torch.float64)


def _squashes(model: MultiTaskModel, task: str) -> bool:
    return bool(model.outputs[task].reading.squash)
