"""AdamW over parameter groups, and the learning rate over the steps. Knows nothing of what the parameters mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smoothtune.config.stage import Rates, Stage
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.adamw import KernelAdamW, fits


def parameter_groups(
    model: MultiTaskModel, weighting: nn.Module, chosen: Mapping[str, nn.Parameter], stage: Stage
) -> list[dict[str, Any]]:
    """Groups of equal learning rate and decay; vectors (biases, norms) and loss weights are not decayed.

    With `layer_decay` d, encoder depth k of L (0: embeddings, L: last layer) has rate * d^(L - k), what follows the
    layers the full rate (Howard and Ruder, 2018; Clark et al., 2020).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in chosen.items():
        rate = _rate(model, name, stage)
        decay = 0.0 if parameter.ndim < 2 else stage.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    trained = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
    if trained:
        groups.setdefault((stage.learning_rate.outputs, 0.0), []).extend(trained)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def _rate(model: MultiTaskModel, name: str, stage: Stage) -> float:
    rates: Rates = stage.learning_rate
    part, _, rest = name.partition(".")
    if part != "encoder":
        by_part = {"trunks": rates.trunks, "lora": rates.adaptations, "adapters": rates.adaptations}
        return by_part.get(part, rates.outputs)
    above = model.encoder.depth + 1 - model.encoder.depth_of(rest)
    return rates.encoder * stage.layer_decay ** max(above - 1, 0)


def build_optimiser(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019): our kernels where they fit, else torch's, fused."""
    if fits(part for group in groups for part in group["params"]):
        return KernelAdamW(groups)
    return AdamW(groups, fused=True)


def rate_at(step: int, *, warmup: int, total: int) -> float:
    """The factor of the learning rate at a step counted from 0: linear rise over `warmup` steps, linear fall to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total - step) / max(1, total - warmup))


def build_rates(optimiser: torch.optim.Optimizer, *, warmup_share: float, total: int) -> LambdaLR:
    """The learning-rate schedule over `total` optimiser steps."""
    warmup = round(warmup_share * total)
    return LambdaLR(optimiser, lambda step: rate_at(step, warmup=warmup, total=total))


def moments_of(optimiser: Optimizer) -> dict[str, Any]:
    """What an optimiser remembers of each parameter (step, moments), by the parameter's number in its groups."""
    return {str(number): dict(held) for number, held in optimiser.state_dict()["state"].items()}


def give_moments(optimiser: Optimizer, moments: Mapping[str, Any]) -> None:
    """Go on with `moments`; groups, rates and decays stay what they are. Raises `ValueError` where they do not fit."""
    parameters = [part for group in optimiser.param_groups for part in group["params"]]
    for number, held in moments.items():
        if not 0 <= int(number) < len(parameters) or not _fits(held, parameters[int(number)]):
            raise ValueError(f"moments of parameter {number} are not those of such a parameter")
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict(
        {"state": {int(number): dict(held) for number, held in moments.items()}, "param_groups": groups}
    )


def _fits(held: Any, parameter: Tensor) -> bool:
    """Whether AdamW can go on with `held`: kernels write where it says, as far as the parameter is long."""
    if not isinstance(held, Mapping) or set(held) != {"step", "exp_avg", "exp_avg_sq"}:
        return False
    step, first, second = held["step"], held["exp_avg"], held["exp_avg_sq"]
    if isinstance(step, bool) or not (isinstance(step, int | float) or (isinstance(step, Tensor) and step.ndim == 0)):
        return False
    tensors = all(
        isinstance(one, Tensor)
        and one.shape == parameter.shape
        and one.dtype == parameter.dtype
        and one.is_contiguous()
        and bool(one.isfinite().all())
        for one in (first, second)
    )
    return 0 <= float(step) < 2**53 and tensors


def rates_at(rates: LambdaLR, step: int) -> None:
    """Put the learning rates where they are after `step` optimiser steps."""
    rates.last_epoch, rates._step_count = step, step + 1
    found = [base * factor(step) for base, factor in zip(rates.base_lrs, rates.lr_lambdas, strict=True)]
    for group, rate in zip(rates.optimizer.param_groups, found, strict=True):
        group["lr"] = rate
    rates._last_lr = found
