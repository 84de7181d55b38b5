"""What each regulariser does on one fixed batch of each task, and what it costs.

Changes no bit of the training that it watches. Knows nothing of files, of printing, or of what a number ought to be.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from smoothtune.data.batching import Examples
from smoothtune.objective.look import Look, Regulariser
from smoothtune.objective.measuring import dropout_part, perturbation_parts, search_of
from smoothtune.runtime.random import Pass, numpy_stream
from smoothtune.training.loop import put_frozen_to_rest
from smoothtune.training.step import StepModule
from smoothtune.types import Batch

ROWS = 32

Record = dict[str, float]
Records = dict[str, dict[str, Record]]


def probe_batch(examples: Examples, most: int, seed: int) -> Batch:
    """The first `most` of `ROWS` rows that the seed alone chooses, so that a run looks at the same ones in every stage."""
    chosen = numpy_stream(seed, "probe batch", examples.task).choice(
        len(examples), size=min(ROWS, len(examples)), replace=False
    )
    return examples.batch(chosen[:most])


@dataclass(frozen=True, slots=True)
class Probe:
    """`probe(step, progress)` tries every regulariser of `module` on the batch of each of its tasks, as in a training step.

    `trained` are the parameters that a step has gradients of, `batches` those of the tasks, on the model's device.
    Cost, for each regulariser and task: about that of three steps with the term.
    """

    module: StepModule
    trained: Sequence[Tensor]
    batches: Mapping[str, Batch]
    seed: int
    stage: str

    def __call__(self, step: int, progress: float) -> Records:
        """Records by task and regulariser.

        `dropout` (see `dropout_part`); of a regulariser that searches for a perturbation, also what `perturbation_parts`
        tells; `as_used`, the mean value of its own measure without the weight, where it tells one; `seconds_plain`, of
        one forward and backward pass without any term in the stage's dtype, and `seconds_with`, of one in which this term
        looks, in the dtype of such a step; `every`, where it looks at each so-manieth batch alone.
        """
        current = Pass(self.seed, self.stage, step, name="probe", update_statistics=False)
        found: Records = {task: {} for task in self.batches}
        with _in_training_mode(self.module):
            for regulariser in self.module.regularisers:
                with _memory_kept(regulariser):
                    for task, batch in self.batches.items():
                        if regulariser.applies(task):
                            found[task][regulariser.name] = self._record(batch, current, regulariser, progress)
        return {task: records for task, records in found.items() if records}

    def _record(self, batch: Batch, current: Pass, regulariser: Regulariser, progress: float) -> Record:
        look = self.module.looked(batch, current, regulariser, progress)
        record = dropout_part(look)
        search = search_of(regulariser)
        if search is not None:
            record |= perturbation_parts(look, search, self.module.dtype_with(regulariser, batch.task))
        del look  # its graph is as large as a step's
        plain, _ = self._timed(batch, current, _NoTerm(), progress)
        seconds, told = self._timed(batch, current, regulariser, progress)
        used = {"as_used": told["value"]} if "value" in told else {}
        rarely = {"every": float(regulariser.every)} if regulariser.every > 1 else {}
        return {**record, **used, "seconds_plain": plain, "seconds_with": seconds, **rarely}

    def _timed(
        self, batch: Batch, current: Pass, regulariser: Regulariser, progress: float
    ) -> tuple[float, Mapping[str, float]]:
        """Seconds of one forward and backward pass, and what the regulariser told; no `grad` is touched."""
        _wait_for(batch)
        began = time.perf_counter()
        look = self.module.looked(batch, current, regulariser, progress)
        term, told = regulariser(look)
        torch.autograd.grad(look.loss_of(look.logits).mean() + term, self.trained, allow_unused=True)
        _wait_for(batch)
        return time.perf_counter() - began, told


def _wait_for(batch: Batch) -> None:
    device = batch.tokens.mask.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _in_training_mode(module: StepModule) -> Iterator[None]:
    """The modes of a training step inside, those from before after."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.train()
        put_frozen_to_rest(module)
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def _memory_kept(regulariser: Regulariser) -> Iterator[None]:
    """What the regulariser remembers after is what it remembered before."""
    before = copy.deepcopy(regulariser.state_dict())
    try:
        yield
    finally:
        regulariser.load_state_dict(before)


class _NoTerm:
    """The step without any regulariser, as one."""

    name: str = "none"
    layers: tuple[int, ...] = ()
    precision: Literal["float32", "bfloat16"] | None = None
    every: int = 1

    def applies(self, task: str) -> bool:
        return True

    def due(self, task: str) -> bool:
        return True

    def count(self, task: str) -> None:
        return None

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        return torch.zeros((), device=look.logits.device), {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None

    def check_memory(self, batches: Mapping[str, int], weights: Mapping[str, Tensor], *, whole: bool) -> None:
        return None
