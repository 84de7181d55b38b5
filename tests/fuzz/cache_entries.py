"""What reads entries of the cache: every kind of entry, and for each a question whose answer must not depend on the cache.

`ENTRIES` is the table, in which a new kind of entry is one more line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import torch

import smoothtune
from smoothtune.data import content
from smoothtune.inference import precision
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.kernels import building
from smoothtune.workflow.check import check_experiment
from smoothtune.workflow.frozen import StateKeeper
from smoothtune.workflow.train import train
from tests.small_data import Prepared, prepare, table, write_data
from tests.tiny import write_bert

HEADS = {"train": ["trunks", "outputs"], "stop": {"max_epochs": 1}}
SOURCE = 'extern "C" __attribute__((visibility("default"))) int number() { return NUMBER; }\n'
NUMBERS = {"one": 1, "two": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with an encoder, data in several formats and sources of kernels; `cache` is what `XDG_CACHE_HOME` names."""

    root: Path

    @property
    def cache(self) -> Path:
        """The parent of the cache."""
        return self.root / "cache"

    @property
    def entries(self) -> Path:
        """The cache itself."""
        return self.cache / "smoothtune"

    def experiment(self) -> dict[str, Any]:
        """Three tasks; the encoder is left alone, so that its states are kept."""
        wanted = table(self.root / "encoder", **HEADS)
        wanted["tasks"]["mood"] |= {"train": "mood.saved", "dev": "mood.dev.tsv"}
        wanted["tasks"]["same"] |= {"train": "same.train.parquet"}
        return wanted

    def prepared(self) -> Prepared:
        """Data and model."""
        return prepare(self.experiment(), self.root / "data", self.entries)


def made_place(root: Path) -> Place:
    """A place, and this process told to use it: files count as unchanging at once, and measurements are always the same."""
    place = Place(root)
    write_bert(root / "encoder")
    data = write_data(root / "data")
    options = pyarrow.csv.ParseOptions(delimiter="\t")
    pyarrow.parquet.write_table(
        pyarrow.csv.read_csv(data / "same.train.tsv", parse_options=options), data / "same.train.parquet"
    )
    rows = pyarrow.csv.read_csv(data / "mood.train.tsv", parse_options=options).to_pydict()
    datasets.Dataset.from_dict(rows).save_to_disk(str(data / "mood.saved"))
    (root / "sources").mkdir()
    for name, number in NUMBERS.items():
        (root / "sources" / f"{name}.cpp").write_text(SOURCE.replace("NUMBER", str(number)))
    os.environ |= {"XDG_CACHE_HOME": str(place.cache), building.SWITCH: "plain", "TOKENIZERS_PARALLELISM": "false"}
    content._SETTLED = -1
    precision.measure = _measured
    return place


def _measured(model: MultiTaskModel, groups: precision.Groups) -> tuple[list[dict[str, float]], float]:
    return [{"float32": 1.0, "bfloat16": 0.5}] * 3, 0.001


def rows(place: Place) -> str:
    """All that rows and tokens are: texts, labels, lines, keys, ids and lengths."""
    prepared = place.prepared()
    digest = hashlib.sha256(json.dumps(prepared.labels).encode())
    for part in (*prepared.train.values(), *prepared.dev.values()):
        assert part.labels is not None
        for array in (part.labels, part.lines, part.chosen, *(_arrays(part.columns))):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arrays(columns: list[Any]) -> Iterator[np.ndarray]:
    for column in columns:
        yield from (column.ids, column.offsets, column.second, column.full)


def checked(place: Place) -> str:
    """What `check` says."""
    return json.dumps(check_experiment(place.experiment(), data_dir=place.root / "data").to_json(), sort_keys=True)


def states(place: Place) -> str:
    """The states of a frozen encoder, batch by batch."""
    prepared, heard = place.prepared(), []
    keeper = StateKeeper(prepared.model.encoder, torch.float32, place.entries, "stage", heard.append)
    needs = {name: ("mean", None) if name == "mood" else ("states", None) for name in prepared.train}
    digest = hashlib.sha256()
    for examples in keeper.give([prepared.train], needs)[0].values():  # type: ignore[arg-type]
        given = examples.batch(np.arange(len(examples))).states
        assert given is not None, heard[-1]
        digest.update(given.numpy().tobytes())
    return digest.hexdigest()


def measured(place: Place) -> str:
    """In what predictions of some tasks are computed."""
    model, chosen = place.prepared(), []
    for task, examples in model.dev.items():
        chosen.append(str(precision.measured(model.model, [((task,), examples)], "model")))
    return "; ".join(chosen)


def kernels(place: Place) -> str:
    """What two small kernels give."""
    os.environ |= {building.SWITCH: "auto", building.PLACE: str(place.entries)}
    building.SOURCES, building.NAMES = place.root / "sources", tuple(NUMBERS)
    building._libraries.cache_clear()
    libraries = {name: building.kernels(name) for name in NUMBERS}
    return json.dumps([building.told(), *(library and library.number() for library in libraries.values())])


def run(place: Place) -> str:
    """A whole run, and answers of its model."""
    folder = place.root / f"run-{os.getpid()}"
    done = train(place.experiment(), data_dir=place.root / "data", run_dir=folder)
    model = smoothtune.load(folder)
    pairs = [("a cat", "the big dog"), ("rain", "sun and moon")]
    return json.dumps([done.evaluation, [float(value) for value in model.predict("near", pairs)]], sort_keys=True)


class Entry(NamedTuple):
    """A kind of entry: the begin of its names, and the questions that are answered from such entries, with their shares."""

    prefix: str
    questions: dict[Callable[[Place], str], float]


ENTRIES = {
    "contents": Entry("contents/", {rows: 0.6, checked: 0.35, run: 0.05}),
    "rows": Entry("rows-", {rows: 0.6, checked: 0.35, run: 0.05}),
    "tokens": Entry("tokens-", {rows: 0.6, checked: 0.35, run: 0.05}),
    "states": Entry("states-", {states: 0.9, run: 0.1}),
    "precision": Entry("precision-", {measured: 1.0}),
    "kernels": Entry("kernels-", {kernels: 1.0}),
}
