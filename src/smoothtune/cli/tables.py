"""Tables of results for the terminal. Knows nothing of where the numbers come from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NUMBER = re.compile(r"|nan|[+-]?[0-9,]*\.?[0-9]+ ?%?")


def out() -> Console:
    """The console of results; wide enough not to cut when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def err() -> Console:
    """The console of everything that is not a result."""
    return Console(stderr=True, highlight=False)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A table; columns whose cells are numbers are set to the right. Only the first is folded, and only where it must."""
    made = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True, show_edge=False
    )
    for number, header in enumerate(headers):
        numeric = all(_numeric(row[number]) for row in rows) and bool(rows)
        made.add_column(header, justify="right" if numeric else "left", no_wrap=number > 0, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))  # no markup: labels may hold brackets
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
