"""A streaming reader of TSV and CSV files that knows line numbers (RFC 4180 quoting, UTF-8). Knows nothing of labels.

Memory does not grow with the file: a line, and a row of several lines, has at most 16 MiB.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from smoothtune.data.csv_lines import CsvLines, fields_as_text
from smoothtune.data.source import Flaw, Record, Remark

LINE_LIMIT = 1 << 24
_BOM = b"\xef\xbb\xbf"
_LONG_NAME = 200
_NAMES_SHOWN = 30
_NAMES_COMPARED = 1_000
HEADER_AGAIN = "repeats the header; was the file put together of several? remove this row"
_SEPARATORS = (
    ("tab? then call it .tsv", "\t"),
    ("comma? then call it .csv", ","),
    ("semicolon? write it with commas, and call it .csv", ";"),
)
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


def read_delimited(
    path: Path, columns: Sequence[str], delimiter: str, file: BinaryIO | None = None
) -> Iterator[Record | Flaw | Remark]:
    """The `columns` of each row, and a `Flaw` for each row that cannot be read; reading goes on behind it.

    The first line names the columns. Empty lines are skipped. After a flaw of the header or an endless line nothing
    follows. Where quotes of a TSV file do not make fields of it, they are text: then, and where a field runs over several
    lines, a `Remark` follows. Raises the process's limit of the `csv` module to that of a line.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    lines = CsvLines(raw_lines(path, file), LINE_LIMIT)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except (csv.Error, LineTooLongError) as error:
        yield Flaw("file", 1, f"the header cannot be read ({error}); write one line of column names in UTF-8")
        return
    flaws = header_flaws(header, columns, line=1) if lines.broken is None else _bytes_flaws(lines.broken + 1, header)
    lines.last = reader.line_num
    lines.begin()
    yield from flaws or _Rows(lines, header, columns, delimiter).read()


class _Rows:
    """The records behind a header."""

    def __init__(self, lines: CsvLines, header: list[str], columns: Sequence[str], delimiter: str) -> None:
        self._lines, self._header, self._columns, self._delimiter = lines, header, tuple(columns), delimiter
        self._pick = _picker([header.index(column) for column in columns])

    def read(self) -> Iterator[Record | Flaw | Remark]:
        """All of them."""
        lines, taken, pick, width, name = (
            self._lines,
            self._lines.taken,
            self._pick,
            len(self._header),
            self._columns[0],
        )
        reader, before = self._reader(), lines.last
        while True:
            taken.clear()
            try:
                row = next(reader)
            except StopIteration:
                return
            except LineTooLongError:
                line = before + reader.line_num + 1 - len(taken)
                yield Flaw("file", line, f"the line is longer than {LINE_LIMIT >> 20} MiB; is this a text file?")
                return
            except csv.Error as error:
                lines.last = before + reader.line_num
                yield from self._as_text() or self._given_back(_csv_flaw(error, lines))
            else:
                if len(row) == width and len(taken) == 1 and lines.broken is None:
                    values = pick(row)
                    if values[0] == name and self._is_header(row, values):
                        yield Flaw("header", before + reader.line_num, HEADER_AGAIN)
                    else:
                        yield Record(before + reader.line_num, values)
                    continue
                lines.last = before + reader.line_num
                yield from self._odd(row) if row else ()
            lines.begin()
            reader, before = self._reader(), lines.last

    def _reader(self) -> Any:
        return csv.reader(iter(self._lines), delimiter=self._delimiter, strict=True)

    def _odd(self, row: list[str]) -> list[Record | Flaw | Remark]:
        """A row of several lines, with bytes that are no text, or of another number of fields than the header has."""
        lines, fits = self._lines, len(row) == len(self._header)
        if lines.broken is not None:
            return [_byte_flaw(lines.first + lines.broken, row, self._header)]
        separable = self._separable()
        if fits and (self._delimiter != "\t" or not separable):
            kind = "rows in one" if separable else "several lines"
            return [Record(lines.first, self._pick(row)), Remark(kind, lines.first, _lines_text(lines))]
        as_text = self._as_text()
        if as_text:
            return as_text
        flaw = Flaw("wrong number of fields", lines.first, _width_text(row, self._header, lines))
        return self._given_back(flaw) if separable else [flaw]

    def _separable(self) -> bool:
        """Whether the record has several lines, of which each would be a row if quotes were text."""
        taken, width = self._lines.taken, len(self._header)
        return len(taken) > 1 < width and all(len(fields_as_text(line, self._delimiter)) == width for line in taken)

    def _as_text(self) -> list[Record | Flaw | Remark]:
        """The first line of the record as a row of a TSV file in which quotes are text; empty where it is none."""
        if self._delimiter != "\t":
            return []
        fields, line = fields_as_text(self._lines.taken[0], "\t"), self._lines.first
        if len(fields) != len(self._header):
            return []
        self._lines.give_back()
        return [Record(line, self._pick(list(fields))), Remark("quotes as text", line, "")]

    def _given_back(self, flaw: Flaw) -> list[Record | Flaw | Remark]:
        self._lines.give_back()
        return [flaw]

    def _is_header(self, row: list[str], values: tuple[str, ...]) -> bool:
        """Whether a row says again what the columns are called; of a single column it may be a text."""
        return len(row) > 1 and (row == self._header or (len(values) > 1 and values == self._columns))


