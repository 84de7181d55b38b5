"""Entries of the cache: folders that are written aside and renamed when they are whole. Knows nothing of what they hold."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(cache: Path) -> Iterator[Path]:
    """An empty folder in `cache` to fill; `settle` gives it its name, and without that it is removed at the end."""
    folder = cache / f"{uuid.uuid4().hex}.part"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(written: Path, entry: Path) -> None:
    """Rename the folder `written` to `entry`; where another process was first, its entry stays: it is as good."""
    try:
        written.rename(entry)
    except OSError:
        if not entry.is_dir():
            raise
