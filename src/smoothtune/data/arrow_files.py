"""Tables of Parquet files and of folders that `save_to_disk` wrote, read through Arrow alone.

Types and formats that such a folder names run nothing, and no name in it leads out of it. Knows nothing of what a cell becomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from smoothtune.bounded import FOREIGN, UnreadableError, check_plain, parse_json, read_text, reason_of

_ROWS = 1_000
# Rows for each byte of a file: a bit for each row at least, unless all rows of a column are alike, as Parquet can say in a
# word; a thousand is more than rows with texts of their own come to (ours).
_ARROW_ROWS, _PARQUET_ROWS = 8, 1_000
BROKEN = (*FOREIGN, pa.ArrowException)


class BrokenTableError(ValueError):
    """A file of a table is not what it should be."""


def parquet_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet file. Raises `BrokenTableError`."""
    try:
        with pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except BROKEN as error:
        raise BrokenTableError(reason_of(error)) from None


def parquet_cells(path: Path, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """The cells of the wanted columns, row by row. Raises `BrokenTableError`."""
    try:
        with pq.ParquetFile(path) as file:
            _check_rows(path, file.metadata.num_rows, _PARQUET_ROWS)
            for batch in file.iter_batches(_ROWS, columns=list(columns)):
                yield from _rows(batch, columns)
    except BROKEN as error:
        raise BrokenTableError(reason_of(error)) from None


def saved_names(folder: Path) -> list[str]:
    """The names of the columns of a saved folder. Raises `BrokenTableError`."""
    try:
        with _stream(_files(folder)[0]) as stream:
            return list(stream.schema.names)
    except BROKEN as error:
        raise BrokenTableError(reason_of(error)) from None


def saved_cells(folder: Path, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """The cells of the wanted columns, row by row. Raises `BrokenTableError`."""
    try:
        for path in _files(folder):
            _check_messages(path)
            with _stream(path) as stream:
                for batch in stream:
                    _check_rows(path, len(batch), _ARROW_ROWS)
                    for begin in range(0, len(batch), _ROWS):
                        yield from _rows(batch.slice(begin, _ROWS), columns)
    except BROKEN as error:
        raise BrokenTableError(reason_of(error)) from None


def parquet_classes(path: Path, column: str) -> tuple[str, ...] | None:
    """The names of the class labels of a column by number, where `datasets` wrote them down. Raises `BrokenTableError`."""
    try:
        with pq.ParquetFile(path) as file:
            return class_names(_features(file.schema_arrow), column)
    except BROKEN as error:
        raise BrokenTableError(reason_of(error)) from None


def saved_classes(folder: Path, column: str) -> tuple[str, ...] | None:
    """The same of a saved folder. Raises `BrokenTableError`."""
    try:
        with _stream(_files(folder)[0]) as stream:
            found = class_names(_features(stream.schema), column)
        info = folder / "dataset_info.json"
        if found is not None or not info.is_file():
            return found
        described = parse_json(read_text(info, inside=folder))
        return class_names(described.get("features") if isinstance(described, dict) else None, column)
    except BROKEN as error:
        raise BrokenTableError(reason_of(error)) from None


def class_names(features: object, column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel among features in the form of `datasets`; None for another column."""
    feature = features.get(column) if isinstance(features, dict) else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _features(schema: pa.Schema) -> object:
    """What `datasets` wrote of the columns of a table; None where nothing that can be read is there."""
    try:
        found = parse_json((schema.metadata or {}).get(b"huggingface", b"null").decode())
    except ValueError:
        return None
    info = found.get("info") if isinstance(found, dict) else None
    return info.get("features") if isinstance(info, dict) else None


def _files(folder: Path) -> list[Path]:
    state = parse_json(read_text(folder / "state.json", inside=folder))
    listed = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UnreadableError("state.json lists no data files")
    return [_file(folder, entry) for entry in listed]


def _file(folder: Path, entry: object) -> Path:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name != Path(name).name:
        raise UnreadableError(f"state.json names {repr(name)[:80]}, which is no file of the folder")
    check_plain(folder / name, inside=folder)
    return folder / name


def _stream(path: Path) -> pa.RecordBatchStreamReader:
    return pa.ipc.open_stream(pa.memory_map(str(path)))


def _check_rows(path: Path, rows: int, of_a_byte: int) -> None:
    if rows > of_a_byte * path.stat().st_size:
        raise UnreadableError(f"says that it has {rows:,} rows, more than a file of its size can hold")


def _check_messages(path: Path) -> None:
    """Raise `UnreadableError` where a batch is compressed, which `save_to_disk` never does: it may be of any size."""
    with pa.memory_map(str(path)) as file:
        for message in pa.ipc.MessageReader.open_stream(file):
            if _is_compressed(memoryview(message.metadata)):
                raise UnreadableError(f"{path.name} is compressed")


def _is_compressed(message: memoryview) -> bool:
    """Whether a message of Arrow's format, checked by the library, is a batch with a `compression` (Message.fbs)."""
    root = _number(message, 0, 4)
    kind, header = _field(message, root, 1), _field(message, root, 2)
    if not kind or not header or message[kind] not in (2, 3):
        return False
    table = header + _number(message, header, 4)
    if message[kind] == 2:  # a dictionary's values are a batch of their own
        data = _field(message, table, 1)
        table = data + _number(message, data, 4)
    return _field(message, table, 3) != 0


def _field(message: memoryview, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table stands; 0 where it is left out."""
    fields = table - int.from_bytes(message[table : table + 4], "little", signed=True)
    entry = 4 + 2 * number
    place = _number(message, fields + entry, 2) if entry < _number(message, fields, 2) else 0
    return table + place if place else 0


def _number(message: memoryview, at: int, size: int) -> int:
    return int.from_bytes(message[at : at + size], "little")


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
    cells = batch.select(list(columns))
    cells.validate(full=True)  # else offsets that lead anywhere in memory are followed
    return zip(*(column.to_pylist() for column in cells.columns), strict=True)
