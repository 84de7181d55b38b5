"""AdamW by kernels on the CPU: one pass over all parameters, and only the read rows of an embedding table.

Knows nothing of what the parameters mean or how rates change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from smoothtune.runtime.kernels import adamw as kernels
from smoothtune.runtime.kernels.adamw import Rates


def fits(parameters: Iterable[Tensor]) -> bool:
    """Whether all `parameters` are contiguous float32 on the CPU and the kernels are there."""
    return (
        all(part.device.type == "cpu" and part.dtype == torch.float32 and part.is_contiguous() for part in parameters)
        and kernels.available()
    )


class KernelAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019, Algorithm 2), with torch's defaults, arithmetic and state (`step` is a plain number).

    A sparse gradient (V, D) means 0 in all other rows. Rows that never had a gradient have zero moments, so only their decay is
    paid for: the result is that of the dense step. `scale` multiplies the gradients of the next step alone.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.scale = 1.0
        self._seen: dict[Tensor, Tensor] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state. Which rows were seen is read from the moments again."""
        self._seen.clear()
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step over all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        self.scale = 1.0
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        dense: dict[int, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            number = self._begin(parameter)
            if parameter.grad.is_sparse:
                self._step_rows(parameter, self._rates(group, number))
            else:
                dense.setdefault(number, []).append(parameter)
        for number, parameters in dense.items():
            kernels.step_dense(
                parameters,
                [part.grad.contiguous() for part in parameters if part.grad is not None],
                [self.state[part]["exp_avg"] for part in parameters],
                [self.state[part]["exp_avg_sq"] for part in parameters],
                self._rates(group, number),
            )
            for part in parameters:
                self._seen.pop(part, None)
                increment_version(part)

    def _begin(self, parameter: Tensor) -> int:
        """Count the parameter's step; its number, from 1."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        return int(state["step"])

    def _step_rows(self, table: Tensor, rates: Rates) -> None:
        state = self.state[table]
        if table not in self._seen:  # squares underflow before the mean does
            self._seen[table] = ((state["exp_avg"] != 0) | (state["exp_avg_sq"] != 0)).any(dim=1)
        assert table.grad is not None
        gradient = table.grad.coalesce()
        index, values = gradient.indices()[0].contiguous(), gradient.values().contiguous()
        kernels.step_rows(table, state["exp_avg"], state["exp_avg_sq"], self._seen[table], index, values, rates)
        increment_version(table)

    def _rates(self, group: dict[str, Any], number: int) -> Rates:
        return Rates.at(
            number,
            rate=float(group["lr"]),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            scale=self.scale,
        )


def clip_gradients(optimiser: Optimizer, limit: float | None) -> float:
    """Scale the gradients of `optimiser` down so that their common norm is at most `limit`; the norm before.

    Where `KernelAdamW` makes the step, the gradients stay as they are and the step scales them.
    """
    trained = [part for group in optimiser.param_groups for part in group["params"] if part.grad is not None]
    if not isinstance(optimiser, KernelAdamW):
        return float(torch.nn.utils.clip_grad_norm_(trained, torch.inf if limit is None else limit))
    for part in trained:
        if part.grad.is_sparse and not part.grad.is_coalesced():
            part.grad = part.grad.coalesce()
    gradients = [part.grad.values() if part.grad.is_sparse else part.grad for part in trained]
    norm = math.sqrt(kernels.sum_of_squares([part.contiguous() for part in gradients]))
    optimiser.scale = 1.0 if limit is None or norm <= limit else limit / (norm + 1e-6)
    return norm
