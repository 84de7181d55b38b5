"""How far two answers to the same example lie apart, by task kind, formed so that near-equal answers do not cancel."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.types import Kind

_CLOSE = 0.5  # largest logit difference up to which the cancelling forms are avoided


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of p = softmax(a), q = softmax(b); logits (B, C), result (B,) float32.

    With d = log p - log q the value is sum (p - q) d. Near equality both d and p - q = q expm1(d) are formed from the
    difference of the logits, so that nothing cancels; far from it, directly. Source: Wang, equation 4.
    """
    a, b = a.float(), b.float()
    difference = a - b
    p, q = torch.softmax(a, dim=-1), torch.softmax(b, dim=-1)
    close = difference.abs().amax(-1, keepdim=True) < _CLOSE
    near_shift = torch.log1p((q * torch.expm1(difference.clamp(-_CLOSE, _CLOSE))).sum(-1, keepdim=True))
    far_shift = torch.logsumexp(a, -1, keepdim=True) - torch.logsumexp(b, -1, keepdim=True)
    d = difference - torch.where(close, near_shift, far_shift)
    gap = torch.where(close, q * torch.expm1(d.clamp(-2 * _CLOSE, 2 * _CLOSE)), p - q)
    return (gap * d).sum(-1)


def symmetric_bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """As `symmetric_kl` for one binary logit: (sigmoid(a) - sigmoid(b)) * (a - b); both (B,), result (B,) float32."""
    difference = a.float() - b.float()
    gap = torch.tanh(difference / 2) * (1 - torch.tanh(a.float() / 2) * torch.tanh(b.float() / 2)) / 2
    return gap * difference


def squared_difference(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Squared difference of predictions in units of the task's range `span`; both (B,), result (B,) float32."""
    return ((a.float() - b.float()) / span).square()


def divergence(kind: Kind, a: Tensor, b: Tensor, *, span: float = 1.0) -> Tensor:
    """The divergence that belongs to a task kind, (B,) float32 (Jiang et al., 2020, section 3.1)."""
    if kind == "classification":
        return symmetric_kl(a, b)
    if kind == "binary":
        return symmetric_bernoulli_kl(a, b)
    return squared_difference(a, b, span)