def _picker(places: list[int]) -> Callable[[list[str]], tuple[str, ...]]:
    if len(places) == 1:
        return lambda row: (row[places[0]],)
    return itemgetter(*places)


def _csv_flaw(error: csv.Error, lines: CsvLines) -> Flaw:
    text, first = str(error), lines.first
    if "unexpected end" in text:
        return Flaw("open quote", first, "begins a quoted field that is never closed; close or double its quote")
    if "new-line character" in text:
        return Flaw("bad line end", first, f"a carriage return stands inside a field without quotes; {_QUOTES}")
    where = "" if lines.last == first else f" at line {lines.last}"
    return Flaw("bad quotes", first, f"text follows a closing quote{where} ({text}); {_QUOTES}")


def _lines_text(lines: CsvLines) -> str:
    return f"lines {lines.first} to {lines.last}"


def _width_text(row: list[str], header: list[str], lines: CsvLines) -> str:
    text = f"{len(row)} field{'' if len(row) == 1 else 's'} where the header has {len(header)}"
    if lines.last > lines.first:
        text = f"quotes make one row of {_lines_text(lines)}: {text}"
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


def _bytes_flaws(line: int, header: list[str]) -> list[Flaw]:
    flaw = _byte_flaw(line, header, [])
    return [Flaw("file", flaw.line, f"the header is not UTF-8 text: {flaw.what}")]


def header_flaws(header: Sequence[str], columns: Sequence[str], *, line: int = 0) -> list[Flaw]:
    """What keeps a table with these column names from being read: none at all, or a wanted one twice or missing.

    `line` is where the names stand, 0 in files that are not made of lines.
    """
    if not any(header):
        return [Flaw("file", 0, "is empty, or its first line is; the first line must name the columns")]
    twice = [name for name in dict.fromkeys(columns) if header.count(name) > 1]
    flaws = [
        Flaw("file", line, f"column {short(name)} stands more than once in the header; rename one") for name in twice
    ]
    return flaws + [Flaw("missing column", line, missing_text(name, header)) for name in columns if name not in header]


def missing_text(name: str, present: Sequence[str]) -> str:
    """Says that `name` is not among `present`, and which near name may be meant."""
    more = f" and {len(present) - _NAMES_SHOWN:,} more" if len(present) > _NAMES_SHOWN else ""
    text = f"has no column {short(name)}; its columns are: {', '.join(map(short, present[:_NAMES_SHOWN]))}{more}"
    apart = [advice for advice, mark in _SEPARATORS if mark in "".join(present)]
    if len(present) == 1 and apart:
        return f"{text}; is the file separated by a {apart[0]}"
    lowered = {other.strip().lower(): other for other in present[:_NAMES_COMPARED] if len(other) <= _LONG_NAME}
    near = get_close_matches(name.strip().lower()[:_LONG_NAME], lowered, n=1, cutoff=0.75)
    return f"{text}; did you mean {lowered[near[0]]!r}?" if near else text


def short(name: str) -> str:
    """The name of a column in quotes, its end left out where it is long."""
    return repr(name) if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]!r}..."
