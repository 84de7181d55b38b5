"""Where rows come from: the source text of an experiment, resolved. Knows nothing of what stands in the rows.

A source text is one of
    sst/train.tsv               a file: .tsv .csv .parquet, or one JSON object a line: .jsonl .jsonlines .json
    folder  folder:train        a folder written by `save_to_disk`; with its split where it has splits
    hf:OWNER/NAME:train         a data set of the Hugging Face Hub, or hf:OWNER/NAME/CONFIG:train
    hf:/folder:train            a local folder that `load_dataset` reads ("/", "./", "../" or "~" makes it a folder)
    packaged:sst/train.tsv      a file that is part of smoothtune
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import smoothtune.config
from smoothtune.bounded import UnreadableError, parse_json, read_text
from smoothtune.data.content import KnownContents, content_of
from smoothtune.data.hub import check_files, load_through_datasets
from smoothtune.errors import DataError, Problem

SourceKind = Literal["tsv", "csv", "jsonl", "parquet", "saved", "hub"]
SUFFIXES: dict[str, SourceKind] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
_HUB_FORM = "write hf:OWNER/NAME:SPLIT or hf:OWNER/NAME/CONFIG:SPLIT, for example hf:stanfordnlp/sst2:train"


class Record(NamedTuple):
    """One row as text: `line` is its first line (or its row number, from 1), `values` the wanted columns in order."""

    line: int
    values: tuple[str, ...]


class Flaw(NamedTuple):
    """One thing wrong with a source: `kind` groups flaws, `line` is as in `Record` (0: the file), `what` a sentence."""

    kind: str
    line: int
    what: str


class Remark(NamedTuple):
    """Something to know of a row that is read: `kind` groups remarks (see `data.remarks`), `line` is its first line.

    `what` names all its lines where they are several.
    """

    kind: str
    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Source:
    """A resolved source. `path` is set for files and folders, `dataset_id` for the Hub; messages say `shown`.

    `content` is the fingerprint of what was read of it, once it was.
    """

    kind: SourceKind
    shown: str
    path: Path | None = None
    dataset_id: str | None = None
    config: str | None = None
    split: str | None = None
    content: str | None = field(default=None, compare=False)

    @property
    def location(self) -> str:
        """The path or the Hub id, as text."""
        return str(self.dataset_id if self.path is None else self.path)

    def place(self, line: int) -> str:
        """`file:line` for files made of lines, `file row N` for the others, the bare name for line 0."""
        if line == 0:
            return self.shown
        return f"{self.shown}:{line}" if self.has_lines else f"{self.shown} row {line}"

    @property
    def has_lines(self) -> bool:
        """Whether it is a file that is read line by line, from the first to the last."""
        return self.kind in ("tsv", "csv", "jsonl")

    def fingerprint(self, known: KnownContents | None = None) -> str:
        """A text that changes with the content: sha256 of a file, or of all files of a folder; the Hub's own for ids.

        Reads files in blocks, but not those that are `known` to be as they were, and none once `content` is there. Raises
        `DataError` when one cannot be read.
        """
        if self.content is not None:
            return self.content
        if self.path is None:
            return str(load_through_datasets(self.location, self.config, str(self.split), self.shown)._fingerprint)
        with self.opening():
            if not self.has_lines:
                check_files(self.path)  # of a folder: a pipe among its files would keep us for ever
            return content_of(self.path) if known is None else known.of(self.path)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """What keeps the source from being read inside is a `DataError` that names it."""
        try:
            yield
        except (OSError, UnreadableError) as error:
            _fail(self.shown, f"cannot be read ({getattr(error, 'strerror', None) or error}): {self.location}")


def resolve_source(text: str, base: Path) -> Source:
    """The source that `text` names; relative paths start at `base`. Raises `DataError` naming the resolved path."""
    try:
        if text.startswith("hf:"):
            return _hub_source(text, base)
        if text.startswith("packaged:"):
            return _packaged_source(text)
        return _path_source(text, text, base)
    except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown user, with a NUL, a damaged folder
        _fail(repr(text[:200]), f"cannot be read ({error}); name a file, or a folder that save_to_disk wrote")


def _packaged_source(text: str) -> Source:
    packaged = Path(str(smoothtune.config.__file__)).parent / "packaged"
    name = text.removeprefix("packaged:")
    if not (packaged / name).resolve().is_relative_to(packaged.resolve()):
        _fail(text, "leads out of the package; name a file that is part of smoothtune")
    return _path_source(text, name, packaged)


def _path_source(shown: str, text: str, base: Path) -> Source:
    path = (base / Path(text).expanduser()).resolve()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            _fail(shown, f"cannot read a {path.suffix or 'nameless'} file; use one of {', '.join(SUFFIXES)}")
        return Source(SUFFIXES[path.suffix.lower()], shown, path)
    if path.is_dir():
        return _saved_source(shown, path, None)
    head, _, split = text.rpartition(":")
    folder = (base / Path(head).expanduser()).resolve()
    if head and folder.is_dir():
        return _saved_source(shown, folder, split)
    _fail(shown, f"no such file: {path}; {_start(text, base)}")


def _start(text: str, base: Path) -> str:
    return "check the path" if Path(text).expanduser().is_absolute() else f"relative paths start at {base}"


def _saved_source(shown: str, folder: Path, split: str | None) -> Source:
    if (folder / "dataset_dict.json").is_file():
        splits = _splits(folder)
        if split is None:
            _fail(shown, f"has the splits {', '.join(splits)}; name one, as in {shown}:{splits[0]}")
        if split not in splits:
            _fail(shown, f"has no split {split!r}; its splits are: {', '.join(splits)}")
        return Source("saved", shown, folder / split, split=split)
    if not (folder / "state.json").is_file():
        _fail(
            shown, f"is a folder that save_to_disk did not write: {folder}; for other folders write hf:{folder}:SPLIT"
        )
    if split is not None:
        _fail(shown, f"is one data set without splits; leave out ':{split}'")
    return Source("saved", shown, folder)


def _splits(folder: Path) -> list[str]:
    """The splits of a saved folder. Raises `OSError` and `ValueError` where its list cannot be read."""
    found = parse_json(read_text(folder / "dataset_dict.json", inside=folder))
    splits = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(splits, list) or not splits or not all(_is_name(split) for split in splits):
        raise UnreadableError(f"{folder / 'dataset_dict.json'} lists no splits")
    return splits


def _is_name(split: object) -> bool:
    return isinstance(split, str) and split == Path(split).name and split not in ("", "..")


def _hub_source(shown: str, base: Path) -> Source:
    name, _, split = shown.removeprefix("hf:").partition(":")
    if not split:
        _fail(shown, f"names no split; {_HUB_FORM}")
    if name.startswith(("/", "./", "../", "~")):
        folder = (base / Path(name).expanduser()).resolve()
        if not folder.is_dir():
            _fail(shown, f"no such folder: {folder}; {_start(name, base)}")
        return Source("hub", shown, folder, split=split)
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        _fail(shown, f"is not the name of a data set; {_HUB_FORM}")
    return Source(
        "hub", shown, dataset_id="/".join(parts[:2]), config=parts[2] if len(parts) == 3 else None, split=split
    )


def _fail(shown: str, what: str) -> NoReturn:
    raise DataError("A data source cannot be used.", [Problem(shown, what)])
