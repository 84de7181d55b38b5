"""AdamW at extreme gradients: the scale is that of the gradients, and its inverse too."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smoothtune.runtime.kernels import adamw
from smoothtune.runtime.kernels.adamw import Rates
from tests.extremes.cases import Result, case, numbers

STEPS = 5
SHAPES = ((513, 33), (1,), (0,))
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def _available(dtype: torch.dtype) -> bool:
    return adamw.available()


def _gradient(shape: tuple[int, ...], scale: float, step: int) -> Tensor:
    """Of sizes far apart: some are zero, some a million times larger than others."""
    drawn = numbers(*shape, seed=10 + step, scale=scale)
    return drawn * 10.0 ** numbers(*shape, seed=20).clamp(-3, 3).round().mul(2) * (numbers(*shape, seed=30 + step) > -1)


def _plainly(start: Tensor, gradients: list[Tensor], wide: torch.dtype) -> list[Tensor]:
    """The parameter and both moments after all steps, and how far it moved."""
    leaf = start.to(wide, copy=True).requires_grad_()
    optimiser = torch.optim.AdamW([leaf], **OPTIONS, foreach=False)
    for gradient in gradients:
        leaf.grad = gradient.to(wide)
        optimiser.step()
    state = optimiser.state[leaf]
    return [leaf.detach(), state["exp_avg"], state["exp_avg_sq"]]


def _rates(step: int) -> Rates:
    return Rates.at(
        step, rate=OPTIONS["lr"], betas=OPTIONS["betas"], eps=OPTIONS["eps"], weight_decay=OPTIONS["weight_decay"],
        scale=1.0,
    )  # fmt: skip


def _results(name: str, found: list[Tensor], start: Tensor, gradients: list[Tensor]) -> Iterator[Result]:
    plain, exact = (_plainly(start, gradients, wide) for wide in (torch.float32, torch.float64))
    for part, *three in zip(("parameter", "first", "second"), found, plain, exact, strict=True):
        yield Result(f"{part}: {name}", *three)
    moved = [parts[0].double() - start.double() for parts in (found, plain, exact)]
    yield Result(f"step: {name}", moved[0].float(), moved[1].float(), moved[2])


@case("adamw_dense", loaded=lambda dtype: adamw._library(), available=_available, dtypes=(torch.float32,))
def dense_steps(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for size in (scale, 1 / scale, 1e8 * scale, 1e-12 / scale):
        for shape in SHAPES:
            start, gradients = numbers(*shape, seed=1), [_gradient(shape, size, step) for step in range(STEPS)]
            found = [start.clone(), torch.zeros(shape), torch.zeros(shape)]
            for step, gradient in enumerate(gradients, 1):
                adamw.step_dense([found[0]], [gradient], [found[1]], [found[2]], _rates(step))
            yield from _results(f"{shape}, gradients of {size:.0e}", found, start, gradients)


@case("adamw_rows", loaded=lambda dtype: adamw._library(), available=_available, dtypes=(torch.float32,))
def sparse_steps(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    shape, rows = (60, 33), 40
    for size in (scale, 1 / scale):
        start = numbers(*shape, seed=1)
        found, seen = [start.clone(), torch.zeros(shape), torch.zeros(shape)], torch.zeros(len(start), dtype=torch.bool)
        gradients = []
        for step in range(1, STEPS + 1):
            index = (torch.arange(rows) * 3 + step) % len(start)
            index = index.unique() if step > 1 else index[:0]  # a step of no rows too
            gradient = _gradient((len(index), shape[1]), size, step)
            gradients.append(torch.zeros(shape).index_copy(0, index, gradient))
            adamw.step_rows(*found, seen, index, gradient, _rates(step))
        yield from _results(f"gradients of {size:.0e}", found, start, gradients)


@case("sum_of_squares", loaded=lambda dtype: adamw._library(), available=_available, dtypes=(torch.float32,))
def norms(scale: float, dtype: torch.dtype) -> Iterator[Result]:
    for size in (scale, 1 / scale):
        parts = [_gradient(shape, size, 1) for shape in SHAPES]
        exact = torch.stack([part.double().square().sum() for part in parts]).sum()
        plain = torch.stack([torch.linalg.vector_norm(part) for part in parts]).norm().square()
        yield Result(f"gradients of {size:.0e}", torch.tensor(adamw.sum_of_squares(parts)), plain, exact)
