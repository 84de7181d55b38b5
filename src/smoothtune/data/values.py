"""Cells as text: one spelling for labels and numbers, whatever file type they come from. Knows nothing of files."""

from __future__ import annotations

import math
import re

_INTEGRAL = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")


def cell_text(value: object) -> str | None:
    """A cell of a typed file (JSON, Arrow) as text: text as it stands, numbers as by `label_text`, nothing as "".

    None for what is not one value (a list, an object, bytes).
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | dict | bytes):
        return None
    return label_text(value)


def label_text(value: object) -> str:
    """The one spelling of a label: 1, 1.0, True, "1.0" and " 1 " are "1"; "01" stays; None and NaN are "" (no label).

    The text "nan" stays text: it may be a class. Only a floating-point NaN is no label.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return _float_text(value)
    text = str(value).strip()
    match = _INTEGRAL.fullmatch(text)
    return text if match is None else _without_minus_zero(match[1])


def same_label(text: str) -> str | float:
    """What a label says, whatever its spelling: truth values in any case, and numbers, are numbers; others are themselves."""
    truth = {"true": 1.0, "false": 0.0}.get(text.casefold())
    number = parse_number(text) if truth is None else truth
    return text if number is None else number


def _float_text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else repr(value)


def _without_minus_zero(text: str) -> str:
    return "0" if text == "-0" else text


def parse_number(text: str) -> float | None:
    """The finite decimal number that `text` writes, or None ("3,5", "1_0", "nan" and "inf" are not numbers here)."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
