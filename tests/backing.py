"""Tells where the numbers of an array are."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def backed_by_a_file(array: np.ndarray) -> bool:
    """Whether the numbers of an array lie in a mapped file (also one that has lost its name since)."""
    place = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, inode = line.split(maxsplit=5)[:5]
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= place < last:
            return inode != "0"
    return False
