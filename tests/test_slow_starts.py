"""Warm-up against patience: what `check` and `train` say, and that the packaged stages reach their peak rate in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.config.loading import PACKAGED, load, packaged_names
from smoothtune.workflow.slow_starts import SlowStart, slow_starts
from tests.small_data import STAGE, table

WANG = [name for name in packaged_names() if name.startswith("wang/")]


@pytest.mark.parametrize(
    ("keys", "slow"),
    [
        ({"warmup": 0.1, "stop": {"patience": 3, "max_epochs": 40}}, True),
        ({"warmup": 0.1, "stop": {"patience": 3, "max_epochs": 30}}, False),  # the first epoch sets the mark
        ({"from": "whole", "warmup": 0.1, "stop": {"patience": 3, "max_epochs": 30}}, True),
        ({"from": "mood", "warmup": 0.1, "stop": {"patience": 3, "max_epochs": 30}}, False),  # not all outputs trained
        ({"warmup": 0.1, "stop": {"max_epochs": 40}}, False),
        ({"warmup": 0.0, "stop": {"patience": 1, "max_epochs": 40}}, False),
        ({"warmup": 0.1, "stop": {"patience": 3, "max_epochs": 40, "max_steps": 9}}, False),
    ],
)
def test_a_warm_up_as_long_as_the_stage_may_last_is_found(keys: dict[str, Any], slow: bool, tiny_encoder: Path) -> None:
    wanted = table(tiny_encoder, name="whole")
    wanted["stages"].append({**STAGE, "name": "mood", "tasks": ["mood"], "from": "start"})
    wanted["stages"].append({**STAGE, "name": "last", "from": "start", **keys})
    found = list(slow_starts(load(wanted).experiment))
    epochs = keys["stop"]["max_epochs"]
    assert found == ([SlowStart("last", 0.1 * epochs, epochs, 3)] if slow else [])


def test_check_and_train_say_so_in_a_line(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, own_cache: Path
) -> None:
    file = tmp_path / "small.toml"
    stop = {"patience": 1, "max_epochs": 4}
    file.write_text(tomli_w.dumps(table(tiny_encoder, warmup=0.6, stop=stop)), encoding="utf-8")
    line = (
        "warning: stage together: its rate rises for 2.4 of its 4 epochs and its patience is 1: "
        "it may end before its rate is at its peak\n"
    )
    for command in (["check"], ["train", "--run-dir", str(tmp_path / "run")]):
        answer = CliRunner().invoke(app, [*command, str(file), "--data-dir", str(small_data)])
        assert answer.exit_code == 0, answer.stderr
        assert line in answer.stderr


def test_every_packaged_stage_has_its_peak_rate_before_it_may_end() -> None:
    for name in packaged_names():
        assert list(slow_starts(load(name).experiment)) == [], name


def test_the_packaged_stages_of_wang_warm_up_for_one_epoch_and_squash_what_the_paper_bounds() -> None:
    assert len(WANG) == 11
    for name in WANG:
        experiment = load(name).experiment
        assert [stage.warmup * stage.stop.max_epochs for stage in experiment.stages] == [1.0] * len(experiment.stages)
        assert experiment.tasks["sts"].squash, name
        text = (PACKAGED / f"{name}.toml").read_text(encoding="utf-8")
        assert "squash = true                  # section 3.1" in text
        assert text.count("weight_decay = 0.01, gradient_clip = 1.0") == len(experiment.stages)
        assert {(stage.weight_decay, stage.gradient_clip) for stage in experiment.stages} == {(0.01, 1.0)}
