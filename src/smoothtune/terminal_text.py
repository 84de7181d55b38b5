"""Text of others made fit for a terminal: what it would obey, or show as nothing, is written out. Knows nothing of commands."""

from __future__ import annotations

import unicodedata
from typing import IO, Any, Protocol

# Control characters, halves of pairs, line separators, and invisible ones such as overrides of the writing direction.
_ESCAPED = ("Cc", "Cs", "Zl", "Zp", "Cf")
_JOINERS = "\u200c\u200d"  # Persian and emoji need them


class Writable(Protocol):
    """What text can be written to."""

    def write(self, text: str, /) -> Any:
        """Write `text`."""
        ...

    def flush(self) -> None:
        """Give out what was written."""
        ...


def printable(text: str, *, lines: bool = False) -> str:
    """The text with what a terminal would obey written out, as in a Python string; with `lines`, line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(map(_shown_in_lines if lines else _shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) in _ESCAPED and character not in _JOINERS:
        return ascii(character)[1:-1]
    return character


def _shown_in_lines(character: str) -> str:
    return character if character in "\n\t" else _shown(character)


class _Shown:
    """A terminal's stream on which nothing but line ends and tabs is obeyed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str, /) -> None:
        self._stream.write(printable(text, lines=True))

    def flush(self) -> None:
        self._stream.flush()


def shown(stream: IO[str]) -> Writable:
    """`stream` itself where programs or files read it, which get data as they are; on a terminal one that writes them out."""
    return _Shown(stream) if stream.isatty() else stream
