"""Reading what strangers wrote: plain files of bounded size inside their own folder, JSON and TOML of bounded depth.

Whatever is wrong is an `OSError` or a `ValueError`. Knows nothing of what the files mean: callers name them and say what to do.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from smoothtune.system import NO_WAIT

TEXT_LIMIT = 1 << 24  # bytes
_DEPTH = 64
_DOTS = 200
_SHOWN = 300
# What other libraries raise at input that they did not expect; none of it is a mistake of ours when a stranger's file went in.
FOREIGN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError),
)


class UnreadableError(ValueError):
    """Why a stranger's file is not read; the message neither names the file nor begins a sentence."""


def check_plain(path: Path, *, inside: Path | None = None) -> None:
    """Raise `UnreadableError` for a pipe, a device or a folder, and `OSError` for what is not there.

    With `inside`, a link may not lead out of that folder, except from a snapshot of the Hub's cache to its blobs.
    """
    if inside is not None and not _stays(path, inside):
        raise UnreadableError("is a link that leads out of its folder; copy the file itself there")
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableError("is a pipe, a device or a folder; put a plain file there")


def _stays(path: Path, folder: Path) -> bool:
    target, root = (Path(os.path.realpath(name)) for name in (path, folder))
    caches = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    return any(target.is_relative_to(place) for place in (root, *caches))


def read_text(path: Path, *, inside: Path | None = None, most: int = TEXT_LIMIT) -> str:
    """The text of a plain UTF-8 file of at most `most` bytes, see `check_plain`. Raises `OSError` and `ValueError`."""
    check_plain(path, inside=inside)
    with open(path, "rb", opener=_without_waiting) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UnreadableError(f"is larger than {most / (1 << 20):.3g} MiB, the most that is read")
    return content.decode()


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | NO_WAIT)  # a pipe that has taken the file's place would keep us for ever


def parse_json(text: str, *, finite: bool = False) -> Any:
    """The value of a JSON text: keys once in a table, whole numbers of 64 bits, at most 64 levels, whole characters.

    NaN and Infinity, which Python writes, are read unless `finite`. Raises `ValueError`.
    """
    options: dict[str, Any] = {"parse_constant": _no_number} if finite else {}
    try:
        found = json.loads(text, object_pairs_hook=_table, **options)
    except RecursionError:
        raise _too_deep() from None
    _check(found)
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text: whole numbers of 64 bits, at most 64 levels. Raises `ValueError`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _DOTS and not line.lstrip().startswith("#"):  # tomllib takes their square in time
            raise UnreadableError(f"line {number} has more than {_DOTS} full stops; write long lists on several lines")
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    _check(found)
    return found


def reason_of(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters; its kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs if len(pairs) > len(dict(pairs)) else ():
        if key in found:
            raise UnreadableError(f"the key {key[:40]!r} stands twice in one table; remove one")
        found[key] = value
    return dict(pairs)


def _no_number(name: str) -> float:
    raise UnreadableError(f"{name} is no JSON number")


def _check(value: Any) -> None:
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEPTH:
            raise _too_deep()
        if isinstance(item, dict):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            waiting += [(part, depth + 1) for part in item]
        elif isinstance(item, int):
            _check_size(item)
        elif isinstance(item, str) and not item.isascii():
            _check_characters(item)


def _check_size(number: int) -> None:
    if not -(1 << 63) <= number < 1 << 63:
        raise UnreadableError("holds a whole number of more than 64 bits")


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnreadableError("holds half of a surrogate pair; write whole characters") from None


def _too_deep() -> UnreadableError:
    return UnreadableError(f"is nested more than {_DEPTH} levels deep")
