"""One optimiser step over some batches: gradients added up, what is not finite kept out, batches cut where memory is short.

Several processes cut each batch between them: what they learn, tell and refuse is what one would, of the whole batch. Knows
nothing of epochs, stopping or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smoothtune.config.stage import Stage
from smoothtune.data.schedules import Schedule
from smoothtune.errors import NotFiniteError, OneProcessError, TrainingError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.processes import Processes, computing_with
from smoothtune.training.adamw import clip_gradients
from smoothtune.training.progress import Means, Progress
from smoothtune.training.step import StepModule, StepName
from smoothtune.types import Batch


@dataclass(slots=True)
class LoopParts:
    """What the loop turns: all of it is prepared outside. `files` name the training data of each task, for messages."""

    module: StepModule
    optimiser: Optimizer
    rates: LambdaLR
    schedule: Schedule
    accelerator: Accelerator
    processes: Processes
    stage: Stage
    seed: int
    total_steps: int
    evaluate: Callable[[MultiTaskModel], Any]
    files: Mapping[str, str] = field(default_factory=dict)
    trained: list[Tensor] = field(init=False)
    statistics: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        self.statistics = list(self.module.buffers())  # once: to look for them takes longer than a small step


Group = Sequence[tuple[str, Batch]]


def optimiser_step(parts: LoopParts, group: Group, at: Progress) -> tuple[Means, list[Batch]]:
    """One optimiser step over the batches of `group`; the mean loss parts by task, and the batches it learned from.

    Where the device's memory is too small for a batch, `at.pieces` is doubled and the step begun again: each batch then goes
    through in so many pieces, whose gradients are added. Raises `TrainingError` where a single row is too much, and at what is
    not finite unless the stage skips it.
    """
    before = _copied(parts.statistics)
    while True:
        try:
            losses, good = _gradients(parts, group, at, before)
            break
        except torch.OutOfMemoryError:
            _put_back(parts.statistics, before)
            _forget_gradients(parts)
            _make_smaller(parts, group, at)
    if (
        not parts.processes.alone
    ):  # all had the same tasks, so that the same parameters have a gradient, and others none
        parts.processes.add_up([parameter.grad for parameter in parts.trained if parameter.grad is not None])
    norm = clip_gradients(parts.optimiser, parts.stage.gradient_clip)
    if good and math.isfinite(norm):
        parts.optimiser.step()
    elif good:
        _put_back(parts.statistics, before)
        tasks = ", ".join(dict.fromkeys(batch.task for batch in good))
        _refuse_or_skip(parts, at.step, f"the norm of the gradients of {tasks} is {norm}", good)
        losses, good = Means(), []
    _forget_gradients(parts)
    parts.rates.step()
    return losses, good


def _gradients(parts: LoopParts, group: Group, at: Progress, before: list[Tensor]) -> tuple[Means, list[Batch]]:
    losses, good = Means(), list[Batch]()
    for offset, (task, batch) in enumerate(group):
        last = _copied(parts.statistics) if offset else before
        found: dict[str, float] = {}
        for piece, share, name in _pieces(parts, batch, at, offset):
            loss = _loss(parts, piece.to(parts.accelerator.device), name, share)
            total = _total(loss)
            value = _add(parts, found, loss, total, share)
            if not math.isfinite(value):
                break
            factor = share / parts.stage.accumulate
            (total if factor == 1 else total * factor).backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(value):
            _put_back(parts.statistics, last)
            _refuse_or_skip(parts, at.step, f"the loss of task {task} is {value}", [batch])
            continue
        losses.add(task, found)
        good.append(batch)
    return losses, good


def _pieces(parts: LoopParts, batch: Batch, at: Progress, offset: int) -> Iterator[tuple[Batch, float, StepName]]:
    """What goes through at once in this process, its share of the batch, and the name of its draws."""
    progress, rank = at.step / parts.total_steps, parts.processes.rank
    cut = batch.cut(at.pieces) if parts.processes.alone else [_part(batch, parts.processes)]
    for number, piece in enumerate(cut):
        name = StepName(parts.seed, parts.stage.name, at.number + offset, rank, progress, number)
        yield piece, len(piece) / len(batch) if rank < len(batch) else 0.0, name


def _part(batch: Batch, processes: Processes) -> Batch:
    """The rows of this process. Where there are too few, the last processes have the last row, so that all do alike."""
    cut = batch.cut(processes.world)
    return cut[min(processes.rank, len(cut) - 1)]


def _loss(parts: LoopParts, piece: Batch, name: StepName, share: float) -> dict[str, Tensor]:
    """The loss parts of a piece; one without a share of the batch does not count where processes add up."""
    if share > 0:
        loss: dict[str, Tensor] = parts.module(piece, name)
        return loss
    with computing_with(replace(parts.processes, counts=False)):
        return _loss(parts, piece, name, 1.0)


def _add(parts: LoopParts, found: dict[str, float], loss: Mapping[str, Tensor], total: Tensor, share: float) -> float:
    """Add the share of a piece's loss to what was `found` of the batch; its own `total`, or that of all processes together."""
    own = {part: float(value.detach()) * share for part, value in loss.items()}
    told = parts.processes.totals(own)
    for part, number in told.items():
        found[part] = found.get(part, 0.0) + number
    if parts.processes.alone:
        return float(total.detach())
    return sum(number for part, number in told.items() if part != "unweighted")


def _make_smaller(parts: LoopParts, group: Group, at: Progress) -> None:
    stage, rows = parts.stage, max(len(batch) for _, batch in group)
    where = f"stage {stage.name}, step {at.step + 1}: out of memory on {parts.accelerator.device}"
    if not parts.processes.alone:  # the others are in the middle of their step
        raise OneProcessError(f"process {parts.processes.rank}: {where}; set a smaller batch_size for the stage")
    if at.pieces >= rows:
        raise TrainingError(f"{where} with a single row; set a smaller encoder.max_length, or use a larger device")
    at.pieces *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget_gradients(parts: LoopParts) -> None:
    for parameter in parts.trained:  # `zero_grad` does this too, behind checks that take longer than a small step
        parameter.grad = None


def _copied(statistics: list[Tensor]) -> list[Tensor]:
    return [statistic.clone() for statistic in statistics]


def _put_back(statistics: list[Tensor], copies: list[Tensor]) -> None:
    for statistic, kept in zip(statistics, copies, strict=True):
        statistic.copy_(kept)


def _total(found: Mapping[str, Tensor]) -> Tensor:
    first, *others = (value for part, value in found.items() if part != "unweighted")
    for value in others:
        first = first + value
    return first


def _refuse_or_skip(parts: LoopParts, step: int, what: str, batches: list[Batch]) -> None:
    stage = parts.stage
    if stage.on_nan == "skip":
        return
    places = "; ".join(_rows(batch, parts.files) for batch in batches[:4])
    raise NotFiniteError(
        f"stage {stage.name}, step {step + 1}: {what} on the batch with {places}; "
        'lower the learning rate, use precision = "float32", or set on_nan = "skip" to leave such batches out'
    )


def _rows(batch: Batch, files: Mapping[str, str]) -> str:
    rows = ", ".join(str(row) for row in sorted(batch.rows.tolist())[:8])
    more = ", ..." if len(batch) > 8 else ""
    return f"rows {rows}{more} of {files.get(batch.task, 'its training data')} (task {batch.task})"
