"""The sets, sizes and draws of `make bench-default`. Knows nothing of how a side trains.

The sets are those of `sets/` in the data folder but `goemotions`, which is multi-label. Two halves are fixed by name, every
other set in alphabetical order, before anything is measured: recipes are chosen on the choice half alone, and the
confirmation half says whether the choice holds elsewhere.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHOICE = (
    "ag-news", "amazon-counterfactual-en", "bbc-news", "cola", "davidson-hate", "mrpc", "trec6",
    "tweet-sentiment-8-languages",
)  # fmt: skip
CONFIRMATION = (
    "alexa-stars", "banking77", "cf-nli", "customer-reviews", "financial-phrasebank", "sts-gloss-mt", "tweet-emotion",
)  # fmt: skip
SETS = tuple(sorted((*CHOICE, *CONFIRMATION)))
HALVES = {"choice": CHOICE, "confirmation": CONFIRMATION, "all": SETS}
SIZES = (30, 100, 300, 1000)
SEEDS = (1, 2, 3)
DEV_ROWS = 1000
RANGES = {"sts-gloss-mt": (0.0, 5.0)}
"""The similarity sets and the range of their labels; all others are classification."""

Row = tuple[tuple[str, ...], str]


def kind_of(name: str) -> str:
    """The kind of the task of a set."""
    return "regression" if name in RANGES else "classification"


def main_metric(name: str) -> str:
    """The metric that judges a set: accuracy, or Spearman's correlation for similarity."""
    return "spearman" if name in RANGES else "accuracy"


def read_set(folder: Path, name: str, split: str) -> list[Row]:
    """(texts, label) of every row of `sets/NAME/SPLIT.tsv`, in order."""
    with (folder / "sets" / name / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        columns = [column for column in reader.fieldnames or () if column in ("text", "text1", "text2")]
        return [(tuple(row[column] for column in columns), row["label"]) for row in reader]


def draw(labels: Sequence[str], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of `count` training rows, and of at most `DEV_ROWS` of the other rows.

    A plain random draw, repeated until it has two labels. Of two sizes the smaller draw is part of the larger.
    """
    if len(set(labels)) < 2 or not 2 <= count <= len(labels):
        raise ValueError(f"a draw of {count} rows from {len(labels)} rows of {len(set(labels))} labels is not possible")
    order, generator = list(range(len(labels))), random.Random(seed)
    generator.shuffle(order)
    while len({labels[number] for number in order[:count]}) < 2:
        generator.shuffle(order)
    rest = order[count:]
    random.Random(seed).shuffle(rest)
    return order[:count], rest[:DEV_ROWS]


def rows_of(folder: Path, name: str, count: int, *, seed: int, dev: bool) -> tuple[list[Row], list[Row]]:
    """The training rows of a cell and its scored rows: the whole test set, or with `dev` rows that are not drawn."""
    rows = read_set(folder, name, "train")
    numbers, others = draw([label for _, label in rows], count, seed)
    scored = [rows[number] for number in others] if dev else read_set(folder, name, "test")
    return [rows[number] for number in numbers], scored


def task_of(name: str) -> dict[str, Any]:
    """The keys of a set's task that are required and do not concern files."""
    limits = {"range": list(RANGES[name])} if name in RANGES else {}
    return {"kind": kind_of(name), **limits}
