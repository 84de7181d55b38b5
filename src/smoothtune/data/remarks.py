"""What is worth knowing of how rows were read, counted by kind. Knows nothing of where it is printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from smoothtune.data.source import Remark, Source

_SENTENCES = {
    "quotes as text": (
        "warning",
        "1 line has quotation marks that enclose no whole field; they are",
        "{count} lines have quotation marks that enclose no whole field; they are",
        "kept as part of the text",
    ),
    "rows in one": (
        "warning",
        "1 row was",
        "{count} rows were",
        "read from several lines, from a quotation mark to the next one, though each line could be a row; if they are rows, "
        "double the quotation marks that belong to the texts",
    ),
    "several lines": ("note", "1 row runs", "{count} rows run", "over several lines, in quotes"),
}


@dataclass(frozen=True, slots=True)
class Remarks:
    """How many remarks of one `kind` there are, and the `line` of the first; `what` names all its lines if several."""

    kind: str
    count: int
    line: int
    what: str

    def sentence(self, where: str, source: Source) -> str:
        """One line for people; `where` is the task and its split, or empty."""
        level, one, many, rest = _SENTENCES[self.kind]
        subject = one if self.count == 1 else many.format(count=f"{self.count:,}")
        place = source.place(self.line) + (f" ({self.what})" if self.what else "")
        return f"{level}: {where}{': ' if where else ''}{subject} {rest}, e.g. {place}"


class RemarkCounts:
    """Counts remarks as they come."""

    def __init__(self) -> None:
        self._first: dict[str, Remark] = {}
        self._counts: dict[str, int] = {}

    def add(self, remark: Remark) -> None:
        """Count one."""
        self._first.setdefault(remark.kind, remark)
        self._counts[remark.kind] = self._counts.get(remark.kind, 0) + 1

    def found(self) -> Iterator[Remarks]:
        """Those of each kind."""
        for kind, first in self._first.items():
            yield Remarks(kind, self._counts[kind], first.line, first.what)
