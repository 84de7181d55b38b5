"""Named random streams: every draw is a function of (seed, stage, step, rank, pass, place).

A pass through the model runs inside `drawing(Pass(...))`; each dropout module asks for the mask of its own place. Running
the same `Pass` again gives the same masks, so a pass can be replayed and a run resumed from numbers alone. This module
knows nothing of models; `place` is any text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16


def stream_number(*parts: object) -> int:
    """A 63-bit number named by `parts`; equal parts give equal numbers on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_stream(*parts: object) -> np.random.Generator:
    """A NumPy generator for the stream named by `parts`."""
    return np.random.Generator(np.random.PCG64(stream_number(*parts)))


def torch_stream(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream named by `parts`."""
    return torch.Generator(device).manual_seed(stream_number(*parts))


@dataclass(frozen=True, slots=True)
class Pass:
    """The name of one pass through the model.

    `update_statistics` tells running statistics (batch norm) whether this pass may move them: only the clean pass may.
    """

    seed: int
    stage: str
    step: int
    rank: int = 0
    name: str = "clean"
    update_statistics: bool = True

    def number(self, place: str) -> int:
        """The number of the stream of `place` in this pass."""
        return stream_number(self.seed, self.stage, self.step, self.rank, self.name, place)


@dataclass(slots=True)
class _Active:
    """A pass under way; a place that draws twice in one pass gets two streams."""

    current: Pass
    draws: dict[str, int] = field(default_factory=dict)

    def number(self, place: str) -> int:
        count = self.draws.get(place, 0)
        self.draws[place] = count + 1
        return self.current.number(f"{place}#{count}")


_active: ContextVar[_Active | None] = ContextVar("smoothtune_pass", default=None)


@contextmanager
def drawing(current: Pass) -> Iterator[None]:
    """All draws inside come from the streams of `current`."""
    token = _active.set(_Active(current))
    try:
        yield
    finally:
        _active.reset(token)


def current_pass() -> Pass | None:
    """The pass under way, or None outside `drawing`."""
    active = _active.get()
    return None if active is None else active.current


def keep_mask(place: str, shape: torch.Size, rate: float, device: torch.device) -> Tensor:
    """A bool tensor of `shape`, True with probability 1 - `rate`.

    Drawn from the stream of `place` in the pass under way (outside one: from torch's global generator). On the CPU the
    mask is made of 16-bit random integers, so `rate` is rounded to a multiple of 1/65536; the draws are independent.
    """
    active = _active.get()
    if active is None:
        return torch.rand(shape, device=device) >= rate
    number = active.number(place)
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(number)
        return torch.rand(shape, device=device, generator=generator) >= rate
    count = shape.numel()
    words = np.random.SFC64(number).random_raw((count + 3) // 4)
    bits = words.view(np.uint16)[:count]
    return torch.from_numpy(bits >= round(rate * _LEVELS)).view(shape)


@contextmanager
def seeded_globally(place: str, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator from the stream of `place` inside, and restore it after.

    For modules we did not write, which draw from the global generator. Outside a pass nothing is done.
    """
    active = _active.get()
    if active is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(active.number(place))
        yield
