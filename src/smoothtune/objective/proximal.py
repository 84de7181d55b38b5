"""Distance of the answers to those of a slow moving average of the model itself, the teacher. It holds the teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smoothtune.config.regularisers import ProximalOptions
from smoothtune.errors import TrainingError
from smoothtune.objective.look import Look
from smoothtune.objective.passes import clean_side, dropout_mode

_FIRST = 0.1  # share of the steps in which the teacher follows faster (Jiang et al., 2020, section 4)
_PROGRESS, _WEIGHT = "progress", "teacher."


class Proximal:
    """Mean l(f(x; w), f(x; teacher)), l the divergence of the task's kind (Jiang et al., 2020, section 3.2, Algorithm 1).

    teacher <- beta teacher + (1 - beta) w, once in each optimiser step in which it looks, before it looks; at its first
    look the teacher is a copy of the weights, so that the term is 0 (with `shared` masks). The teacher's side carries no
    gradient. Cost: one more forward pass, and a pass over the weights. Memory: a float32 copy of the weights that train.
    """

    layers = ()

    def __init__(self, options: ProximalOptions) -> None:
        self.options = options
        self._teacher: dict[str, Tensor] = {}
        self._progress = 0.0

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """`factor` times the term, a scalar; its `value` without the factor."""
        self._follow(look.weights(), look.progress)
        with torch.no_grad():
            theirs = look.logits_of(dropout=dropout_mode(self.options.dropout), weights=self._teacher)
        value = look.divergence(clean_side(look, self.options.dropout), theirs).mean()
        return factor * value, {"value": float(value.detach())}

    @torch.no_grad()
    def _follow(self, weights: Mapping[str, Tensor], progress: float) -> None:
        if not self._teacher:
            self._teacher = {name: weight.detach().float().clone() for name, weight in weights.items()}
        elif self._teacher.keys() != weights.keys():
            raise TrainingError(_strangers(self.options.label, set(self._teacher), set(weights)))
        elif progress != self._progress:  # batches that are accumulated to one step have one progress
            beta = self.options.beta_first if progress < _FIRST else self.options.beta
            for name, weight in weights.items():
                self._teacher[name] = self._teacher[name].to(weight.device).lerp_(weight.float(), 1 - beta)
        self._progress = progress

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights (the tensors themselves, not copies) and the progress at which it moved last."""
        return {_PROGRESS: self._progress, **{_WEIGHT + name: weight for name, weight in self._teacher.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a memory back; weights that are known are overwritten in place.

        Raises `ValueError`, whose text begins with the key, for what is none.
        """
        found = {key.removeprefix(_WEIGHT): state[key] for key in state if key.startswith(_WEIGHT)}
        _check(state, found)
        self._progress = float(state[_PROGRESS])
        self._teacher = {name: self._taken(name, weight) for name, weight in found.items()}

    def _taken(self, name: str, weight: Tensor) -> Tensor:
        mine = self._teacher.get(name)
        if mine is None or mine.shape != weight.shape:
            return weight.detach().float().clone()
        return mine.copy_(weight)

    def check_memory(self, weights: Mapping[str, Tensor]) -> None:
        """Raise `ValueError` where the teacher is not one of these `weights`."""
        if self._teacher and self._teacher.keys() != weights.keys():
            raise ValueError(f"teacher: {_strangers(self.options.label, set(self._teacher), set(weights))}")
        for name, weight in self._teacher.items():
            if weight.shape != weights[name].shape:
                raise ValueError(f"{_WEIGHT}{name}: got {tuple(weight.shape)}, expected {tuple(weights[name].shape)}")


def _check(state: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Raise `ValueError` for what `Proximal.state_dict` never gives."""
    progress = state.get(_PROGRESS)
    most = 1 if teacher else 0
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0 <= progress <= most:
        raise ValueError(f"{_PROGRESS}: got {progress!r:.60}, expected a share of the steps, and 0 without a teacher")
    if len(state) != 1 + len(teacher):
        raise ValueError(f"{min(state.keys() - {_PROGRESS})}: got {len(state)} keys, expected {_PROGRESS} and weights")
    for name, weight in teacher.items():
        if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or not weight.isfinite().all():
            got = f"a tensor of {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"{_WEIGHT}{name}: got {got}, expected finite weights of torch.float32")


def _strangers(label: str, teacher: set[str], training: set[str]) -> str:
    name = min(teacher ^ training)
    where = "the teacher has it, the stage does not train it" if name in teacher else "the teacher lacks it"
    return (
        f"regulariser {label}: the teacher's weights are not those that train ({name}: {where}); "
        "resume with the experiment that wrote the checkpoint, or begin the stage again"
    )
