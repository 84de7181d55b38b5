"""Texts that users and editors rely on, kept as files and compared to the letter."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent
REGOLD = "SMOOTHTUNE_REGOLD"


def check_golden(name: str, text: str) -> None:
    """Compare `text` with the golden file `name`, or write that file when SMOOTHTUNE_REGOLD=1."""
    path = FOLDER / name
    if os.environ.get(REGOLD) == "1":
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.is_file() else ""
    hint = f"tests/golden/{name} differs; if the change is meant, run `{REGOLD}=1 pytest` and look at the diff"
    assert text == expected, hint
