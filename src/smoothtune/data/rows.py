"""The checked rows of one task and split, in memory-mapped files. Knows nothing of label sets and tokens.

An entry is named by the content of the source and by what was asked of it, so that it is written once and found again.
A file made of lines is read once in all: its content is hashed while its rows are. As long as it stays as it is it is
never read again; a changed or unknown one is hashed first only where a file of its size was read before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from smoothtune.cache import aside, gone, opened, settle
from smoothtune.data.checks import NO_LABEL, Finding, RowSpec, findings_of
from smoothtune.data.columns import filled
from smoothtune.data.content import KnownContents, Reading
from smoothtune.data.remarks import Remarks
from smoothtune.data.row_writer import ROWS, SUMMARY, RowNumbers, read_numbers, text_names, write_rows
from smoothtune.data.source import Source
from smoothtune.errors import Problem

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT = 5
_TRIES = 3


@dataclass(frozen=True, slots=True)
class RowTable:
    """N rows of one task and split: those with a label (all in prediction) in which nothing was found to be wrong.

    `findings` says what was wrong with the others, `left_out` how many rows are missing for which reason; `remarks` tell
    how rows were read. The texts and all numbers stay on disk, in `folder`, and are mapped: they stay readable if the folder is
    removed.
    """

    name: str
    spec: RowSpec
    source: Source
    findings: tuple[Finding, ...]
    left_out: dict[str, int]
    folder: Path
    numbers: RowNumbers = field(repr=False)
    dataset: Dataset = field(repr=False)
    remarks: tuple[Remarks, ...] = ()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def content_key(self) -> str:
        """The name of these rows in a cache: changes with the source's content and with the columns asked for."""
        return self.folder.name

    @property
    def errors(self) -> bool:
        """Whether the rows must not be used: bad rows that were not to be left out, or a source that cannot be read."""
        return any(finding.fatal or self.spec.on_bad_row == "error" for finding in self.findings)

    def problems(self) -> tuple[Problem, ...]:
        """All findings as problems to raise or to print, each kind's rest counted."""
        return tuple(problem for finding in self.findings for problem in finding.problems(self.source.shown))

    def remark_lines(self, where: str) -> tuple[str, ...]:
        """What there is to know of how the rows were read, a line each; `where` names task and split."""
        return tuple(found.sentence(where, self.source) for found in self.remarks)

    def place(self, row: int) -> str:
        """Where row `row` of this table stands in its source: `file:line`."""
        return self.source.place(int(self.lines()[row]))

    def lines(self) -> NDArray[np.int64]:
        """(N,) the first line of each row in its source, memory-mapped, as are all numbers here."""
        return self.numbers.line

    def keys(self) -> NDArray[np.uint64]:
        """(N,) 64-bit hashes of the text, or of the two texts in either order; white space normalised, case kept.

        Two of ten million different texts share a hash with probability 3e-6.
        """
        return self.numbers.key

    def text_keys(self) -> NDArray[np.uint64]:
        """(N, texts) the hash of each single text, comparable between tasks of one text and of pairs."""
        return self.numbers.text_keys

    def label_keys(self) -> NDArray[np.uint64]:
        """(N,) 64-bit hashes of the labels. Raises `ValueError` for rows prepared without a label column."""
        self._need_labels()
        assert self.numbers.label_key is not None
        return self.numbers.label_key

    def labels(self) -> pa.ChunkedArray:
        """(N,) label texts, memory-mapped. Raises `ValueError` for rows prepared without a label column."""
        self._need_labels()
        return self.dataset.data.column("label")

    def measurements(self, dtype: DTypeLike) -> NDArray[Any]:
        """(N,) labels of a regression in label units. Raises `ValueError` for rows prepared without a label column."""
        kind = pa.from_numpy_dtype(dtype)
        return filled(len(self), dtype, (pc.cast(chunk, kind).to_numpy() for chunk in self.labels().chunks))

    def texts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, ...]]:
        """The text or the two texts of each row number in `rows`, in that order."""
        return _tuples(self._text_columns()[[int(row) for row in rows]])

    def chunks(self, size: int) -> Iterator[list[tuple[str, ...]]]:
        """All texts in row order, `size` rows at a time."""
        for columns in self._text_columns().iter(size):
            yield _tuples(columns)

    def _text_columns(self) -> Any:
        return self.dataset.select_columns(text_names(self.spec))

    def _need_labels(self) -> None:
        if self.spec.label is None:
            raise ValueError(f"the rows of {self.source.shown} were prepared without a label column")


def prepare_rows(spec: RowSpec, source: Source, *, cache: Path, name: str) -> RowTable:
    """Read and check the rows of `source`, or find them in `cache` again.

    Bad rows raise nothing: ask `errors` and `problems()`, so that those of all tasks are reported together.
    Raises `DataError` when the source has gone or the Hub does not answer, `WriteError` when the cache is full.
    """
    for _ in range(_TRIES):
        prepared = replace(source, content=_prepared_content(spec, source, cache))
        table = opened(_entry(spec, prepared, cache), partial(_table, name, spec, prepared))
        if table is not None:
            return table
    raise gone(_entry(spec, prepared, cache))


def _table(name: str, spec: RowSpec, source: Source, folder: Path) -> RowTable:
    from datasets import Dataset

    tally = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    left_out = {NO_LABEL: tally["unlabelled"]} if tally["unlabelled"] else {}
    if spec.on_bad_row == "leave_out":
        left_out |= tally["rows"]
    findings = findings_of(tally["counts"], tally["examples"], source)
    remarks = tuple(Remarks(**remark) for remark in tally["remarks"])
    texts = Dataset.from_file(str(folder / ROWS))
    return RowTable(name, spec, source, findings, left_out, folder, read_numbers(spec, folder), texts, remarks)


def _prepared_content(spec: RowSpec, source: Source, cache: Path) -> str:
    """The content of `source`, whose rows are then in `cache`."""
    known = KnownContents(cache)
    with source.opening():
        once = source.path is not None and source.has_lines and not known.has_size(source.path)
    if once:
        return _read_once(spec, source, cache, known)
    source = replace(source, content=source.fingerprint(known))
    if opened(_entry(spec, source, cache), Path.exists):
        return source.fingerprint()
    if source.has_lines:  # hashed while it is read, so that rows never stand under the name of another content
        return _read_once(spec, source, cache, known)
    with aside(cache) as folder:
        write_rows(spec, source, folder)
        settle(folder, _entry(spec, source, cache))
    return source.fingerprint()


def _read_once(spec: RowSpec, source: Source, cache: Path, known: KnownContents) -> str:
    assert source.path is not None
    with source.opening():
        reading = Reading(source.path, known)
    with reading, aside(cache) as folder:
        write_rows(spec, source, folder, reading.file)
        with source.opening():
            source = replace(source, content=reading.content())
        settle(folder, _entry(spec, source, cache))
    return source.fingerprint()


def _entry(spec: RowSpec, source: Source, cache: Path) -> Path:
    # What is written does not depend on on_bad_row, nor on the name of the file.
    asked: list[object] = [_FORMAT, source.kind, source.split, source.fingerprint()]
    asked += [spec.texts, spec.label, spec.kind == "regression", spec.value_range]
    asked += [] if spec.class_names else ["class numbers"]
    return cache / f"rows-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}"


def _tuples(columns: dict[str, list[str]]) -> list[tuple[str, ...]]:
    return list(zip(*columns.values(), strict=True))
