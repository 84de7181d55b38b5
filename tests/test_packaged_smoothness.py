"""The packaged experiments with smoothness: the papers' values, and a few steps of each on made and on real data."""

from __future__ import annotations

import math
import os
import random
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from smoothtune.config.catalogue import catalogue
from smoothtune.config.experiment import Experiment
from smoothtune.config.loading import load, packaged_names
from smoothtune.config.regularisers import ProximalOptions, SmoothnessOptions
from smoothtune.config.stage import Stage
from smoothtune.training.loop import StepReport
from smoothtune.workflow.train import train
from tests.tiny import WORDS

WANG = SmoothnessOptions(preset="wang", precision="float32")
CHEN = SmoothnessOptions(preset="paper", weight=1, precision="float32")
PROXIMAL = ProximalOptions(weight=1, precision="float32")
PLAIN = "inverse_size"

# name: the plain experiment that it extends, its regularisers, its weighting, what its first line says of the table
ROWS: dict[str, tuple[str, tuple[Any, ...], tuple[str, ...], str]] = {
    "wang/pwim-resnet-smart3": (
        "wang/pwim-resnet", (WANG.model_copy(update={"weight": 3.0}),), (PLAIN,), "Wang, Table 1, row 5:",
    ),
    "wang/pwim-resnet-convbilstm-smart3": (
        "wang/pwim-resnet-convbilstm", (WANG.model_copy(update={"weight": 3.0}),), (PLAIN,), "Wang, Table 1, row 6:",
    ),
    "wang/pwim-resnet-convbilstm-smart3-learned": (
        "wang/pwim-resnet-convbilstm", (WANG.model_copy(update={"weight": 3.0}),), (PLAIN, "learned"),
        "Wang, Table 1, row 7:",
    ),
    "wang/pwim-resnet-convbilstm-smart5": (
        "wang/pwim-resnet-convbilstm", (WANG.model_copy(update={"weight": 5.0}),), (PLAIN,), "Wang, Table 1, row 8:",
    ),
    "chen/mtl-smart": (
        "chen/mtl", (CHEN,), ("none",), 'Chen and Zhang, Table 2, row "SST Quora STS MTL Smart":',
    ),
    "chen/mtl-smart-frozen": (
        "chen/mtl-frozen", (CHEN,), ("none",), 'Chen and Zhang, Table 1, row "SST Quora STS MTL Smart":',
    ),
    "chen/mtl-smart-proximal": (
        "chen/mtl", (CHEN, PROXIMAL), ("none",), 'Chen and Zhang, Table 2, row "SST Quora STS MTL Smart",',
    ),
}  # fmt: skip


def test_every_packaged_experiment_with_regularisers_is_looked_at_here() -> None:
    looking = [name for name in packaged_names() if any(stage.regularisers for stage in load(name).experiment.stages)]
    assert looking == sorted(
        [*ROWS, "wang/full"]
    )  # whose first stage is wang/pwim-resnet-convbilstm-smart5: test_stages.py


@pytest.mark.parametrize("name", ROWS)
def test_it_is_its_plain_experiment_with_the_regularisers_of_the_paper(name: str) -> None:
    plain, regularisers, weighting, _ = ROWS[name]
    found, without = load(name).experiment, load(plain).experiment
    assert len(found.stages) == 1
    assert found.stages[0].regularisers == regularisers
    assert found.stages[0].weighting == weighting
    assert found.stages[0].name == without.stages[0].name
    bare = found.stages[0].model_copy(update={"regularisers": (), "weighting": without.stages[0].weighting})
    assert found.model_copy(update={"name": plain, "stages": (bare,)}) == without


def test_the_presets_of_the_papers_have_their_values() -> None:
    for options in (WANG, CHEN):
        assert (options.radius, options.noise, options.step_size, options.steps) == (1e-5, 1e-5, 1e-3, 1)
        assert (options.norm, options.layer, options.every, options.fraction) == ("inf", 0, 1, 1.0)
    assert (WANG.direction, WANG.projection) == ("raw", "sphere")
    assert (CHEN.direction, CHEN.projection) == ("normalised", "ball")
    assert (PROXIMAL.weight, PROXIMAL.beta_first, PROXIMAL.beta) == (1.0, 0.99, 0.999)


