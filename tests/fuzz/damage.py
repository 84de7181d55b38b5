"""Damages to files of the cache: `damaged` makes one, of a kind that is drawn. Knows nothing of what the files mean."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

Damage = Callable[[Path, list[Path], random.Random], None]


def damaged(file: Path, others: list[Path], draw: random.Random) -> str:
    """Do one thing to `file`; `others` are files of the same kind of entry. What was done.

    A file that a process has mapped is replaced, never written into: that would end the process, whoever wrote it.
    """
    name = draw.choice(list(DAMAGES))
    DAMAGES[name](file, others, draw)
    return name


def _replace(file: Path, content: bytes) -> None:
    aside = file.with_name(uuid4().hex)
    aside.write_bytes(content)
    os.replace(aside, file)


def cut(file: Path, others: list[Path], draw: random.Random) -> None:
    """Only the first bytes are left."""
    content = file.read_bytes()
    _replace(file, content[: draw.randrange(max(1, len(content)))])


def emptied(file: Path, others: list[Path], draw: random.Random) -> None:
    """No bytes are left."""
    _replace(file, b"")


def zeroed(file: Path, others: list[Path], draw: random.Random) -> None:
    """All bytes are zero, as after power loss on some file systems."""
    _replace(file, bytes(file.stat().st_size))


def block_zeroed(file: Path, others: list[Path], draw: random.Random) -> None:
    """Some bytes are zero."""
    content = bytearray(file.read_bytes())
    first = draw.randrange(max(1, len(content)))
    last = draw.randint(first, len(content))
    content[first:last] = bytes(last - first)
    _replace(file, bytes(content))


def bit_flipped(file: Path, others: list[Path], draw: random.Random) -> None:
    """One bit is another."""
    content = bytearray(file.read_bytes() or b"\0")
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    _replace(file, bytes(content))


def grown(file: Path, others: list[Path], draw: random.Random) -> None:
    """More bytes are there."""
    _replace(file, file.read_bytes() + draw.randbytes(draw.randint(1, 64)))


def deleted(file: Path, others: list[Path], draw: random.Random) -> None:
    """It is not there."""
    file.unlink()


def entry_deleted(file: Path, others: list[Path], draw: random.Random) -> None:
    """Its whole entry is not there."""
    shutil.rmtree(file.parent) if (file.parent / "sums.json").exists() else file.unlink()


def swapped(file: Path, others: list[Path], draw: random.Random) -> None:
    """It holds what another file of the same name holds, and the other way round."""
    alike = [path for path in others if path != file and (path.name == file.name or path.parent == file.parent)]
    other = draw.choice(alike or others)
    mine, theirs = file.read_bytes(), other.read_bytes()
    _replace(file, theirs)
    _replace(other, mine)


def entry_swapped(file: Path, others: list[Path], draw: random.Random) -> None:
    """Its whole entry has changed names with another one."""
    if not (file.parent / "sums.json").exists():
        swapped(file, others, draw)
        return
    other = draw.choice([path.parent for path in others])
    if other == file.parent:
        return
    aside = file.parent.with_name(uuid4().hex)
    file.parent.rename(aside)
    other.rename(file.parent)
    aside.rename(other)


def folder_instead(file: Path, others: list[Path], draw: random.Random) -> None:
    """A folder has its name."""
    file.unlink()
    file.mkdir()


def link_instead(file: Path, others: list[Path], draw: random.Random) -> None:
    """It is a link to another file, or to none."""
    other = draw.choice([*others, Path("/nowhere")])
    if other != file:
        file.unlink()
        file.symlink_to(other)


def pipe_instead(file: Path, others: list[Path], draw: random.Random) -> None:
    """It is a pipe that nobody writes to."""
    file.unlink()
    os.mkfifo(file)


def file_instead(file: Path, others: list[Path], draw: random.Random) -> None:
    """A file has the name of its entry."""
    entry_deleted(file, others, draw)
    (file.parent if not file.parent.exists() else file).write_bytes(b"no entry")


DAMAGES: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        *(cut, emptied, zeroed, block_zeroed, bit_flipped, grown, deleted, entry_deleted, swapped, entry_swapped),
        *(folder_instead, link_instead, pipe_instead, file_instead),
    )
}
