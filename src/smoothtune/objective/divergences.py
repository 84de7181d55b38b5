"""How far two answers to the same example lie apart, by task kind, formed so that near-equal answers do not cancel.

Results are float32, or float64 for float64 logits. Knows nothing of passes or perturbations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.types import Kind

_CLOSE = 0.5  # largest logit difference up to which a log ratio is formed from the differences
_SERIES = 0.1  # largest log ratio for which exp(-d) - 1 + d is a series; the first term left out is 3e-7 of it


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of p = softmax(a), q = softmax(b); logits (B, C), result (B,).

    With d = log p - log q the value is sum (p - q) d = sum (p + q) tanh(d / 2) d: no term cancels, none is negative.
    Source: Wang, equation 4.
    """
    a, b = _wide(a, b)
    p, q, d = _log_ratio(a, b)
    return ((p + q) * torch.tanh(d / 2) * d).sum(-1)


def one_sided_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(p || q) of p = softmax(a), q = softmax(b); logits (B, C), result (B,).

    With d = log p - log q the value is sum p (exp(-d) - 1 + d), as sum (q - p) = 0; no term is negative.
    """
    a, b = _wide(a, b)
    p, q, d = _log_ratio(a, b)
    near = d.clamp(-_SERIES, _SERIES)
    series = near.square() * (1 / 2 - near * (1 / 6 - near * (1 / 24 - near / 120)))
    return torch.where(d.abs() < _SERIES, p * series, q - p + p * d).sum(-1)


def symmetric_bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """As `symmetric_kl` for one binary logit: (sigmoid(a) - sigmoid(b)) (a - b); both (B,), result (B,)."""
    a, b = _wide(a, b)
    difference = a - b
    apart = torch.sigmoid(a) * torch.sigmoid(-b) + torch.sigmoid(-a) * torch.sigmoid(b)
    return apart * torch.tanh(difference / 2) * difference


def one_sided_bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """As `one_sided_kl` for one binary logit, KL(sigmoid(a) || sigmoid(b)); both (B,), result (B,)."""
    return one_sided_kl(*(torch.stack([logit, torch.zeros_like(logit)], -1) for logit in (a, b)))


def squared_difference(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Squared difference of predictions in units of the task's range `span`; both (B,), result (B,)."""
    a, b = _wide(a, b)
    return ((a - b) / span).square()


def divergence(kind: Kind, a: Tensor, b: Tensor, *, span: float = 1.0) -> Tensor:
    """The symmetric divergence that belongs to a task kind, (B,) (Jiang et al., 2020, section 3.1)."""
    if kind == "classification":
        return symmetric_kl(a, b)
    if kind == "binary":
        return symmetric_bernoulli_kl(a, b)
    return squared_difference(a, b, span)


def one_sided_divergence(kind: Kind, p: Tensor, q: Tensor, *, span: float = 1.0) -> Tensor:
    """KL(p || q) of the answers that logits `p` and `q` stand for, (B,); for regression, as it has no sides, `divergence`."""
    if kind == "classification":
        return one_sided_kl(p, q)
    if kind == "binary":
        return one_sided_bernoulli_kl(p, q)
    return squared_difference(p, q, span)


def _wide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes, float32 at least."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def _log_ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(a), softmax(b) and the log of their ratio, (B, C) each.

    Differences are counted from that of the class that both find most likely, whose own log ratio is small. Near
    equality it is formed from the differences, so that equal logits have a ratio of exactly 1; far from it, directly.
    Both values depend on second order alone on an error in it, as the differences of probabilities sum to 0.
    """
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    p, q = log_p.exp(), log_q.exp()
    main = (log_p + log_q).detach().argmax(-1, keepdim=True)
    difference = a - b
    difference = difference - difference.gather(-1, main)
    close = difference.detach().abs().amax(-1, keepdim=True) < _CLOSE
    near = -torch.log1p((q * torch.expm1(difference.clamp(-_CLOSE, _CLOSE))).sum(-1, keepdim=True))
    far = (log_p - log_q).gather(-1, main)
    return p, q, difference + torch.where(close, near, far)
