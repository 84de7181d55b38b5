"""Tables of results for the terminal. Knows nothing of where the numbers come from."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smoothtune.terminal_text import printable, shown

_NUMBER = re.compile(r"|nan|[+-]?[0-9,]*\.?[0-9]+ ?%?")


class PlainConsole(Console):
    """Prints texts as they are: no markup and no emoji codes, since labels may look like them, and nothing to obey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """See `Console.print`."""
        super().print(*(printable(part, lines=True) if isinstance(part, str) else part for part in objects), **options)


def out() -> Console:
    """The console of results; wide enough not to cut when it is not a terminal."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=160)


def err() -> Console:
    """The console of everything that is not a result."""
    return PlainConsole(stderr=True)


def say(line: str) -> None:
    """A line on stderr as it is, however long."""
    err().print(line, soft_wrap=True)


def give(text: str, *, end: str = "\n") -> None:
    """A result on stdout: as it is for a program or a file, with nothing to obey on a terminal."""
    stream = shown(sys.stdout)
    stream.write(text + end)
    stream.flush()


def give_json(value: object) -> None:
    """A JSON result on stdout, in ASCII."""
    give(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A table; columns whose cells are numbers are set to the right. Only the first is folded, and only where it must."""
    made = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True, show_edge=False
    )
    for number, header in enumerate(headers):
        numeric = all(_numeric(row[number]) for row in rows) and bool(rows)
        made.add_column(
            Text(printable(header)), justify="right" if numeric else "left", no_wrap=number > 0, overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # no markup: labels may hold brackets
    return made


def fits(made: Table, console: Console) -> bool:
    """Whether the console is wide enough for the table as it is."""
    unlimited = console.options.update(width=100_000)
    return console.measure(made, options=unlimited).maximum <= console.width


def counted(count: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`: the number with the words that agree with it."""
    return f"{count:,} {one if count == 1 else many}"


def _numeric(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def number(value: float | None) -> str:
    """A metric with three decimals."""
    return "nan" if value is None or math.isnan(value) else f"{value:.3f}"


def interval(found: dict[str, Any]) -> str:
    """A 95 % interval."""
    return f"{number(found['low'])} to {number(found['high'])}"
