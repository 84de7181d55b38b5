"""Prediction workers: texts in, seconds and answers out.

A spec holds, all texts being answered once before the timing, so that every first-time cost is paid,

texts       a TSV with `text`, or `text_a` and `text_b`
model       a run folder (ours) or a folder of transformers
task        the task's name in the run
options     settings of the side alone
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import Report, Spec

Texts = list[Any]


def read_texts(spec: Spec) -> Texts:
    """Strings, or pairs of strings."""
    with Path(spec["texts"]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [(row["text_a"], row["text_b"]) if "text_a" in row else row["text"] for row in rows]


def timed(spec: Spec, load: Callable[[], Callable[[Texts], list[int] | None]]) -> Report:
    """Seconds of loading and of answering all texts; the answers as class numbers, None where there are none."""
    texts = read_texts(spec)
    began = time.perf_counter()
    answer = load()
    loaded = time.perf_counter()
    answer(texts)
    warmed = time.perf_counter()
    answers = answer(texts)
    seconds = time.perf_counter() - warmed
    return {
        "load_seconds": loaded - began,
        "first_pass_seconds": warmed - loaded,
        "seconds": seconds,
        "examples": len(texts),
        "answers": answers,
    }
