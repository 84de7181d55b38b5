"""Named random streams: every draw is a function of (seed, stage, step, rank, pass, place).

A pass through the model runs inside `drawing(Pass(...))`; each dropout module asks for the mask of its own place. Running
the same `Pass` again gives the same masks, so a pass can be replayed and a run resumed from numbers alone. This module
knows nothing of models; `place` is any text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from smoothtune.runtime.forking import ProcessLock
from smoothtune.runtime.kernels.layers import drawn_mask

_LEVELS = 1 << 16
# torch's global generators are those of all threads: whoever seeds one, or draws from it in order, holds this.
GLOBAL_GENERATORS = ProcessLock()


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


def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Two contexts: what is drawn in the first, of the pass under way, is drawn again in the second, which moves no statistics.

    The second may be entered when the pass is over. Raises `RuntimeError` outside a pass.
    """
    active = _active.get()
    if active is None:
        raise RuntimeError("again: there is no pass under way; call it inside drawing(...)")
    return nullcontext(), _replayed(replace(active.current, update_statistics=False), dict(active.draws))


@contextmanager
def _replayed(current: Pass, drawn: dict[str, int]) -> Iterator[None]:
    token = _active.set(_Active(current, drawn))
    try:
        yield
    finally:
        _active.reset(token)


def stream_of(place: str) -> int:
    """The number of the next stream of `place` in the pass under way; outside a pass, drawn from the global generator."""
    active = _active.get()
    if active is None:
        return int(torch.randint(2**63 - 1, ()).item())
    return active.number(place)


def keep_mask(place: str, shape: torch.Size, rate: float, device: torch.device) -> Tensor:
    """A bool tensor of `shape`, True with probability 1 - `rate`, from the next stream of `place` (see `stream_of`).

    On the CPU the mask is made of 16-bit draws, so `rate` is rounded to a multiple of 1/65536; the draws are independent.
    """
    number = stream_of(place)
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(number)
        return torch.rand(shape, device=device, generator=generator) >= rate
    width = shape[-1] if shape else 1
    rows = shape.numel() // width if width else 0
    kept = drawn_mask(number, rate, rows, width)
    if kept is None:
        kept = torch.from_numpy(draws(number, rows, width) >= round(rate * _LEVELS))
    return kept.view(shape)


def drawn(stream: int, like: Tensor, distribution: Literal["normal", "uniform"]) -> Tensor:
    """float32 draws of stream `stream`, of the shape of `like`: standard normal, or uniform in [-1, 1)."""
    generator = torch.Generator(like.device).manual_seed(stream)
    found = torch.empty(like.shape, device=like.device)
    if distribution == "normal":
        return found.normal_(generator=generator)
    return found.uniform_(-1, 1, generator=generator)


def draws(stream: int, rows: int, width: int) -> np.ndarray:
    """The 16-bit draws of a (rows, width) tensor in stream `stream`, uint16.

    A counter-based generator: two rounds of the finaliser of MurmurHash3 (Appleby), keyed by the halves of the stream's
    number, over the number of a 32-bit word. A row takes ceil(width / 32) blocks of 16 words, whose low halves are
    columns 0..15 of the block and whose high halves are columns 16..31. The kernels make the same draws.
    """
    blocks = -(-width // 32)
    with np.errstate(over="ignore"):
        number = np.arange(rows * blocks * 16, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(stream & 0xFFFFFFFF)
        word = _mixed(_mixed(number) ^ np.uint32(stream >> 32)).reshape(rows, blocks, 1, 16)
    halves = np.concatenate([word & np.uint32(0xFFFF), word >> np.uint32(16)], axis=2).astype(np.uint16)
    return halves.reshape(rows, blocks * 32)[:, :width]


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    mixed: np.ndarray = x ^ (x >> np.uint32(16))
    return mixed


@contextmanager
def seeded_globally(place: str, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator from the stream of `place` inside, and restore it after.

    For modules we did not write, which draw from the global generator: one thread at a time. Outside a pass nothing is done.
    """
    active = _active.get()
    if active is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with GLOBAL_GENERATORS, torch.random.fork_rng(devices=devices):
        torch.manual_seed(active.number(place))
        yield
