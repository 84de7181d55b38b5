"""Probes that are fitted again on training and dev rows, once the dev rows are scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from smoothtune import load as load_model
from smoothtune.config.loading import load
from smoothtune.errors import ConfigurationError
from smoothtune.evaluation.linear_probe import STRENGTHS, ProbeTargets, choose
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.recipe_inputs import RecipeInputs
from smoothtune.workflow.train import train
from smoothtune.workflow.trial import Comparison, _better
from tests.small_data import table
from tests.test_recipe import open_table

pytestmark = pytest.mark.usefixtures("own_cache")
LAYERS = {"kind": "mean", "layers": [0, 2], "scaling": "standard"}


def probes(encoder: Path, dev: Any, refit: str) -> dict[str, Any]:
    """One task whose model is a probe; `dev` is a file or a fraction."""
    wanted = table(encoder, trunk=LAYERS, init="probe", train=["outputs"], stop={"max_steps": 0})
    wanted["tasks"] = {"mood": {**wanted["tasks"]["mood"], "dev": dev}}
    wanted["trunks"] = {name: options for name, options in wanted["trunks"].items() if name != "pair"}
    return {**wanted, "refit": refit}


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_model(run).network.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}


def test_a_probe_fitted_again_is_that_of_all_rows(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    for name, dev, refit in (("again", 0.2, "probes"), ("all", "mood.dev.tsv", "none"), ("part", 0.2, "none")):
        train(probes(tiny_encoder, dev, refit), data_dir=small_data, run_dir=tmp_path / name)
    again, every, part = (weights(tmp_path / name) for name in ("again", "all", "part"))
    assert again.keys() == every.keys()
    for name, tensor in every.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(again[name], part[name]) for name in part)
    scores = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("again", "part")]
    assert scores[0] == scores[1]  # of the probe that has not seen these rows
    assert (tmp_path / "again" / "dev_predictions.tsv").read_text() == (
        tmp_path / "part" / "dev_predictions.tsv"
    ).read_text()


def test_evaluate_says_that_the_dev_rows_were_trained_on(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    for name, refit in (("again", "probes"), ("part", "none")):
        train(probes(tiny_encoder, 0.2, refit), data_dir=small_data, run_dir=tmp_path / name)
    notes = ["\n".join(evaluate_run(tmp_path / name).notes) for name in ("again", "part")]
    assert "warning: mood: 8 of 8 rows were used to train this run" in notes[0]
    assert "8 of 8 rows" not in notes[1]
    assert json.loads((tmp_path / "again" / "run.json").read_text())["refit"] == ["mood"]
    assert "refit" not in json.loads((tmp_path / "part" / "run.json").read_text())


def test_a_dev_file_is_never_trained_on(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    for name, refit in (("asked", "probes"), ("plain", "none")):
        train(probes(tiny_encoder, "mood.dev.tsv", refit), data_dir=small_data, run_dir=tmp_path / name)
    asked, plain = weights(tmp_path / "asked"), weights(tmp_path / "plain")
    assert all(torch.equal(asked[name], tensor) for name, tensor in plain.items())
    assert "refit" not in json.loads((tmp_path / "asked" / "run.json").read_text())


def test_the_recipe_asks_for_it_and_a_fine_tuned_model_is_left_alone(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = open_table(tiny_encoder, "mood")
    wanted["tasks"]["mood"]["dev"] = 0.2
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record.get("refit", []) == (["mood"] if record["recipe"]["model"] == "probe" else [])
    assert 'refit = "probes"' in (tmp_path / "run" / "experiment.toml").read_text()


def test_where_no_stage_begins_with_probes_there_is_none_to_fit_again(tiny_encoder: Path, small_data: Path) -> None:
    with pytest.raises(ConfigurationError, match='refit: is "probes", but no stage begins with probes'):
        load({**table(tiny_encoder), "refit": "probes"}, data_dir=small_data)


def test_fine_tuning_has_to_gain_more_than_the_rows_that_many_classes_hold_out() -> None:
    compared = Comparison("accuracy", 0.60, 0.65, 2.0, 1.9)
    assert _better({"t": compared}, 300)
    assert not _better({"t": replace(compared, least_gain=0.13)}, 300)
    assert _better({"t": replace(compared, least_gain=0.04)}, 300)


@pytest.mark.parametrize(
    ("dev", "held", "excess"), [(0.1, 23, 0.13), (0.1, 12, 0.0), (0.2, 20, 0.0), ("dev.tsv", 60, 0.0)]
)
def test_the_excess_of_the_dev_part_is_what_it_holds_beyond_its_fraction(dev: Any, held: int, excess: float) -> None:
    inputs = Mock(spec=RecipeInputs)
    inputs.experiment.tasks = {"t": Mock(dev=dev)}
    inputs.rows = lambda task, split: held if split == "dev" else 100 - held
    assert RecipeInputs.dev_excess(inputs, "t") == pytest.approx(excess)


def test_where_no_held_out_row_is_right_the_strength_is_the_largest() -> None:
    features = np.random.default_rng(0).normal(size=(20, 8))
    rows = ProbeTargets("classification", np.arange(20), 20, np.arange(20))
    chosen = choose(features, rows, seed=1)
    assert chosen.score.value == 0
    assert chosen.strength == STRENGTHS[-1]
