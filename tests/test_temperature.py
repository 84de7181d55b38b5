"""Temperatures: the fit, and the trained model that answers at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_loss

from smoothtune import load as load_model
from smoothtune.config.loading import load
from smoothtune.errors import ConfigurationError, UsageError
from smoothtune.evaluation.temperature import HIGHEST, fit_temperature, log_loss
from smoothtune.nn.outputs import LinearOutput, divide_logits
from smoothtune.workflow.train import train
from tests.small_data import table
from tests.test_recipe import open_table

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = ["the cat", "a small house", "two moon", "the star is slow"]


def sure_logits(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (500, C) or (500,) three times as large as the labels drawn from them deserve."""
    stream = np.random.default_rng(seed)
    if classes == 1:
        right = stream.normal(size=500)
        return 3 * right, (stream.random(500) < 1 / (1 + np.exp(-right))).astype(int)
    right = 2 * stream.normal(size=(500, classes))
    shares = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
    return 3 * right, np.array([stream.choice(classes, p=share) for share in shares])


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_the_fit_has_the_least_loss_of_a_grid(classes: int) -> None:
    logits, targets = sure_logits(classes)
    fitted = fit_temperature(logits, targets)
    grid = [log_loss(logits / value, targets) for value in np.linspace(1, HIGHEST, 1901)]
    assert log_loss(logits / fitted, targets) <= min(grid) + 1e-6
    assert 2 < fitted < 4.5


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_the_loss_is_that_of_scikit_learn(classes: int) -> None:
    logits, targets = sure_logits(classes)
    shares = 1 / (1 + np.exp(-logits)) if classes == 1 else np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert log_loss(logits, targets) == pytest.approx(sklearn_loss(targets, shares, labels=range(max(classes, 2))))


def test_a_model_is_never_made_surer() -> None:
    targets = np.arange(6) % 2
    assert fit_temperature(np.where(targets == 1, 0.1, -0.1), targets) == 1.0
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0


def test_logits_of_a_regression_are_not_divided() -> None:
    output = LinearOutput(3, 1, kind="regression", value_range=(0.0, 5.0))
    with pytest.raises(UsageError, match="a regression has no logits"):
        divide_logits(output, 2.0)


@pytest.mark.parametrize("value", [0.5, 21, "train"])
def test_other_values_are_refused(tiny_encoder: Path, small_data: Path, value: Any) -> None:
    wanted = table(tiny_encoder)
    wanted["tasks"]["mood"]["temperature"] = value
    with pytest.raises(ConfigurationError, match=r"tasks\.mood\.temperature"):
        load(wanted, data_dir=small_data)


def logits_by_task(run: Path) -> dict[str, np.ndarray]:
    """Log odds of the first class to the last, by task."""
    model = load_model(run, precision="float32")
    pairs = [(text, TEXTS[0]) for text in TEXTS]
    asked: dict[str, Any] = {"mood": TEXTS, "same": pairs}
    shares = {task: np.asarray(model.predict_probabilities(task, texts)) for task, texts in asked.items()}
    return {task: np.log(share[:, 0] / share[:, -1]) for task, share in shares.items()}


def test_a_run_answers_at_the_temperatures_of_its_tasks(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    plain = table(tiny_encoder)
    warm = table(tiny_encoder)
    warm["tasks"]["mood"]["temperature"], warm["tasks"]["same"]["temperature"] = 2.5, "dev"
    for wanted, name in ((plain, "plain"), (warm, "warm")):
        train(wanted, data_dir=small_data, run_dir=tmp_path / name)
    record = json.loads((tmp_path / "warm" / "run.json").read_text())
    assert record["temperatures"]["mood"] == 2.5
    assert "temperatures" not in json.loads((tmp_path / "plain" / "run.json").read_text())
    before, after = logits_by_task(tmp_path / "plain"), logits_by_task(tmp_path / "warm")
    for task, temperature in record["temperatures"].items():
        np.testing.assert_allclose(after[task], before[task] / temperature, rtol=2e-3, atol=2e-4)


def test_a_temperature_that_is_given_holds_for_a_probe_too(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = open_table(tiny_encoder, "mood")
    wanted["tasks"]["mood"]["temperature"] = 3.0
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["temperatures"] == {"mood": 3.0}


def test_a_probe_that_is_fitted_again_keeps_its_temperature(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    weights = []
    for temperature in (1.0, 4.0):
        wanted = table(tiny_encoder, init="probe", train=["outputs"], stop={"max_steps": 0})
        wanted["tasks"]["mood"] |= {"dev": 0.2, "temperature": temperature}
        folder = tmp_path / str(temperature)
        train({**wanted, "refit": "probes"}, data_dir=small_data, run_dir=folder)
        assert json.loads((folder / "run.json").read_text())["refit"] == ["mood"]
        weights.append(load_model(folder).network.state_dict()["outputs.mood.linear.weight"])
    torch.testing.assert_close(weights[0] / 4, weights[1])


def test_temperatures_change_no_step_of_training(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    lines = []
    for name, value in (("plain", None), ("warm", 3.0)):
        wanted = table(tiny_encoder)
        wanted["tasks"]["mood"]["temperature"] = value if value is not None else 1.0
        train(wanted, data_dir=small_data, run_dir=tmp_path / name)
        lines.append([json.loads(line)["losses"] for line in (tmp_path / name / "metrics.jsonl").open()])
    assert lines[0] == lines[1]
    weights = [load_model(tmp_path / name).network.state_dict() for name in ("plain", "warm")]
    assert torch.equal(weights[0]["outputs.mood.linear.weight"] / 3, weights[1]["outputs.mood.linear.weight"])
