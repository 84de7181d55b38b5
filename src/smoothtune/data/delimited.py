"""A streaming reader of TSV and CSV files that knows line numbers (RFC 4180 quoting, UTF-8). Knows nothing of labels.

Memory does not grow with the file: a field ends at the `csv` module's limit (131,072 characters), a line at 16 MiB.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from smoothtune.data.source import Flaw, Record

LINE_LIMIT = 1 << 24
_BOM = b"\xef\xbb\xbf"
_LONG_NAME = 200
_NAMES_SHOWN = 30
_NAMES_COMPARED = 1_000
_QUOTES = "put quotes around the field and double the quotes inside it"


class LineTooLongError(ValueError):
    """A physical line is longer than `LINE_LIMIT` bytes: the file is hardly text."""


def raw_lines(path: Path, file: BinaryIO | None = None) -> Iterator[bytes]:
    r"""The lines of a file with their ends, split at \n alone; a byte-order mark at the start is dropped.

    With `file`, the file at `path` is open already. Raises `LineTooLongError`.
    """
    with nullcontext(file) if file is not None else path.open("rb") as stream:
        for number, raw in enumerate(iter(partial(stream.readline, LINE_LIMIT), b"")):
            if len(raw) == LINE_LIMIT and not raw.endswith(b"\n"):
                raise LineTooLongError(f"a line is longer than {LINE_LIMIT >> 20} MiB")
            text = raw if number else raw.removeprefix(_BOM)  # no seeking: the file may be a pipe
            if text:
                yield text


class _Lines:
    """Decoded lines for `csv.reader`. `dirty` is the first line since the last reset with a NUL or bytes not in UTF-8.

    Bad bytes become lone surrogates, so that the quotes and separators of the line still count.
    """

    def __init__(self, raw: Iterator[bytes]) -> None:
        self._raw = raw
        self.dirty = 0

    def __iter__(self) -> Iterator[str]:
        for number, raw in enumerate(self._raw, start=1):
            try:
                line = raw.decode()
            except UnicodeDecodeError:
                line = raw.decode(errors="surrogateescape")
                self.dirty = self.dirty or number
            if "\0" in line:
                self.dirty = self.dirty or number
            yield line


def read_delimited(
    path: Path, columns: Sequence[str], delimiter: str, file: BinaryIO | None = None
) -> Iterator[Record | Flaw]:
    """The `columns` of each row, and a `Flaw` for each row that cannot be read; reading goes on behind it.

    The first line names the columns. Empty lines are skipped. After a flaw of the header, an endless line or a quote
    that is never closed nothing follows.
    """
    lines = _Lines(raw_lines(path, file))
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except (csv.Error, LineTooLongError) as error:
        yield Flaw("file", 1, f"the header cannot be read ({error}); write one line of column names in UTF-8")
        return
    flaws = _bytes_flaws(lines, header) if lines.dirty else header_flaws(header, columns, line=1)
    if flaws:
        yield from flaws
        return
    yield from _rows(reader, lines, header, columns)


def _rows(reader: Any, lines: _Lines, header: list[str], columns: Sequence[str]) -> Iterator[Record | Flaw]:
    pick = _picker([header.index(column) for column in columns])
    width = len(header)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except LineTooLongError:
            yield Flaw("file", first, f"the line is longer than {LINE_LIMIT >> 20} MiB; is this a text file?")
            return
        except csv.Error as error:
            flaw = _csv_flaw(error, first, reader.line_num)
            yield flaw
            if flaw.kind == "open quote":
                return
            lines.dirty = 0
            continue
        if lines.dirty:
            yield _byte_flaw(lines.dirty, row, header)
            lines.dirty = 0
        elif len(row) == width:
            yield Record(first, pick(row))
        elif row:
            yield Flaw("wrong number of fields", first, _width_text(row, header))


def _picker(places: list[int]) -> Callable[[list[str]], tuple[str, ...]]:
    if len(places) == 1:
        return lambda row: (row[places[0]],)
    return itemgetter(*places)


def _csv_flaw(error: csv.Error, first: int, last: int) -> Flaw:
    text = str(error)
    if "unexpected end" in text:
        return Flaw(
            "open quote", first, "the record begins a quoted field that is never closed; close or double its quote"
        )
    if "field limit" in text and last > first:
        what = f"a quoted field that begins here is still open at line {last}; close or double its quote"
        return Flaw("open quote", first, what)
    if "field limit" in text:
        return Flaw("too long", first, f"a field is longer than {csv.field_size_limit():,} characters; shorten it")
    if "new-line character" in text:
        return Flaw("bad line end", first, f"a carriage return stands inside a field without quotes; {_QUOTES}")
    return Flaw("bad quotes", first, f"text follows a closing quote ({text}); {_QUOTES}")


def _width_text(row: list[str], header: list[str]) -> str:
    text = f"{len(row)} field{'' if len(row) == 1 else 's'} where the header has {len(header)}"
    if len(row) < len(header):
        return f"{text}: nothing stands in column {short(header[len(row)])}"
    extra = f"{row[len(header)][:40]!r} stands after the last column, {short(header[-1])}"
    return f"{text}: {extra}; quote fields that hold separators"


def _byte_flaw(line: int, row: list[str], header: list[str]) -> Flaw:
    for number, value in enumerate(row):
        for place, character in enumerate(value, start=1):
            if character == "\0" or "\udc80" <= character <= "\udcff":
                column = f"column {short(header[number])}" if number < len(header) else f"field {number + 1}"
                return Flaw(*_byte_text(line, column, place, character))
    raise AssertionError(f"line {line} was marked without a cause")


def _byte_text(line: int, column: str, place: int, character: str) -> tuple[str, int, str]:
    if character == "\0":
        return "NUL byte", line, f"{column} has a NUL byte (0x00) at character {place}; remove it"
    byte = f"0x{ord(character) - 0xDC00:02X}"
    return (
        "not UTF-8",
        line,
        f"{column} has byte {byte} at character {place}, which is not UTF-8; save the file as UTF-8",
    )


def _bytes_flaws(lines: _Lines, header: list[str]) -> list[Flaw]:
    flaw = _byte_flaw(lines.dirty, header, [])
    return [Flaw("file", flaw.line, f"the header is not UTF-8 text: {flaw.what}")]


def header_flaws(header: Sequence[str], columns: Sequence[str], *, line: int = 0) -> list[Flaw]:
    """What keeps a table with these column names from being read: none at all, one twice, or a wanted one missing.

    `line` is where the names stand, 0 in files that are not made of lines.
    """
    if not any(header):
        return [Flaw("file", 0, "is empty, or its first line is; the first line must name the columns")]
    twice = sorted(name for name, count in Counter(header).items() if name and count > 1)[:_NAMES_SHOWN]
    flaws = [
        Flaw("file", line, f"column {short(name)} stands more than once in the header; rename one") for name in twice
    ]
    return flaws + [Flaw("missing column", line, missing_text(name, header)) for name in columns if name not in header]


def missing_text(name: str, present: Sequence[str]) -> str:
    """Says that `name` is not among `present`, and which near name may be meant."""
    more = f" and {len(present) - _NAMES_SHOWN:,} more" if len(present) > _NAMES_SHOWN else ""
    text = f"has no column {short(name)}; its columns are: {', '.join(map(short, present[:_NAMES_SHOWN]))}{more}"
    apart = [word for word, mark in (("tab", "\t"), ("comma", ","), ("semicolon", ";")) if mark in "".join(present)]
    if len(present) == 1 and apart:
        return f"{text}; is the file separated by a {apart[0]}?"
    lowered = {other.strip().lower(): other for other in present[:_NAMES_COMPARED] if len(other) <= _LONG_NAME}
    near = get_close_matches(name.strip().lower()[:_LONG_NAME], lowered, n=1, cutoff=0.75)
    return f"{text}; did you mean {lowered[near[0]]!r}?" if near else text


def short(name: str) -> str:
    """The name of a column in quotes, its end left out where it is long."""
    return repr(name) if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]!r}..."
