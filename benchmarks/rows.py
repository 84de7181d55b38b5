"""The rows that all sides share: SST, Quora and STS from a data folder, else the packaged demo data; written as plain TSV."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Reads = Literal["single", "separate", "joint"]
DATA_VARIABLE = "SMOOTHTUNE_DATA"


@dataclass(frozen=True, slots=True)
class Source:
    """A labelled file: text columns, label column, kind and number of classes; `demo` stands in where there is no data folder."""

    name: str
    demo: str
    text: tuple[str, ...]
    demo_text: tuple[str, ...]
    label: str
    demo_label: str
    kind: str
    labels: int


SOURCES = {
    "sst": Source("sst", "reviews", ("sentence",), ("text",), "sentiment", "stars", "classification", 5),
    "quora": Source(
        "quora", "questions", ("sentence1", "sentence2"), ("question1", "question2"), "is_duplicate", "same", "binary", 2
    ),
    "sts": Source(
        "sts", "similarity", ("sentence1", "sentence2"), ("sentence1", "sentence2"), "similarity", "similarity",
        "regression", 1,
    ),
}  # fmt: skip


def data_folder(given: str | None) -> Path | None:
    """The folder with sst/, quora/ and sts/: as given, else that of the environment, else None (the demo data)."""
    text = given or os.environ.get(DATA_VARIABLE, "")
    return Path(text) if text else None


def what_data(folder: Path | None) -> str:
    """What the tables say of their data."""
    return "SST, Quora and STS" if folder else "the packaged demo data (no data folder was named)"


def read_rows(source: Source, folder: Path | None, split: str = "train") -> list[tuple[tuple[str, ...], str]]:
    """(texts, label) of every row of a split, in order."""
    import smoothtune.config

    packaged = Path(smoothtune.config.__file__).parent / "packaged" / "demo"
    path = packaged / f"{source.demo}_{split}.tsv" if folder is None else folder / source.name / f"{split}.tsv"
    text, label = (source.demo_text, source.demo_label) if folder is None else (source.text, source.label)
    with path.open(encoding="utf-8", newline="") as file:
        found = [(tuple(row[name] for name in text), row[label]) for row in csv.DictReader(file, delimiter="\t")]
    if folder is None and source.kind == "classification":  # stars count from 1, class numbers from 0
        found = [(texts, str(int(value) - 1)) for texts, value in found]
    return found


def sampled(rows: Sequence[Any], count: int, seed: int = 0) -> list[Any]:
    """`count` rows drawn with a fixed seed; where there are fewer, all of them again and again."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[order[number % len(order)]] for number in range(count)]


def write_rows(path: Path, rows: Sequence[tuple[tuple[str, ...], str]]) -> None:
    """A TSV with the columns `text`, or `text_a` and `text_b`, and `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["text"] if len(rows[0][0]) == 1 else ["text_a", "text_b"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*names, "label"])
        writer.writerows([*texts, label] for texts, label in rows)
