"""The checked rows of one task and split, in a memory-mapped Arrow file. Knows nothing of label sets and tokens.

The file is named by the content of the source and by what was asked of it, so that it is written once and found again;
it is written aside and renamed, so that processes may prepare the same rows at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smoothtune.data.checks import FATAL, NO_LABEL, Finding, RowSpec, Tally, check_row, findings_of
from smoothtune.data.readers import read_records
from smoothtune.data.source import Flaw, Source
from smoothtune.errors import Problem

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT = 2
_FLUSH_ROWS = 10_000
_FLUSH_CHARACTERS = 1 << 24


@dataclass(frozen=True, slots=True)
class RowTable:
    """N rows of one task and split: those with a label (all in prediction) in which nothing was found to be wrong.

    `findings` says what was wrong with the others, `left_out` how many rows are missing for which reason. The texts
    stay on disk.
    """

    name: str
    spec: RowSpec
    source: Source
    findings: tuple[Finding, ...]
    left_out: dict[str, int]
    dataset: Dataset = field(repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def content_key(self) -> str:
        """The name of these rows in a cache: changes with the source's content and with the columns asked for."""
        return Path(self.dataset.cache_files[0]["filename"]).stem

    @property
    def errors(self) -> bool:
        """Whether the rows must not be used: bad rows that were not to be left out, or a source that cannot be read."""
        return any(finding.fatal or self.spec.on_bad_row == "error" for finding in self.findings)

    def problems(self) -> tuple[Problem, ...]:
        """All findings as problems to raise or to print, each kind's rest counted."""
        return tuple(problem for finding in self.findings for problem in finding.problems(self.source.shown))

    def place(self, row: int) -> str:
        """Where row `row` of this table stands in its source: `file:line`."""
        return self.source.place(self.dataset.data.column("line")[row].as_py())

    def lines(self) -> NDArray[np.int64]:
        """(N,) the first line of each row in its source."""
        return self._numbers("line").astype(np.int64, copy=False)

    def keys(self) -> NDArray[np.uint64]:
        """(N,) 64-bit hashes of the text, or of the two texts in either order; white space normalised, case kept.

        Two of ten million different texts share a hash with probability 3e-6.
        """
        return self._numbers("key").astype(np.uint64, copy=False)

    def text_keys(self) -> NDArray[np.uint64]:
        """(N, texts) the hash of each single text, comparable between tasks of one text and of pairs."""
        columns = ("key_a", "key_b")[: len(self.spec.texts)]
        return np.stack([self._numbers(column) for column in columns], axis=1).astype(np.uint64, copy=False)

    def labels(self) -> pa.ChunkedArray:
        """(N,) label texts, memory-mapped. Raises `ValueError` for rows prepared without a label column."""
        if self.spec.label is None:
            raise ValueError(f"the rows of {self.source.shown} were prepared without a label column")
        return self.dataset.data.column("label")

    def texts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, ...]]:
        """The text or the two texts of each row number in `rows`, in that order."""
        return _tuples(self._text_columns()[[int(row) for row in rows]])

    def chunks(self, size: int) -> Iterator[list[tuple[str, ...]]]:
        """All texts in row order, `size` rows at a time."""
        for columns in self._text_columns().iter(size):
            yield _tuples(columns)

    def _text_columns(self) -> Any:
        return self.dataset.select_columns(_text_names(self.spec))

    def _numbers(self, column: str) -> NDArray[Any]:
        numbers: NDArray[Any] = self.dataset.data.column(column).to_numpy()
        return numbers


def prepare_rows(spec: RowSpec, source: Source, *, cache: Path, name: str) -> RowTable:
    """Read and check the rows of `source`, or find them in `cache` again; the source is then only hashed.

    Bad rows raise nothing: ask `errors` and `problems()`, so that those of all tasks are reported together.
    Raises `DataError` when the source has gone or the Hub does not answer.
    """
    from datasets import Dataset

    cache.mkdir(parents=True, exist_ok=True)
    arrow = cache / f"{_cache_key(spec, source)}.arrow"
    summary = arrow.with_suffix(".json")
    if not (arrow.is_file() and summary.is_file()):
        _write(spec, source, arrow, summary)
    found = json.loads(summary.read_text(encoding="utf-8"))
    left_out = {NO_LABEL: found["unlabelled"]} if found["unlabelled"] else {}
    if spec.on_bad_row == "leave_out":
        left_out |= found["rows"]
    findings = findings_of(found["counts"], found["examples"], source)
    return RowTable(name, spec, source, findings, left_out, Dataset.from_file(str(arrow)))


