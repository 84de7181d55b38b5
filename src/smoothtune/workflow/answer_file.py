"""The file of answers: rows with predictions as TSV or JSON lines, whole or not at all. Knows nothing of models."""

from __future__ import annotations

import csv
import json
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from smoothtune.files import WriteError
from smoothtune.terminal_text import shown

FORMATS = ("tsv", "jsonl")


@contextmanager
def opened(out: Path | None) -> Iterator[IO[str]]:
    """The file to write, made aside and renamed at the end; stdout for None. Raises `WriteError` naming the file."""
    if out is None:
        yield cast(IO[str], shown(sys.stdout))
        return
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    try:
        file = aside.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror}; give a file in a folder that exists") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, out)
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror}; free space or choose another folder") from None
    finally:
        aside.unlink(missing_ok=True)


class AnswerWriter:
    """Writes rows of texts and answers under `names`, as TSV with a header or as one JSON object a line."""

    def __init__(self, file: IO[str], form: str, names: Sequence[str]) -> None:
        self._names = names
        self._file = file
        self._tsv = form == "tsv"
        self._plain = csv.writer(file, delimiter="\t", lineterminator="\n")
        self._quoted = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        if self._tsv:
            self._write_tsv(names)

    def add(self, rows: Sequence[tuple[str, ...]], answers: Sequence[Sequence[Any]]) -> None:
        """Append rows (N,) with their answers: (N,) of each column after the texts."""
        for row, *found in zip(rows, *answers, strict=True):
            self._write([*row, *found])

    def _write(self, values: list[Any]) -> None:
        if self._tsv:
            self._write_tsv([f"{value:.6g}" if isinstance(value, float) else value for value in values])
        else:
            self._file.write(json.dumps(dict(zip(self._names, values, strict=True)), ensure_ascii=False) + "\n")

    def _write_tsv(self, values: Sequence[Any]) -> None:
        # The csv module leaves a lone carriage return without quotes, and a reader then ends the row there.
        returns = any(isinstance(value, str) and "\r" in value for value in values)
        (self._quoted if returns else self._plain).writerow(values)
