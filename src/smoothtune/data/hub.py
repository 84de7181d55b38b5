"""Data sets loaded by the `datasets` library: folders it saved, folders it can read, Hub ids. Knows nothing of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smoothtune.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset


def load_through_datasets(location: str, config: str | None, split: str, shown: str) -> Dataset:
    """`datasets.load_dataset`, memory-mapped; a Hub id is fetched once and then cached by `datasets`.

    Raises `DataError` (where: `shown`) when the data set, its configuration or its split is not there.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(location, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        what = f"cannot be loaded: {reason}; check the name, the split and the network"
        raise DataError("A data source cannot be used.", [Problem(shown, what)]) from error


def load_saved(folder: str, shown: str) -> Dataset:
    """The data set that `save_to_disk` wrote to `folder`, memory-mapped. Raises `DataError` when a part is missing."""
    from datasets import Dataset

    try:
        return Dataset.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        what = f"is a damaged folder ({' '.join(str(error).split())}); write it again with save_to_disk"
        raise DataError("A data source cannot be used.", [Problem(shown, what)]) from error
