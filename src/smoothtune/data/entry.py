"""Entries of the cache: folders that are written aside and renamed when they are whole. Knows nothing of what they hold."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smoothtune.files import WriteError


@contextmanager
def aside(cache: Path) -> Iterator[Path]:
    """An empty folder in `cache` to fill; `settle` gives it its name, and without that it is removed at the end.

    Every `OSError` inside counts as one of writing and becomes a `WriteError` that names the cache: what else is read
    there must raise errors of its own.
    """
    folder = cache / f"{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = str(error) if error.errno is None else os.strerror(error.errno)
        what = f"cannot be written: {reason}; free space or choose another cache with XDG_CACHE_HOME"
        raise WriteError(f"{cache}: {what}") from None


def settle(written: Path, entry: Path) -> None:
    """Rename the folder `written` to `entry`; where another process was first, its entry stays: it is as good."""
    try:
        written.rename(entry)
    except OSError:
        if not entry.is_dir():
            raise
