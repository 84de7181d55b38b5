"""Multi-head self-attention with one fused projection. Knows nothing of layers, checkpoints or training."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from smoothtune.config.adaptations import Target
from smoothtune.nn import fused
from smoothtune.nn.adaptation import UNCHANGED, InLayer
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.packing import Packing

# The thirds of the fused projection.
QKV: tuple[Target, ...] = ("query", "key", "value")


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `heads` heads of d = D / heads features (Vaswani et al., 2017, section 3.2).

    Q, K and V come from one Linear(D, 3D), in this order. In eval mode the fused kernel of torch is used; in training
    mode the steps are written out, because dropout masks come from our own streams and the backward pass of the fused
    CPU kernel is slow. The choice follows `training` alone, so that a pass with gradients equals one without.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, change: InLayer = UNCHANGED) -> Tensor:
        """`x` (R, T, D) and `mask` (R, T) bool to (R, T, D), with the LoRA of `change`.

        A row without tokens mixes its padding: a softmax over nothing is not a number.
        """
        mask = mask | ~mask.any(dim=1, keepdim=True)
        rows, tokens, width = x.shape
        heads = change.low_rank(QKV, x, self.qkv(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))  # each (R, H, T, d)
        mix = self._mix_with_dropout if self.training else _mix
        mixed = mix(query, key, value, mask).transpose(1, 2).reshape(rows, tokens, width)
        return change.low_rank("output", mixed, self.output(mixed))

    def packed(self, x: Tensor, packing: Packing, change: InLayer = UNCHANGED) -> Tensor:
        """The same for packed tokens, (N, D) to (N, D), without the bias of the last projection: what follows adds it."""
        qkv = change.product(QKV, x, self.qkv.weight)
        mixed = fused.attention(qkv, self.qkv.bias, packing, self.heads, self.dropout.drop(packing.places))
        return change.product("output", mixed, self.output.weight)

    def ragged(self, x: Tensor, packing: Packing, change: InLayer = UNCHANGED) -> Tensor:
        """The same for packed tokens by torch's attention over rows of any length, without dropout, (N, D) to (N, D).

        For GPUs, in 16-bit floats. Source of the kernel: Dao (2024), FlashAttention-2.
        """
        from torch.nn.attention.varlen import varlen_attn

        tokens, width = x.shape
        heads = change.low_rank(QKV, x, self.qkv(x)).view(tokens, 3, self.heads, width // self.heads)
        query, key, value = heads.unbind(1)
        mixed = varlen_attn(query, key, value, packing.starts, packing.starts, packing.width, packing.width)
        assert isinstance(mixed, Tensor)
        flat = mixed.reshape(tokens, width)
        return change.low_rank("output", flat, self.output(flat))

    def _mix_with_dropout(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """The same as `_mix`, step by step, with dropout on the probabilities."""
        rows, heads, tokens, size = query.shape
        flat = rows * heads
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        bias = bias[:, None, None, :].expand(rows, heads, 1, tokens).reshape(flat, 1, tokens)
        query, key, value = (part.reshape(flat, tokens, size) for part in (query, key, value))
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5)  # (R * H, T, T)
        kept: Tensor = self.dropout(scores.softmax(-1))
        return torch.bmm(kept, value).view(rows, heads, tokens, size)


def reads_ragged() -> bool:
    """Whether this torch has attention over rows of any length."""
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Values (R, H, T, d) mixed over the real tokens of each row."""
    if query.device.type == "cpu" and torch.is_grad_enabled():
        mixed: Tensor = _Mixed.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        return mixed
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])


class _Mixed(torch.autograd.Function):
    """The fused kernel of torch forward, the steps written out backward, in float32 or better.

    The backward pass of the fused CPU kernel makes probabilities of the log-sum-exp of the scores. Beside large scores that
    number has lost the sum: at scores of 1e6 its gradients are wrong by half, without a word.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *parts, mask = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            query, key, value = leaves = [part.detach().to(wide).requires_grad_() for part in parts]
            scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
            mixed = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1) @ value
        gradients = torch.autograd.grad(mixed, leaves, gradient.to(wide))
        return *(made.to(part.dtype) for made, part in zip(gradients, parts, strict=True)), None
