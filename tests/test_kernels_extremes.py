"""Every kernel, forward and backward, at scales 1 to 1e4, with rows of 512 tokens, of one and of none, against float64.

An error may be three times that of plain torch, or a rounding of the kernel's numbers; a case says where another bound is right.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from smoothtune.runtime.kernels import building
from tests.extremes import adamw, attention, grid, layers, tiles  # noqa: F401  each adds its cases
from tests.extremes.cases import CASES, SCALES, Case, listening

# What computes nothing: questions about the processor and the room that a kernel needs.
QUESTIONS = {"gemm_available", "grid_available", "grid_float_available", "grid_workspace"}
TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
EACH = [pytest.param(case, dtype, id=f"{case.run.__name__}-{TYPES[dtype]}") for case in CASES for dtype in case.dtypes]


def names_of(case: Case, dtype: torch.dtype) -> set[str]:
    return {name.format(T=TYPES[dtype]) for name in case.names}


def functions() -> set[str]:
    """The names of all functions of all libraries."""
    names: set[str] = set()
    for source in Path(building.SOURCES).rglob("*.cpp"):
        found = re.findall(r"\bAPI \w+\*? (\w+(?:##T)?)\(", source.read_text())
        assert found, source
        names |= {name.replace("##T", suffix) for name in found for suffix in TYPES.values()}
    return names


def test_every_function_of_every_kernel_has_a_case() -> None:
    covered = {name for case in CASES for dtype in case.dtypes for name in names_of(case, dtype)}
    assert len(functions()) > 35
    assert functions() - QUESTIONS == covered


@pytest.mark.parametrize(("case", "dtype"), EACH)
@pytest.mark.parametrize("scale", SCALES)
def test_errors_are_no_more_than_those_of_torch(case: Case, dtype: torch.dtype, scale: float) -> None:
    if not case.available(dtype):
        pytest.skip("no kernel for this processor, or no C++ compiler")
    with listening(case.loaded(dtype), names_of(case, dtype)) as heard:
        results = list(case.run(scale, dtype))
    assert heard == names_of(case, dtype)
    assert results
    for result in results:
        assert result.exact.dtype == torch.float64, result.name
        assert result.kernel.shape == result.exact.shape, result.name
        assert result.kernel.isfinite().all(), result.name
        error, allowed = result.error(result.kernel), result.allowed()
        assert error <= allowed, f"{result.name}: {error:.2e}, more than {allowed:.2e}"