@pytest.mark.parametrize("name", ROWS)
def test_its_first_line_names_the_row_of_the_paper(name: str) -> None:
    assert catalogue()["experiments"][name].startswith(ROWS[name][3])


def write_rows(folder: Path, rows: int = 16) -> Path:
    """sst/, quora/ and sts/ with random words, in the columns of the public data."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.sample(WORDS, draw.randint(3, 9)))

    for split in ("train", "dev"):
        lines = {
            "sst": ["sentence\tsentiment", *(f"{text()}\t{row % 5}" for row in range(rows))],
            "quora": ["sentence1\tsentence2\tis_duplicate", *(f"{text()}\t{text()}\t{row % 2}" for row in range(rows))],
            "sts": ["sentence1\tsentence2\tsimilarity", *(f"{text()}\t{text()}\t{row % 6}" for row in range(rows))],
        }
        for task, found in lines.items():
            (folder / task).mkdir(parents=True, exist_ok=True)
            (folder / task / f"{split}.tsv").write_text("\n".join(found) + "\n", encoding="utf-8")
    return folder


def parts_of(name: str, data: Path, run: Path, *overrides: str) -> dict[str, list[dict[str, float]]]:
    """The loss parts of every step by task."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)

    def listen(event: object) -> None:
        if isinstance(event, StepReport):
            for task, parts in event.losses.items():
                found[task].append(parts)

    cuts = ("stop.max_steps=3", "stop.max_epochs=1", "batch_size=4", "schedule=round_robin")  # one step of each task
    train(name, data_dir=data, run_dir=run, overrides=[*(f"stages.0.{cut}" for cut in cuts), *overrides], listen=listen)
    return found


def assert_all_look(name: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Every step of every task has a finite term of every regulariser, none of which is negative."""
    stage: Stage = load(name).experiment.stages[0]
    labels = {options.label for options in stage.regularisers}
    assert {task: len(steps) for task, steps in found.items()} == {"sst": 1, "quora": 1, "sts": 1}
    for steps in found.values():
        assert all(set(parts) == {"task", "weight", "unweighted"} | labels for parts in steps)
        assert all(math.isfinite(value) for parts in steps for value in parts.values())
        assert all(parts[label] >= 0 for parts in steps for label in labels)


@pytest.mark.parametrize("name", ROWS)
def test_it_trains_on_made_data_and_leaves_itself(
    name: str, tiny_encoder: Path, tmp_path: Path, own_cache: Path
) -> None:
    data, run = write_rows(tmp_path / "data"), tmp_path / "run"
    found = parts_of(name, data, run, f"encoder.name={tiny_encoder}", "encoder.max_length=24")
    assert_all_look(name, found)
    assert regularisers(load(run / "experiment.toml").experiment) == regularisers(load(name).experiment)


def regularisers(experiment: Experiment) -> list[Any]:
    return [options for stage in experiment.stages for options in stage.regularisers]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the public data."""
    given = os.environ.get("SMOOTHTUNE_DATA")
    if not given:
        pytest.skip("SMOOTHTUNE_DATA does not name the folder of the public data sets")
    folder = tmp_path_factory.mktemp("heads")
    for task in ("sst", "quora", "sts"):
        (folder / task).mkdir()
        for split in ("train", "dev"):
            with (Path(given) / task / f"{split}.tsv").open(encoding="utf-8") as lines:
                head = list(islice(lines, 9))
            (folder / task / f"{split}.tsv").write_text("".join(head), encoding="utf-8")
    return folder


@pytest.mark.data
@pytest.mark.parametrize("name", ROWS)
def test_it_trains_on_rows_of_the_real_data(name: str, heads: Path, tmp_path: Path) -> None:
    found = parts_of(name, heads, tmp_path / "run", "stages.0.precision=float32")
    assert_all_look(name, found)
