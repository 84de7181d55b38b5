"""Perturbations as vectors: their norms, a step along a gradient, the way back to the radius.

Pure functions of tensors; knows nothing of models, losses or randomness. A norm holds for each token (D numbers), or for
each text (all real tokens of one of the R rows; the two texts of a pair are two rows). Padding is 0 in every result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["inf", "2"]
Per = Literal["token", "text"]
Direction = Literal["raw", "normalised", "sign"]
Projection = Literal["ball", "sphere", "unit"]

_SHRINK = 1 - 2.0**-22  # so much is a 2-norm set below the radius that rounding to float32 can't bring it above


def masked(d: Tensor, mask: Tensor) -> Tensor:
    """`d` (R, T, D) with 0 at padding; `mask` (R, T) bool."""
    return d.masked_fill(~mask.unsqueeze(-1), 0)


def norms(d: Tensor, mask: Tensor, norm: Norm, per: Per) -> Tensor:
    """Norm of each token (R, T, 1) or text (R, 1, 1) of `d` (R, T, D) over the real entries, float64; `mask` (R, T)."""
    over = (-1,) if per == "token" else (-2, -1)
    d = masked(d, mask)
    if norm == "inf":
        return d.abs().amax(over, keepdim=True).double()
    length: Tensor = torch.linalg.vector_norm(d.double(), dim=over, keepdim=True)
    return length


def moved(
    d: Tensor, gradient: Tensor, mask: Tensor, *, step_size: float, direction: Direction, norm: Norm, per: Per
) -> Tensor:
    """`d` + `step_size` * direction, all (R, T, D): `raw` g, `normalised` g / norm(g), `sign` of g.

    `norm` and `per` are read by `normalised` alone. A gradient of 0 moves nothing. One that is not finite is not hidden.
    """
    if direction == "sign":
        gradient = torch.where(gradient.isnan(), gradient, gradient.sign())  # torch's sign of NaN is 0
    elif direction == "normalised":
        gradient = _divided(gradient, norms(gradient, mask, norm, per)).to(d.dtype)
    return masked(d + step_size * gradient, mask)


def projected(d: Tensor, mask: Tensor, *, projection: Projection, radius: float, norm: Norm, per: Per) -> Tensor:
    """`d` (R, T, D) brought back to `radius`.

    `ball`: the nearest perturbation of a norm of at most `radius`; `sphere`: rescaled to `radius`; `unit`: rescaled to 1,
    `radius` is not read. What is 0 stays 0. No norm, taken in float64 of the result, is above the radius; on the sphere it
    is below by 3e-7 of it at most.
    """
    if projection == "ball":
        return _in_ball(masked(d, mask), mask, radius, norm, per)
    return _on_sphere(masked(d, mask), mask, 1.0 if projection == "unit" else radius, norm, per)


def _in_ball(d: Tensor, mask: Tensor, radius: float, norm: Norm, per: Per) -> Tensor:
    if norm == "inf":
        bound = _at_most(radius, d.dtype)
        return d.clamp(-bound, bound)
    length = norms(d, mask, norm, per)
    return torch.where(length > radius, (_divided(d, length) * (radius * _SHRINK)).to(d.dtype), d)


def _on_sphere(d: Tensor, mask: Tensor, radius: float, norm: Norm, per: Per) -> Tensor:
    scale = _at_most(radius, d.dtype) if norm == "inf" else radius * _SHRINK
    return (_divided(d, norms(d, mask, norm, per)) * scale).to(d.dtype)


def _divided(d: Tensor, length: Tensor) -> Tensor:
    """The quotient in float64, and `d` itself where its length is 0; NaN stays NaN."""
    return d.double() / torch.where(length == 0, 1.0, length)


def _at_most(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `value` > 0."""
    near = torch.tensor(value, dtype=dtype)
    if near.item() > value:
        near = torch.nextafter(near, torch.tensor(-math.inf, dtype=dtype))
    return near.item()
