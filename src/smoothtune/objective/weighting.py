"""How the losses of the tasks are scaled against each other. Knows nothing of models or batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from smoothtune.registry import resolve


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a weighting may know of a task: training rows and the weight written in the experiment."""

    rows: int
    loss_weight: float


class Weighting(Protocol):
    """One factor per task, and a penalty that keeps a trainable factor in bounds."""

    def factor(self, task: str) -> Tensor | float:
        """The factor of the task's loss."""
        ...

    def penalty(self, task: str) -> Tensor | float:
        """A term without data that belongs to the factor; 0 for factors that do not train."""
        ...


class _Constant(nn.Module):
    """Factors that never change."""

    def __init__(self, factors: dict[str, float]) -> None:
        super().__init__()
        self._factors = factors

    def factor(self, task: str) -> float:
        """The factor of the task's loss."""
        return self._factors[task]

    def penalty(self, task: str) -> float:
        """None."""
        return 0.0


class NoWeighting(_Constant):
    """Every loss counts as it is."""

    def __init__(self, tasks: Mapping[str, TaskFacts]) -> None:
        super().__init__(dict.fromkeys(tasks, 1.0))


class FixedWeighting(_Constant):
    """The task's `loss_weight`."""

    def __init__(self, tasks: Mapping[str, TaskFacts]) -> None:
        super().__init__({name: facts.loss_weight for name, facts in tasks.items()})


class InverseSizeWeighting(_Constant):
    """w_t = (1 / N_t) / mean_u (1 / N_u) (Wang, section 4.3, item 3)."""

    def __init__(self, tasks: Mapping[str, TaskFacts]) -> None:
        mean = sum(1 / facts.rows for facts in tasks.values()) / len(tasks)
        super().__init__({name: 1 / facts.rows / mean for name, facts in tasks.items()})


class LearnedWeighting(nn.Module):
    """Trainable weights 1 / (2 s_t) with penalty ln(1 + s_t), s_t > 0 the task's variance (Liebel and Koerner, 2018).

    It begins at weight 1. At a loss l the best s is about l / 2 for large l, so the weight falls no faster than 1 / l and
    reaches zero for no finite loss: sending s to infinity would cost ln s without bound. (Wang, section 4.3, item 4 uses
    trainable weights without naming a form.)
    """

    def __init__(self, tasks: Mapping[str, TaskFacts]) -> None:
        super().__init__()
        self._numbers = {name: number for number, name in enumerate(tasks)}
        self.log_variance = nn.Parameter(torch.full((len(tasks),), math.log(0.5)))

    def factor(self, task: str) -> Tensor:
        """1 / (2 s_t)."""
        return 0.5 * torch.exp(-self.log_variance[self._numbers[task]])

    def penalty(self, task: str) -> Tensor:
        """ln(1 + s_t)."""
        return nn.functional.softplus(self.log_variance[self._numbers[task]])


class WeightingProduct(nn.Module):
    """The product of several weightings; a trainable factor's penalty is scaled by the other factors.

    So its optimum depends on the task's own loss, and the other factors keep their meaning.
    """

    def __init__(self, names: tuple[str, ...], tasks: Mapping[str, TaskFacts]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(resolve("weightings", name)(tasks) for name in names)

    def forward(self, task: str, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss and the penalty, both scalars."""
        factors = [part.factor(task) for part in self.parts]  # type: ignore[operator]
        penalty = loss.new_zeros(())
        for number, part in enumerate(self.parts):
            own = part.penalty(task)  # type: ignore[operator]
            if not isinstance(own, Tensor):  # a constant factor has none
                continue
            for other, factor in enumerate(factors):
                if other != number:
                    own = own * (factor.detach() if isinstance(factor, Tensor) else factor)
            penalty = penalty + own
        for factor in factors:
            if isinstance(factor, Tensor) or factor != 1:
                loss = loss * factor
        return loss, penalty

    def factor(self, task: str) -> float:
        """The present factor of a task's loss, without gradient."""
        found = 1.0
        for part in self.parts:
            value = part.factor(task)  # type: ignore[operator]
            found *= float(value.detach()) if isinstance(value, Tensor) else value
        return found

    def factors(self) -> dict[str, float]:
        """The present factor of each task that a trainable part knows; empty without one."""
        learned = [part for part in self.parts if isinstance(part, LearnedWeighting)]
        return {task: float(part.factor(task).detach()) for part in learned for task in part._numbers}
