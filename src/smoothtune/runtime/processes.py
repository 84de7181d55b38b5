"""The processes that train one run together, as `torchrun` or `accelerate launch` start them; mostly there is one.

What they tell each other goes over gloo, which notices at once when a process ends; sums of tensors on a GPU over NCCL. One
that is stopped, or whose machine vanishes, is missed by its beats (`runtime.heartbeat`).
Knows nothing of models, files or what a run is.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from smoothtune.errors import ElsewhereError, OneProcessError, SmoothtuneError, UsageError
from smoothtune.runtime import heartbeat
from smoothtune.runtime.heartbeat import Heart

_PATIENCE = timedelta(days=1)  # the first process may read data or write for long; one that ends is noticed without it
_GPU_PATIENCE = timedelta(seconds=45)  # NCCL does not notice; all come to its sums within seconds of each other
_BUCKET = 1 << 24  # numbers that are sent at once
_NO_EXIT_CODE = 1 << 10
_MEETING = {"MASTER_ADDR", "MASTER_PORT"}

_groups: dict[str, dist.ProcessGroup] = {}
_hearts: list[Heart] = []  # one, once connected by what the launcher has set


@dataclass(frozen=True, slots=True)
class Processes:
    """Process `rank` of `world`, and among the `local_world` of its machine `local_rank`. Alone, nothing here costs anything.

    One that does not `count` takes part in sums over rows with none of its own. Where another process has ended, or
    answers no more, whatever waits for it raises `OneProcessError`.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    counts: bool = True

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @property
    def launcher(self) -> str:
        """What a command for as many processes begins with."""
        if self.alone:
            return "smoothtune"
        several = "" if self.world == self.local_world else f"--nnodes {self.world // self.local_world} ... "
        return f"torchrun {several}--nproc-per-node {self.local_world} -m smoothtune"

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            self._least(0)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes the sum of those of all processes, which give the same shapes and, in all, one dtype and device.

        Every process ends with the same bits. Cost: what is sent is copied together, 2^24 numbers at a time.
        """
        if self.alone:
            return
        for bucket in _buckets(tensors):
            whole = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._sum(whole)
            for tensor, part in zip(bucket, torch.split(whole, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, with its gradient: the sum of their gradients."""
        found: Tensor = _Summed.apply(tensor, self)  # type: ignore[no-untyped-call]
        return found

    def totals(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums of numbers over all processes, which give the same keys in the same order."""
        if self.alone:
            return dict(values)
        found = torch.tensor([*values.values()], dtype=torch.float64)
        self._sum(found)
        return dict(zip(values, found.tolist(), strict=True))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag whether it is set in some process."""
        return flags if self.alone else tuple(least < 0 for least in self._least(*(-int(flag) for flag in flags)))

    def joined_rows(self, rows: np.ndarray) -> np.ndarray:
        """`rows` (N, ...) float32, of which each process has filled its own and left the others 0, from all, to the bit."""
        if self.alone:
            return rows
        bits = torch.from_numpy(rows.view(np.int32))
        self._sum(bits)
        return bits.numpy().view(np.float32)

    def of_main(self, text: str) -> str:
        """The text that the first process gives."""
        if self.alone:
            return text
        encoded = text.encode()
        (size,) = self._least(-len(encoded) if self.is_main else 0)
        found = torch.zeros(-size, dtype=torch.uint8)
        if self.is_main:
            found.copy_(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
        self._sum(found)
        return bytes(found.tolist()).decode()

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """What runs inside goes well in all processes, or ends in all: the first that failed says why, the others that it did.

        Inside, processes must not wait for each other.
        """
        failure: SmoothtuneError | None = None
        try:
            yield
        except SmoothtuneError as error:
            if self.alone:
                raise
            failure = error
        if not self.alone:
            self._tell(failure)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine runs what is inside before the others of its machine: they find it in the cache.

        Where it fails, all end as with `agreeing`.
        """
        if self.alone:
            yield
            return
        if self.local_rank > 0:
            self._tell(None)
        with self.agreeing():
            yield
        if self.local_rank == 0:
            self._tell(None)

    def _tell(self, failure: SmoothtuneError | None) -> None:
        """Exchange who has failed; raises where anybody has."""
        mine = (self.world, _NO_EXIT_CODE) if failure is None else (self.rank, failure.exit_code)
        first, code = self._least(*mine)
        if failure is not None and first == self.rank:
            raise failure
        if first < self.world:
            raise ElsewhereError(f"process {first} of {self.world} failed, and says why", code) from failure

    def _least(self, *numbers: int) -> list[int]:
        found = torch.tensor(numbers)
        with self._reaching():
            _reduce(found, dist.ReduceOp.MIN)
        least: list[int] = found.tolist()
        return least

    def _sum(self, tensor: Tensor) -> None:
        with self._reaching():
            if tensor.device.type == "cpu":
                _reduce(tensor, dist.ReduceOp.SUM)
            else:
                dist.all_reduce(tensor, group=_groups[tensor.device.type])

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises, whatever the cause
            raise OneProcessError(
                f"process {self.rank} of {self.world}: another process of this run has ended, or cannot be reached "
                f"({_reason(error)})"
            ) from None


ALONE = Processes()
_current: ContextVar[Processes] = ContextVar("smoothtune_processes", default=ALONE)


def current() -> Processes:
    """Those that compute together now."""
    return _current.get()


@contextmanager
def computing_with(processes: Processes) -> Iterator[None]:
    """`current` is `processes` inside."""
    token = _current.set(processes)
    try:
        yield
    finally:
        _current.reset(token)


def launched() -> Processes:
    """Those that the launcher has started, by its environment variables; alone without one."""
    world, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if world == 1:
        return ALONE
    return Processes(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))


@contextmanager
def together() -> Iterator[Processes]:
    """Inside, `current` are the processes that were launched, connected.

    Raises `UsageError` where they cannot know where to meet, `OneProcessError` where one does not come.
    """
    found = launched()
    if not found.alone and not (dist.is_initialized() or os.environ.keys() >= _MEETING):
        raise UsageError(
            f"WORLD_SIZE is {found.world}, but {' and '.join(sorted(_MEETING))} are not set: start with "
            "`torchrun --nproc-per-node N -m smoothtune ...`, or unset WORLD_SIZE for a single process"
        )
    if not found.alone and "cpu" not in _groups:
        with found._reaching():
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=_PATIENCE)
            _groups["cpu"] = dist.new_group(backend="gloo", timeout=_PATIENCE)
            if os.environ.keys() >= _MEETING:
                _hearts.append(_heart(found))
    with computing_with(found):
        yield found


def connect(device: torch.device) -> None:
    """Make tensors on `device` travel between the processes too; all must call this, with devices of one type."""
    if device.type != "cuda" or current().alone or "cuda" in _groups:
        return
    # An ended process must become an error, where by itself NCCL would end this one without a word.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    torch.cuda.set_device(device)
    _groups["cuda"] = dist.new_group(backend="nccl", timeout=_GPU_PATIENCE)


def _heart(processes: Processes) -> Heart:
    """Begin to beat, over a connection of its own to the store where the processes have met."""
    store, *_ = next(dist.rendezvous("env://", timeout=_PATIENCE))  # type: ignore[attr-defined]
    return Heart(store, processes.rank, processes.world, heartbeat.BEAT)


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduce a tensor on the CPU over all processes, in place."""
    group = _groups["cpu"]
    work = dist.all_reduce(tensor, operation, group=group, async_op=True)
    try:
        if _hearts:
            _hearts[0].wait_for(work)
        else:
            work.wait()
    finally:
        if not work.is_completed():
            # gloo cannot give up what is under way (its abort waits for that too, and so does the end of its group, which
            # would keep this process from ending): one reference that nobody gives back, and the group is left as it is.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes  # type: ignore[attr-defined]
        found = tensor.clone()
        processes.add_up([found])
        return found

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        found = gradient.clone()
        ctx.processes.add_up([found])  # type: ignore[attr-defined]
        return found, None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _reason(error: RuntimeError) -> str:
    """What torch says, without the place in its sources and its advice."""
    first = re.sub(r"^\[[^]]*\] ?", "", str(error).splitlines()[0])
    return first.partition(". ")[0][:160]


def _number(name: str, default: int) -> int:
    found = os.environ.get(name, "")
    return int(found) if found.isdigit() else default
