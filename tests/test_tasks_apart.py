"""Stages that leave each task in a state of its own, and the recipe for several tasks, which writes them."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from typer.testing import CliRunner

from smoothtune import load as load_model
from smoothtune.cli.main import app
from smoothtune.config.loading import load
from smoothtune.errors import ConfigurationError
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.stage_events import StageEnd, StageEpoch
from smoothtune.workflow import trial
from smoothtune.workflow.train import resume, train
from smoothtune.workflow.trial import Comparison
from tests.killing import KillAt, same_run, until_killed
from tests.small_data import TASKS, table
from tests.test_recipe import open_table

pytestmark = pytest.mark.usefixtures("own_cache")


def apart(encoder: Path, **stop: Any) -> dict[str, Any]:
    """Probes of three tasks, then LoRA of each at a rate that harms some of them."""
    wanted = table(
        encoder, init="probe", train=["lora", "outputs"], learning_rate={"adaptations": 0.05, "outputs": 0.05},
        stop={"max_epochs": 5, "per_task": True, "no_task_below_start": True, **stop},
    )  # fmt: skip
    wanted["runtime"] = {"threads": 1, "checkpoint_every": 1}
    return wanted


def own_weights(model: MultiTaskModel, task: str) -> dict[str, torch.Tensor]:
    parts = (f"outputs.{task}.", f"lora.{task}.")
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(parts)}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_each_task_leaves_its_own_state(tiny_encoder: Path, small_data: Path, tmp_path: Path, keep: str) -> None:
    events: list[Any] = []
    train(apart(tiny_encoder, keep=keep), data_dir=small_data, run_dir=tmp_path / "run", listen=events.append)
    epochs = [event for event in events if isinstance(event, StageEpoch)]
    (end,) = [event for event in events if isinstance(event, StageEnd)]
    start = epochs[0].report.dev.main
    steps = {}
    for task in TASKS:
        values = {event.report.step: event.report.dev.main[task] for event in epochs}
        allowed = [step for step, value in values.items() if value >= start[task] - 1e-9]
        best = max(allowed, key=lambda step: (values[step], -step))
        steps[task] = best if keep == "best" else max(allowed)
        assert end.after.main[task] == values[steps[task]]
        assert end.after.main[task] >= start[task]
    assert end.best_steps == steps
    assert len(set(steps.values())) > 1  # else the test shows nothing
    record = json.loads((tmp_path / "run" / "run.json").read_text())["stages"][0]
    assert record["best_steps"] == steps
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for task, main in evaluation["main"].items():
        assert evaluation["tasks"][task][main]["value"] == pytest.approx(end.after.main[task], abs=1e-6)


@pytest.mark.parametrize("place", [1, 9, 14, 22])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_killed_and_resumed_each_task_leaves_the_same_state(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, place: int, keep: str
) -> None:
    wanted = apart(tiny_encoder, keep=keep)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(wanted, data_dir=small_data, run_dir=whole)
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=cut, listen=KillAt(place)))
    resume(cut)
    assert same_run(cut, whole)


def test_what_tasks_share_cannot_be_left_in_several_states(tiny_encoder: Path, small_data: Path) -> None:
    wanted = apart(tiny_encoder)
    wanted["stages"][0]["train"] = ["lora", "trunks", "outputs"]
    with pytest.raises(ConfigurationError, match="but trunks may be shared"):
        load(wanted, data_dir=small_data)


def decide(monkeypatch: pytest.MonkeyPatch, *better: str) -> None:
    """Let the trial find fine-tuning better for these tasks."""
    judge = trial._judged

    def verdict(inputs: Any, task: str, compared: Comparison, rows: int) -> Comparison:
        return replace(judge(inputs, task, compared, rows), temperature=1.7, better=task in better)

    monkeypatch.setattr(trial, "_judged", verdict)


def recipe_run(encoder: Path, data: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The resolved experiment, `run.json` and events of three tasks by the recipe."""
    events: list[Any] = []
    train(open_table(encoder, *TASKS), data_dir=data, run_dir=folder, listen=events.append)
    resolved = tomllib.loads((folder / "experiment.toml").read_text())
    return resolved, json.loads((folder / "run.json").read_text()), events


