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
from smoothtune.training.state import shown, under


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


def give_moments(optimiser: Optimizer, moments: Mapping[str, Any], *, steps: int) -> None:
    """Go on with the `moments` after `steps` steps; groups, rates and decays stay what they are.

    Raises `ValueError` where they do not fit.
    """
    parameters = {
        str(number): part
        for number, part in enumerate(part for group in optimiser.param_groups for part in group["params"])
    }
    for number, held in moments.items():
        with under(number):
            if number not in parameters:
                raise ValueError(f": got moments, but the stage trains {len(parameters)} parameters, counted from 0")
            _check(held, parameters[number], steps)
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict(
        {"state": {int(number): dict(held) for number, held in moments.items()}, "param_groups": groups}
    )


def _check(held: Any, parameter: Tensor, steps: int) -> None:
    """Raise `ValueError` where AdamW cannot go on with `held`: kernels write where it says, as far as the parameter is long."""
    if not isinstance(held, Mapping) or set(held) != {"step", "exp_avg", "exp_avg_sq"}:
        raise ValueError(f": got {shown(held)}, expected step, exp_avg and exp_avg_sq")
    if not _is_count(held["step"], steps):
        raise ValueError(f"step: got {shown(held['step'])}, expected a whole number from 1 to {steps}")
    for name in ("exp_avg", "exp_avg_sq"):
        one = held[name]
        like = isinstance(one, Tensor) and one.shape == parameter.shape and one.dtype == parameter.dtype
        if not (like and one.is_contiguous() and one.isfinite().all()):
            raise ValueError(f"{name}: got {shown(one)}, expected finite values, {shown(parameter)}")
    if (held["exp_avg_sq"] < 0).any():
        raise ValueError("exp_avg_sq: holds values below 0, expected none: they are means of squares")


def _is_count(step: Any, most: int) -> bool:
    """Whether it is a number of steps, as KernelAdamW or torch's keeps it."""
    if isinstance(step, Tensor):
        return step.ndim == 0 and not step.is_complex() and _is_count(step.item(), most)
    if isinstance(step, bool) or not isinstance(step, int | float):
        return False
    return 1 <= step <= most and step == int(step)


def rates_at(rates: LambdaLR, step: int) -> None:
    """Put the learning rates where they are after `step` optimiser steps."""
    rates.last_epoch, rates._step_count = step, step + 1
    found = [base * factor(step) for base, factor in zip(rates.base_lrs, rates.lr_lambdas, strict=True)]
    for group, rate in zip(rates.optimizer.param_groups, found, strict=True):
        group["lr"] = rate
    rates._last_lr = found
