"""What a task's LoRA and adapters add in prediction, packed for the tile unit once per change.

Knows nothing of batches or encoders. A size between that is no multiple of 32 is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from smoothtune.nn.adapters import Bottleneck
from smoothtune.nn.lora import Lora, LowRank
from smoothtune.runtime.kernels import bottleneck, gemm


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was packed, of which tensors in which versions."""

    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]
    made: bottleneck.Bottleneck

    def holds(self, sources: tuple[Tensor, ...]) -> bool:
        for mine, version, given in zip(self.sources, self.versions, sources, strict=True):
            if mine is not given or given._version != version:
                return False
        return True


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def serves(x: Tensor, into: Tensor, width: int) -> bool:
    """Whether the kernel can change `width` features of `into` (N, M) by `x` (N, K): in prediction, on tiles."""
    if not torch.is_inference_mode_enabled() or not x.dtype == into.dtype == torch.bfloat16:
        return False
    whole = x.shape[1] % gemm.BLOCK == 0 and width % gemm.BLOCK == 0
    return whole and x.is_contiguous() and into.is_contiguous() and bottleneck.available()


def low_rank(part: LowRank) -> bottleneck.Bottleneck:
    """The change of one product."""
    return _of(part, (part.a, part.b), lambda: _scaled(part.a.detach(), part.scale * part.b.detach()))


def adapter(module: Bottleneck, bias: Tensor) -> bottleneck.Bottleneck:
    """An adapter that reads y + `bias` (D,), of the y (N, D) without it: W_down `bias` is part of its own bias."""
    down, up = module.down, module.up
    sources = (down.weight, down.bias, up.weight, up.bias, bias)
    return _of(module, sources, lambda: _folded(*(source.detach().float() for source in sources)))


def drops(lora: Lora) -> bool:
    """Whether dropout is at work in any part."""
    return lora.training and lora.options.dropout > 0


def _of(
    owner: nn.Module, sources: tuple[Tensor, ...], make: Callable[[], bottleneck.Bottleneck]
) -> bottleneck.Bottleneck:
    last = _kept.get(owner)
    if last is not None and last.holds(sources):
        return last.made
    made = make()
    if not any(source.is_inference() for source in sources):  # those have no version to tell a change by
        _kept[owner] = _Kept(sources, tuple(source._version for source in sources), made)
    return made


def _scaled(a: Tensor, b: Tensor) -> bottleneck.Bottleneck:
    rank, inputs = a.shape
    down, up = torch.zeros(_whole(rank), inputs), torch.zeros(len(b), _whole(rank))
    down[:rank], up[:, :rank] = a, b
    return bottleneck.Bottleneck(gemm.pack(down), gemm.pack(up))


def _folded(down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, bias: Tensor) -> bottleneck.Bottleneck:
    size, width = down.shape
    lower, upper, inner = torch.zeros(_whole(size), width), torch.zeros(width, _whole(size)), torch.zeros(_whole(size))
    lower[:size], upper[:, :size], inner[:size] = down, up, down_bias + down @ bias
    return bottleneck.Bottleneck(gemm.pack(lower), gemm.pack(upper), inner, up_bias.clone(), gelu=True)


def _whole(size: int) -> int:
    return -(-size // gemm.BLOCK) * gemm.BLOCK
