"""Device, threads and compute dtype of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from threadpoolctl import threadpool_limits

from smoothtune.errors import UsageError
from smoothtune.runtime.forking import threads_allowed, watch_forks
from smoothtune.runtime.processes import ALONE, Processes
from smoothtune.system import cores


def pick_device(name: str, processes: Processes = ALONE) -> torch.device:
    """`auto` is a GPU if there is one. Raises `UsageError` when a GPU is asked for and there is none.

    Of several `processes`, each of a machine has a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not processes.alone and name != "cpu":
        return _own_gpu(name, processes)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"runtime.device: got {name!r}, but torch finds {found} CUDA devices; use `auto` or `cpu`")
    return device


def _own_gpu(name: str, processes: Processes) -> torch.device:
    found = torch.cuda.device_count()
    if name != "cuda":
        raise UsageError(f"runtime.device: got {name!r} for {processes.world} processes; use `auto`, `cuda` or `cpu`")
    if processes.local_world > found:
        raise UsageError(
            f"runtime.device: {processes.local_world} processes on this machine, but torch finds {found} CUDA devices; "
            f"start as many processes as there are, or use `cpu`"
        )
    return torch.device("cuda", processes.local_rank)


def set_threads(count: int | None, processes: Processes = ALONE) -> int:
    """Use `count` processor threads, by default one per core this process may use (OMP_NUM_THREADS counts).

    Several `processes` of one machine share its cores. The 1 that `torchrun` sets for each of them counts as unset. A
    forked child has 1, whatever is asked.
    """
    watch_forks()
    if count is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        set_by_launcher = asked == "1" and not processes.alone and "TORCHELASTIC_RUN_ID" in os.environ
        if asked.isdigit() and int(asked) > 0 and not set_by_launcher:
            count = int(asked)
        else:
            count = max(1, cores() // processes.local_world)
    count = threads_allowed(count)
    torch.set_num_threads(count)
    return count


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Let numpy and scipy use `count` threads inside."""
    with threadpool_limits(count, user_api="blas"):
        yield


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (AMX, AVX512-BF16, or a GPU that has it)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_dtype(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The dtype of matrix products: `auto` is bfloat16 where the hardware has it."""
    if precision == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Matrix products inside run in `dtype`; parameters stay float32."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


def keep_memory_mapped() -> None:
    """Tell glibc to keep freed blocks instead of returning them: large gradients are otherwise faulted in at each step."""
    import ctypes
    import ctypes.util

    name = ctypes.util.find_library("c")
    if name is None:
        return
    libc = ctypes.CDLL(name)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
