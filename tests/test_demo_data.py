"""The demo data are what their README says: hand-written, balanced, without templates and without leaks."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict

import pytest

from smoothtune.config.loading import PACKAGED

FILES = {"reviews": ("text",), "questions": ("question1", "question2"), "similarity": ("sentence1", "sentence2")}


def rows(name: str, split: str) -> list[dict[str, str]]:
    with (PACKAGED / "demo" / f"{name}_{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", strict=True))


def texts(name: str, split: str) -> list[str]:
    return [row[column] for row in rows(name, split) for column in FILES[name]]


@pytest.mark.parametrize("name", FILES)
def test_sizes(name):
    assert (len(rows(name, "train")), len(rows(name, "dev"))) == (200, 80)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_labels_are_balanced(split):
    stars = Counter(row["stars"] for row in rows("reviews", split))
    assert sorted(stars) == list("12345")
    assert len(set(stars.values())) == 1
    same = Counter(row["same"] for row in rows("questions", split))
    assert same["0"] == same["1"]
    bands = Counter(min(int(float(row["similarity"])), 4) for row in rows("similarity", split))
    assert min(bands.values()) >= 0.15 * len(rows("similarity", split))


@pytest.mark.parametrize("name", FILES)
def test_no_text_twice_and_no_dev_text_in_train(name):
    everything = [" ".join(text.lower().split()) for split in ("train", "dev") for text in texts(name, split)]
    assert [text for text, count in Counter(everything).items() if count > 1] == []


def test_few_word_5_grams_recur():
    items = defaultdict(set)
    for name in FILES:
        for split in ("train", "dev"):
            for number, row in enumerate(rows(name, split)):
                for column in FILES[name]:
                    words = re.findall(r"[a-z0-9']+", row[column].lower())
                    for start in range(len(words) - 4):
                        items[tuple(words[start : start + 5])].add((name, split, number))
    recurring = sum(len(found) > 2 for found in items.values())
    assert len(items) > 8000
    assert recurring <= 0.03 * len(items)
