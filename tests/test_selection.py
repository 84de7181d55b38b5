"""What `train` selects: dropout of what it leaves out, selections without effect, and what a stage says of other tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.cli.stage_lines import changed_tasks, percent
from smoothtune.config.loading import load
from smoothtune.errors import UsageError
from smoothtune.training.stage_events import StageBegin
from smoothtune.workflow.train import train
from tests.small_data import STAGE, Prepared, prepare, table

SINGLE, PAIR = {"kind": "mean", "dropout": 0.5}, {"kind": "siamese", "dropout": 0.5}
BARE = [SINGLE, {**SINGLE, "kind": "cls"}, PAIR, {**PAIR, "kind": "joint"}]  # trunks without parameters


@pytest.fixture
def begun(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Any:
    def stage(trunks: dict[str, Any], *tasks: str, **keys: Any) -> Prepared:
        """The model after the first step of a stage."""
        wanted = table(tiny_encoder, **keys)
        wanted["trunks"] |= trunks
        prepared = prepare(wanted, small_data, shared_cache, tasks)
        events = prepared.run().events()
        next(events), next(events)
        return prepared

    return stage


@pytest.mark.parametrize("options", BARE, ids=lambda options: options["kind"])
@pytest.mark.parametrize(
    ("keys", "drops"),
    [
        ({}, True),
        ({"train": ["trunks", "outputs"]}, True),
        ({"train": ["trunks.NAME", "outputs"]}, True),
        ({"train": ["encoder", "outputs"]}, False),
        ({"train": ["outputs"]}, False),
        ({"train": ["outputs"], "frozen_dropout": True}, True),
    ],
)
def test_a_trunk_without_parameters_drops_where_the_stage_selects_it(
    options: dict[str, Any], keys: dict[str, Any], drops: bool, begun: Any
) -> None:
    name, task = ("single", "mood") if options["kind"] in ("mean", "cls") else ("pair", "same")
    named = {**keys, "train": [part.replace("NAME", name) for part in keys["train"]]} if "train" in keys else keys
    trunk = begun({name: options}, task, **named).model.trunks[name]
    assert trunk.dropout.training is drops


def test_a_selected_trunk_drops_beside_a_frozen_one_and_the_frozen_one_rests(begun: Any) -> None:
    trunks = {"single": SINGLE, "pair": {"kind": "pwim_resnet", "depth": 1}}
    found = begun(trunks, "mood", "same", train=["trunks.single", "outputs"]).model.trunks
    assert (found["single"].dropout.training, found["pair"].training) == (True, False)
    found = begun(trunks, "mood", "same", train=["trunks.pair", "outputs"]).model.trunks
    assert (found["single"].dropout.training, found["pair"].training) == (False, True)


@pytest.mark.parametrize(
    ("trunk", "keys", "why"),
    [
        ({**SINGLE, "dropout": 0.0}, {}, "and has no dropout to switch on"),
        (SINGLE, {"frozen_dropout": True}, "and `frozen_dropout` has its dropout on anyway"),
    ],
)
def test_naming_a_trunk_without_effect_is_refused(
    trunk: dict[str, Any], keys: dict[str, Any], why: str, begun: Any
) -> None:
    with pytest.raises(UsageError) as error:
        begun({"single": trunk}, "mood", train=["trunks.single", "outputs"], **keys)
    what = f"'trunks.single' names no parameter of this model, {why}"
    assert str(error.value) == f"stage together: train: {what}; correct the selection"


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("trunk", "stage", "said"),
    [
        (SINGLE, {"train": ["trunks.single"]}, "stage late: train: trunks.single names no parameter of this model"),
        (
            {**SINGLE, "dropout": 0.0},
            {"train": ["trunks.single", "outputs"]},
            "stage late: train: 'trunks.single' names no parameter of this model, and has no dropout to switch on",
        ),
        (
            SINGLE,
            {"train": ["lora.same", "adapters.same"]},
            "lora.same, adapters.same leaves nothing to learn from task mood",
        ),
    ],
)
def test_check_refuses_the_selections_that_train_refuses(
    trunk: dict[str, Any], stage: dict[str, Any], said: str, tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = table(tiny_encoder, trunk=trunk, name="joint")
    wanted["stages"].append({**STAGE, "name": "late", **stage})
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(wanted), encoding="utf-8")
    answer = CliRunner().invoke(app, ["check", str(file), "--data-dir", str(small_data)])
    assert isinstance(answer.exception, UsageError)
    assert said in str(answer.exception)
    with pytest.raises(UsageError) as error:
        train(file, data_dir=small_data, run_dir=tmp_path / "run")
    assert str(error.value) == str(answer.exception)


def test_a_stage_tells_which_other_tasks_go_through_what_it_trains(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, own_cache: Path
) -> None:
    wanted = table(tiny_encoder, trunk={"kind": "pwim_dcnn", "depth": 2}, stop={"max_steps": 2})
    more = {**STAGE, "stop": {"max_steps": 1}, "tasks": ["same"]}
    wanted["stages"] += [
        {**more, "name": "whole"},
        {**more, "name": "pairs", "train": ["trunks", "outputs"]},
        {**more, "name": "own", "train": ["outputs"]},
    ]
    file, begins = tmp_path / "small.toml", []
    file.write_text(tomli_w.dumps(wanted), encoding="utf-8")
    train(
        load(file).experiment, data_dir=small_data, run_dir=tmp_path / "first",
        listen=lambda event: begins.append(event) if isinstance(event, StageBegin) else None,
    )  # fmt: skip
    assert [begin.others for begin in begins] == [
        {},
        {"mood": ("encoder",), "near": ("encoder", "trunks.pair")},
        {"mood": (), "near": ("trunks.pair",)},
        {"mood": (), "near": ()},
    ]
    arguments = ["train", str(file), "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    said = CliRunner().invoke(app, arguments).stderr
    assert "  near also goes through trunks.pair, and is not in this stage: its answers change\n" in said
    assert "  mood also goes through the encoder, and is not in this stage: its answers change\n" in said
    assert said.count("its answers change") == 3
    together, _, alone = said.partition("\nstage whole: ")
    assert "| score 0." in together
    assert not re.search("score of (mood|same|near)", together)
    scores = [line for line in alone.splitlines() if "| score" in line or "best score" in line]
    assert len(scores) >= 9  # of each of three stages an epoch, its end and what came of it
    assert all("score of same " in line for line in scores)


def test_tasks_that_go_through_the_same_parts_are_told_in_one_line() -> None:
    others = {"a": ("encoder",), "b": ("encoder",), "c": ("encoder", "trunks.x"), "d": ()}
    assert list(changed_tasks(others)) == [
        "a, b also go through the encoder, and are not in this stage: their answers change",
        "c also goes through the encoder and trunks.x, and is not in this stage: its answers change",
    ]


@pytest.mark.parametrize(
    ("share", "said"),
    [(3_462 / 22_568_838, "0.015%"), (0.0025, "0.25%"), (0.0123, "1.2%"), (0.5, "50.0%"), (1.0, "100.0%")],
)
def test_a_small_share_has_two_significant_digits(share: float, said: str) -> None:
    assert percent(share) == said
