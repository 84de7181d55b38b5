"""The trunk of a task's linear probe: which layers it pools and how it scales them, by cross-validation.

The last layer of a sentence encoder has given up words that lower layers still hold. Knows nothing of fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from smoothtune.config.experiment import kind_of, trunk_name, trunk_options
from smoothtune.config.trunks import MeanTrunk, SiameseTrunk, TrunkBase
from smoothtune.data.batching import Examples
from smoothtune.evaluation import linear_probe
from smoothtune.evaluation.linear_probe import MOST_ROWS, ProbeChoice, ProbeScore, ProbeTargets
from smoothtune.evaluation.metrics import Floats, Rows
from smoothtune.nn.trunks.trunk import Trunk
from smoothtune.registry import resolve
from smoothtune.workflow.frozen import StateKeeper
from smoothtune.workflow.probe_fit import statistics
from smoothtune.workflow.recipe_inputs import RecipeInputs

RARE = 0.2
"""Class weights are tried where the rarest class has less than this share of an even share."""


@dataclass(frozen=True, slots=True)
class TrunkChoice:
    """The trunk's options, whether they are the recipe's `own`, and whether the trunk is one of `pooled` states.

    `features` is F; `class_weights` is "balanced" or "none" where the recipe chose; `probe` is None where none was tried.
    """

    options: TrunkBase
    own: bool
    pooled: bool
    features: int = 0
    class_weights: str | None = None
    probe: ProbeChoice | None = None

    def to_json(self) -> dict[str, Any] | None:
        """What cross-validation said, as plain numbers; None where no probe was tried."""
        if self.probe is None:
            return None
        score = self.probe.score
        numbers = {"loss": score.loss, "value": score.value, "macro_f1": score.macro_f1}
        plain = {name: None if np.isnan(number) else round(number, 6) for name, number in numbers.items()}
        return {"strength": self.probe.strength, **plain}


def choose_trunk(inputs: RecipeInputs, task: str) -> TrunkChoice:
    """The trunk of a task that names none, or the trunk that it names; and the class weights of its probe."""
    shape = inputs.experiment.tasks[task]
    options = trunk_options(task, shape, inputs.experiment.trunks)
    if options.needs == "states":
        return TrunkChoice(options, own=False, pooled=False)
    rows = inputs.probe_rows(task).sample(MOST_ROWS, inputs.experiment.seed)
    states = _pooled_states(inputs, rows.examples, options)
    about = inputs.probe_targets(task, rows)
    candidates = [options] if shape.trunk is not None else list(_candidates(options, inputs.encoder.depth))
    best: tuple[TrunkBase, Rows] | None = None
    score: ProbeScore | None = None
    for candidate in candidates:
        features = _features(candidate, states, inputs.encoder.width, inputs.encoder.depth)
        if len(candidates) == 1:
            best = candidate, features
            break
        other = linear_probe.best_score(features, about, seed=inputs.experiment.seed)
        if score is None or linear_probe.clearly_better(other, score):
            best, score = (candidate, features), other
    assert best is not None
    options, features = best
    probe = linear_probe.choose(features, about, seed=inputs.experiment.seed)
    weights, probe = _class_weights(inputs, task, features, about, probe)
    own = shape.trunk is None and trunk_name(task, shape) == task
    return TrunkChoice(options, own, True, features.shape[1], weights, probe)


def _candidates(options: TrunkBase, depth: int) -> Iterator[TrunkBase]:
    """The last layer, four layers from the embeddings up, and all; each scaled in two ways. Pairs: with cosines too."""
    four = tuple(sorted({0, depth // 2, depth - 1, depth}))
    every = tuple(range(depth + 1))
    if isinstance(options, MeanTrunk):
        for scaling in ("unit", "standard"):
            for layers in (None, four, every):
                yield options.model_copy(update={"layers": layers, "scaling": scaling})
    elif isinstance(options, SiameseTrunk):
        for layers in (None, four):
            yield options.model_copy(update={"layers": layers, "scaling": "unit"})
            for cosine in (False, True):
                yield options.model_copy(update={"layers": layers, "scaling": "standard", "cosine": cosine})
    else:
        yield options


def _pooled_states(inputs: RecipeInputs, examples: Examples, options: TrunkBase) -> list[torch.Tensor]:
    """The pooled states of all layers, (n, (L + 1) * D) for each text column, from the cache where they are there."""
    layers = tuple(range(inputs.encoder.depth + 1))
    keeper = StateKeeper(inputs.encoder, inputs.dtype, inputs.cache, "recipe", lambda event: None)
    pooled = examples
    if inputs.experiment.runtime.frozen_states == "auto":
        (split,) = keeper.give([{examples.task: examples}], {examples.task: (options.needs, layers)})
        pooled = split[examples.task]
    if not pooled.states:
        pooled = keeper.in_memory(examples, (options.needs, layers))
    return [column.values[torch.from_numpy(column.places(examples.chosen))] for column in pooled.states]


def _features(options: TrunkBase, states: list[torch.Tensor], width: int, depth: int) -> Rows:
    """What a trunk of these options gives for pooled states, (n, F) float32."""
    trunk = resolve("trunks", kind_of(options))(options, width).eval()
    layers = (depth,) if options.reads is None else options.reads
    sides = [side.view(len(side), depth + 1, width)[:, list(layers)].flatten(1).unsqueeze(1) for side in states]
    features = _trunk_features(trunk, sides)
    scaling = getattr(trunk, "scaling", None)
    if scaling is not None and scaling.kind == "standard":
        shift, scale = statistics([features], trunk)
        features = (features - shift) * scale
    return np.asarray(features, dtype=np.float32)


@torch.inference_mode()
def _trunk_features(trunk: Trunk, sides: list[torch.Tensor]) -> Rows:
    mask = torch.ones(len(sides[0]), 1, dtype=torch.bool)
    features = trunk(*(part for side in sides for part in (side, mask)))
    return features.float().numpy()


def _class_weights(
    inputs: RecipeInputs, task: str, features: Rows, about: ProbeTargets, probe: ProbeChoice
) -> tuple[str | None, ProbeChoice]:
    """Balanced class weights where a class is rare and cross-validated macro-F1 gains more than accuracy loses."""
    if about.kind == "regression" or getattr(inputs.experiment.tasks[task], "class_weights", None) is not None:
        return None, probe
    counts = np.bincount(about.targets.astype(np.int64), minlength=about.classes)
    if counts.min() >= RARE * counts.sum() / len(counts):
        return None, probe
    weights: Floats = linear_probe.balanced(about.targets, max(about.classes, 2))
    balanced = linear_probe.choose(features, replace(about, weights=weights), seed=inputs.experiment.seed)
    gain = balanced.score.macro_f1 - probe.score.macro_f1
    better = gain > max(0.0, probe.score.value - balanced.score.value)
    return ("balanced", balanced) if better else ("none", probe)