def _cache_key(spec: RowSpec, source: Source) -> str:
    # What is written does not depend on on_bad_row, nor on the name of the file.
    asked: list[object] = [_FORMAT, source.kind, source.split, source.fingerprint()]
    asked += [spec.texts, spec.label, spec.kind == "regression", spec.value_range]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _write(spec: RowSpec, source: Source, arrow: Path, summary: Path) -> None:
    from datasets.arrow_writer import ArrowWriter

    aside = arrow.with_name(f"{arrow.stem}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    noted = aside.with_suffix(".json-tmp")
    tally = Tally()
    try:
        with ArrowWriter(schema=_schema(spec), path=str(aside)) as writer:
            for table in _tables(spec, source, tally):
                writer.write_table(table)
            writer.finalize()
        noted.write_text(json.dumps(asdict(tally)), encoding="utf-8")
        os.replace(noted, summary)
        os.replace(aside, arrow)
    finally:
        aside.unlink(missing_ok=True)
        noted.unlink(missing_ok=True)


def _schema(spec: RowSpec) -> pa.Schema:
    pair = len(spec.texts) == 2
    label = [] if spec.label is None else [("label", pa.string())]
    keys = [("key", pa.uint64()), ("key_a", pa.uint64()), *([("key_b", pa.uint64())] if pair else [])]
    texts = [(name, pa.string()) for name in _text_names(spec)]
    return pa.schema([*texts, *label, ("line", pa.int64()), *keys])


def _text_names(spec: RowSpec) -> list[str]:
    return ["text_a", "text_b"][: len(spec.texts)]


def _tables(spec: RowSpec, source: Source, tally: Tally) -> Iterator[pa.Table]:
    """The good rows in tables of bounded size; what is wrong with the others goes into `tally`."""
    schema = _schema(spec)
    rows: list[tuple[Any, ...]] = []
    characters = total = 0
    for row in _good_rows(spec, source, tally):
        rows.append(row)
        total += 1
        characters += len(row[0])
        if len(rows) == _FLUSH_ROWS or characters > _FLUSH_CHARACTERS:
            yield _table(rows, schema)
            rows, characters = [], 0
    if rows:
        yield _table(rows, schema)
    if total == 0 and FATAL.isdisjoint(tally.counts):
        tally.add([Flaw("no rows", 0, _no_rows_text(spec, tally))])


def _no_rows_text(spec: RowSpec, tally: Tally) -> str:
    if tally.rows:
        return f"has no row that can be used; rows with problems: {sum(tally.rows.values()):,}"
    if tally.unlabelled:
        return f"none of its {tally.unlabelled:,} rows has a label in column {spec.label!r}"
    return "has 0 rows; a file needs at least one row behind its column names"


def _good_rows(spec: RowSpec, source: Source, tally: Tally) -> Iterator[tuple[Any, ...]]:
    count = len(spec.texts)
    for record in read_records(source, spec.columns):
        if isinstance(record, Flaw):
            tally.add([record])
            continue
        label, flaws = check_row(spec, record)
        if flaws:
            tally.add(flaws)
        elif spec.label is None:
            yield (*record.values, record.line, *_row_keys(record.values))
        elif label:
            texts = record.values[:count]
            yield (*texts, label, record.line, *_row_keys(texts))
        else:
            tally.unlabelled += 1


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    return pa.table(
        [pa.array(column, f.type) for column, f in zip(zip(*rows, strict=True), schema, strict=True)], schema
    )


def _row_keys(texts: tuple[str, ...]) -> tuple[int, ...]:
    """The key of the row, then the key of each text; for one text they are equal."""
    digests = [hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest() for text in texts]
    row = digests[0] if len(digests) == 1 else hashlib.blake2b(b"".join(sorted(digests)), digest_size=8).digest()
    return tuple(int.from_bytes(digest, "little") for digest in (row, *digests))


def _tuples(columns: dict[str, list[str]]) -> list[tuple[str, ...]]:
    return list(zip(*columns.values(), strict=True))
