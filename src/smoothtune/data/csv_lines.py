"""Decoded lines for `csv.reader`, which can be given back: a quote may turn out to be text. Knows nothing of columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from smoothtune.data.values import is_unicode


class CsvLines:
    """Texts of lines; `taken` are those of the record under way, `last` is the number of the last line, as its reader says.

    `broken` is the place in `taken` of the first line with a NUL or bytes not in UTF-8, None without one. Such bytes become
    lone surrogates, so that the quotes and separators of the line still count. A record has at most `most` characters.
    """

    def __init__(self, raw: Iterator[bytes], most: int) -> None:
        self._raw = raw
        self._most = most
        self._back: list[str] = []
        self._size = 0
        self.taken: list[str] = []
        self.last = 0
        self.broken: int | None = None

    @property
    def first(self) -> int:
        """The number of the record's first line, of the next line where none is taken."""
        return self.last - len(self.taken) + 1

    def begin(self) -> None:
        """A new record begins."""
        self.taken.clear()
        self._size, self.broken = 0, None

    def give_back(self) -> None:
        """Let all lines of the record but the first be read again, by a new iterator."""
        self._back += reversed(self.taken[1:])
        self.last = self.first

    def __iter__(self) -> Iterator[str]:
        while self._back:
            text = self._back.pop()
            self._take(text, broken="\0" in text or not is_unicode(text))
            yield text
        taken = self.taken
        for raw in self._raw:
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                text = raw.decode(errors="surrogateescape")
                self._take(text, broken=True)
            else:
                if taken or "\0" in text:
                    self._take(text, broken="\0" in text)
                else:
                    taken.append(text)
            yield text

    def _take(self, text: str, *, broken: bool) -> None:
        if self.taken:
            self._size += len(text)
            if self._size > self._most:
                self._back.append(text)
                raise csv.Error("unexpected end of data")
        if broken and self.broken is None:
            self.broken = len(self.taken)
        self.taken.append(text)


def fields_as_text(line: str, delimiter: str) -> Sequence[str]:
    """The fields of a line where quotes are text; none where it cannot be read so."""
    text = line.removesuffix("\n").removesuffix("\r")
    return () if "\r" in text or "\0" in text or not is_unicode(text) else text.split(delimiter)