def test_the_recipe_fine_tunes_the_tasks_that_gain_and_leaves_the_others_as_probes(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "mood", "near")
    resolved, record, _ = recipe_run(tiny_encoder, small_data, tmp_path / "run")
    first, second = resolved["stages"]
    assert (first["name"], first["init"], first["stop"]["max_steps"]) == ("probe", "probe", 0)
    assert (second["tasks"], second["train"]) == (["mood", "near"], ["lora", "outputs"])
    assert second["stop"]["keep"] == "last"
    models = record["recipe"]["model"]
    steps = record["stages"][-1]["best_steps"]
    assert models == {"mood": _model(steps["mood"]), "same": "probe", "near": _model(steps["near"])}
    assert resolved["tasks"]["mood"]["temperature"] == 1.7
    assert "temperature" not in resolved["tasks"]["same"]
    assert record.get("temperatures", {}) == ({"mood": 1.7} if steps["mood"] else {})
    beside = json.loads((tmp_path / "run" / "evaluation.json").read_text())["baselines"].get("probe", {"tasks": {}})
    assert set(beside["tasks"]) == {task for task, model in models.items() if model == "fine-tuned"}
    model = load_model(tmp_path / "run").network
    assert set(model.lora) == {"mood", "near"}
    for task, scores in record["stages"][-1]["before"]["dev"].items():
        main = "pearson" if task == "near" else "accuracy"
        assert record["stages"][-1]["after"]["dev"][task][main] >= scores[main] - 1e-9


def _model(steps: int) -> str:
    return "fine-tuned" if steps else "probe"


def test_a_task_that_the_recipe_leaves_alone_answers_as_its_probe(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "mood")
    recipe_run(tiny_encoder, small_data, tmp_path / "some")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    decide(monkeypatch)
    resolved, record, _ = recipe_run(tiny_encoder, small_data, tmp_path / "none")
    assert [stage["name"] for stage in resolved["stages"]] == ["probe"]
    assert set(record["recipe"]["model"].values()) == {"probe"}
    pairs = [("the cat", "a dog"), ("two moon", "the big sun")]
    models = [load_model(tmp_path / name, precision="float32") for name in ("some", "none")]
    shares = [model.predict_probabilities("same", pairs) for model in models]
    np.testing.assert_allclose(np.asarray(shares[0]), np.asarray(shares[1]), atol=1e-6)


def test_the_recipe_of_several_tasks_says_which_model_is_whose(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "mood")
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps(open_table(tiny_encoder, "mood", "same")), encoding="utf-8")
    command = ["train", str(file), "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "recipe: fine-tuning of mood follows" in result.output
    assert "the probe is the model of same" in result.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["model"]
    if record["mood"] == "fine-tuned":
        assert "(same: the linear probe; mood: fine-tuned from the linear probe)" in result.output
    else:
        assert "(mood, same: the linear probe)" in result.output


def test_lora_of_the_recipe_may_be_given(tiny_encoder: Path, small_data: Path) -> None:
    given = {**open_table(tiny_encoder, *TASKS), "lora": {"rank": 2, "targets": ["query"]}}
    assert load(given, data_dir=small_data).experiment.lora.rank == 2
    alone = {**open_table(tiny_encoder, "mood"), "lora": {"rank": 2}}
    with pytest.raises(
        ConfigurationError, match="lora: is read only by stages that train it, and the recipe of one task"
    ):
        load(alone, data_dir=small_data)


def test_the_recipe_takes_the_lora_that_is_given(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "mood")
    given = {**open_table(tiny_encoder, "mood", "same"), "lora": {"rank": 2, "targets": ["query"]}}
    train(given, data_dir=small_data, run_dir=tmp_path / "run")
    lora = load_model(tmp_path / "run").network.lora["mood"]
    assert (lora.options.rank, lora.options.targets) == (2, ("query",))
