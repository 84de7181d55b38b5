"""What a case of a kernel is, and how far what it gives may be from float64. Knows nothing of any kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCALES = (1.0, 10.0, 100.0, 1e3, 1e4)
FACTOR = 3.0
DTYPES = (torch.float32, torch.bfloat16)
# One rounding of a number: what a sum in another order may always differ by.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


class Result(NamedTuple):
    """One tensor by the kernel, by plain torch and in float64.

    `size` is the length that errors are measured by: that of what was added up, where it may cancel; else that of `exact`.
    `bound` stands for torch's error where that is no measure.
    """

    name: str
    kernel: Tensor
    plain: Tensor
    exact: Tensor
    size: float | None = None
    bound: float | None = None

    def error(self, found: Tensor) -> float:
        """The distance from float64, relative to the size."""
        size = float(self.exact.norm()) if self.size is None else self.size
        return float((found.double() - self.exact).norm()) / max(size, 1e-300)

    def allowed(self) -> float:
        """`FACTOR` times torch's error, or one rounding of the kernel's numbers if that is more."""
        rounding = ROUNDING[self.kernel.dtype]
        return FACTOR * max(self.error(self.plain) if self.bound is None else self.bound, rounding)


Run = Callable[[float, torch.dtype], Iterable[Result]]


@dataclass(frozen=True)
class Case:
    """`run(scale, dtype)` calls the C++ functions `names` of the library `loaded(dtype)`, where `available(dtype)`."""

    names: tuple[str, ...]
    loaded: Callable[[torch.dtype], ctypes.CDLL | None]
    run: Run
    available: Callable[[torch.dtype], bool]
    dtypes: tuple[torch.dtype, ...]


CASES: list[Case] = []


def case(
    *names: str,
    loaded: Callable[[torch.dtype], ctypes.CDLL | None],
    available: Callable[[torch.dtype], bool],
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Callable[[Run], Run]:
    """Adds a function to the cases. A name may hold `{T}`, which stands for `float` and `bf16`."""

    def add(run: Run) -> Run:
        CASES.append(Case(names, loaded, run, available, dtypes))
        return run

    return add


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


class _Heard:
    """A C++ function that leaves its name in a set when it is called; what is set on it is set on the function."""

    def __init__(self, function: Any, heard: set[str]) -> None:
        vars(self).update(function=function, heard=heard)

    def __call__(self, *arguments: Any) -> Any:
        self.heard.add(self.function.__name__)
        return self.function(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.function, name, value)

    heard: set[str]
    function: Any


@contextmanager
def listening(loaded: ctypes.CDLL | None, names: Iterable[str]) -> Iterator[set[str]]:
    """Which of the functions `names` of a library are called inside."""
    assert loaded is not None
    heard: set[str] = set()
    functions = {name: getattr(loaded, name) for name in names}
    try:
        for name, function in functions.items():
            setattr(loaded, name, _Heard(function, heard))
        yield heard
    finally:
        for name, function in functions.items():
            setattr(loaded, name, function)
