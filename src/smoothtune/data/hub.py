"""Data sets loaded by the `datasets` library: folders that it can read, Hub ids. Knows nothing of rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from smoothtune.bounded import FOREIGN, UnreadableError, check_plain, reason_of
from smoothtune.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset


def load_through_datasets(location: str, config: str | None, split: str, shown: str) -> Dataset:
    """`datasets.load_dataset`, memory-mapped; a Hub id is fetched once and then cached by `datasets`. No script is run.

    Raises `DataError` (where: `shown`) when the data set, its configuration or its split is not there, and for a folder
    that has others than plain files, or whose README.md names files outside of it.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # releases before 4 would ask at the terminal
    try:
        if Path(location).is_absolute():
            check_files(Path(location))
            _check_named(Path(location), datasets.load_dataset_builder(location, config))
        return datasets.load_dataset(location, config, split=split)
    except (*FOREIGN, DatasetsError) as error:
        what = f"cannot be loaded: {reason_of(error)}; check the name, the split and the network"
        raise DataError("A data source cannot be used.", [Problem(shown, what)]) from error


def check_files(folder: Path) -> None:
    """Raise `UnreadableError` where something below `folder` is no plain file, or a link out of it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            try:
                check_plain(path, inside=folder)
            except UnreadableError as error:
                raise UnreadableError(f"{path.relative_to(folder)} {error}") from None


def _check_named(folder: Path, builder: object) -> None:
    named = getattr(getattr(builder, "config", None), "data_files", None) or {}
    for file in (str(file) for files in named.values() for file in files):
        if not os.path.realpath(file).startswith(f"{os.path.realpath(folder)}{os.sep}"):
            raise UnreadableError(f"its README.md names {file[:200]!r}, which is not in the folder")
