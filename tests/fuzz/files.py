"""A folder as a value: its files by name, and what may stand in a file's place. Knows nothing of what the files mean."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    to: str


@dataclass(frozen=True, slots=True)
class Pipe:
    """A named pipe that nobody writes to: who opens it to read waits for ever."""


@dataclass(frozen=True, slots=True)
class Folder:
    """An empty folder."""


Entry = bytes | Link | Pipe | Folder
Files = dict[str, Entry]


def read_files(folder: Path) -> Files:
    """The files of a folder by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def write_files(files: Files, folder: Path) -> None:
    """A new folder of these files, instead of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, entry in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, bytes):
            path.write_bytes(entry)
        elif isinstance(entry, Link):
            path.symlink_to(entry.to)
        elif isinstance(entry, Pipe):
            os.mkfifo(path)
        else:
            path.mkdir()
