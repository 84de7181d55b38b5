"""Tells where the numbers of an array are."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def backed_by_a_file(array: np.ndarray) -> bool:
    """Whether an array is a view of a mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)
