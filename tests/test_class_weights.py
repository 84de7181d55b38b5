"""Weights of classes: what they are, what they do to the loss, and that runs with them go on to the bit."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from smoothtune.config.experiment import Experiment
from smoothtune.config.loading import load, to_toml
from smoothtune.config.tasks import AnyTask, Task
from smoothtune.data.class_weights import class_weights_of
from smoothtune.data.task_data import read_tasks
from smoothtune.errors import DataError
from smoothtune.objective.class_weights import ClassWeights
from smoothtune.objective.look import Look
from smoothtune.objective.losses import example_losses
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.training.step import StepModule, StepName
from smoothtune.workflow.check import check_experiment
from smoothtune.workflow.train import resume, train
from tests.killing import KillAt, same_run, until_killed
from tests.small_data import TASKS, Always, Prepared, prepare, table

NAME = StepName(seed=1, stage="s", number=3, rank=0, progress=0.25)


def task(kind: str = "classification", **keys: Any) -> AnyTask:
    wanted = {"kind": kind, "text": "a", "label": "y", "train": "a.tsv", **keys}
    found: AnyTask = TypeAdapter(Task).validate_python(wanted)
    return found


def weights(wanted: Any, targets: list[int], labels: tuple[str, ...] = ("a", "b", "c")) -> list[float] | None:
    found = class_weights_of(task(class_weights=wanted), labels, np.array(targets))
    assert found is None or found.dtype == np.float32
    return None if found is None else found.tolist()


def test_balanced_weights_are_the_inverse_of_the_counts() -> None:
    assert weights("balanced", [0] * 6 + [1] * 3 + [2]) == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights("balanced", [0, 0, 1, 1, 2, 2]) == [1, 1, 1]
    assert weights("balanced", [0, 0, 2]) == pytest.approx([3 / 4, 3 / 2, 3 / 2])  # b has no rows to be scaled by
    binary = class_weights_of(task("binary", class_weights="balanced"), ("no", "yes"), np.float32([0, 0, 0, 1]))
    assert binary is not None
    assert binary.tolist() == pytest.approx([4 / 6, 2])


def test_a_table_is_scaled_to_a_mean_of_one_and_names_some_labels() -> None:
    assert weights({"c": 3}, [0, 0, 1, 2]) == pytest.approx([2 / 3, 2 / 3, 2])
    assert weights({"1.0": 4, "0": 4}, [0, 1], ("0", "1")) == [1, 1]
    assert weights({"a": 1e308, "b": 1e308}, [0, 1, 1, 0]) == pytest.approx([1, 1, 0], abs=1e-9)


@pytest.mark.parametrize("wanted", [None, "none"])
def test_without_weights_there_are_none(wanted: Any) -> None:
    assert weights(wanted, [0, 1, 2]) is None
    assert class_weights_of(task("regression"), None, np.float32([0.5, 1])) is None


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.one_of(st.just("balanced"), st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1e3), min_size=1)),
)
def test_the_mean_over_the_training_rows_is_one(targets: list[int], wanted: Any) -> None:
    found = weights(wanted, targets, ("a", "b", "c", "d"))
    assert found is not None
    assert all(weight > 0 for weight in found)
    assert np.mean([found[target] for target in targets]) == pytest.approx(1, rel=1e-5)
    assert weights(wanted, targets[::-1], ("a", "b", "c", "d")) == found


def test_losses_of_examples_are_scaled_by_their_class() -> None:
    scale = ClassWeights({"mood": torch.tensor([1.0, 2.0, 4.0]), "train": torch.tensor([0.5, 3.0])})
    losses = torch.tensor([1.0, 10.0, 100.0])
    assert scale("mood", losses, torch.tensor([2, 0, 1])).tolist() == [4, 10, 200]
    assert scale("train", losses, torch.tensor([0.0, 1.0, 0.0])).tolist() == [0.5, 30, 50]
    assert scale("other", losses, torch.tensor([2, 0, 1])) is losses
    assert scale.state_dict() == {}
    assert scale.to("meta").get_buffer("weights_0").device.type == "meta"


@pytest.fixture
def prepared(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    return prepare(table(tiny_encoder), small_data, shared_cache)


class Plain(Always):
    """A regulariser whose term does not depend on the classes."""

    name = "plain"

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        return look.logits.square().mean(), {}


@pytest.mark.parametrize("name", TASKS)
def test_a_step_has_the_mean_of_the_weighted_losses_and_the_same_terms(prepared: Prepared, name: str) -> None:
    given_weights = {"mood": torch.tensor([0.5, 2.0, 1.0]), "same": torch.tensor([0.25, 3.0])}
    facts = {task: TaskFacts(40, 1.0) for task in TASKS}

    def step(class_weights: dict[str, Tensor]) -> StepModule:
        weighting = WeightingProduct(("none",), facts)
        return StepModule(
            prepared.model, weighting, dtype=torch.float32, regularisers=[Plain()], class_weights=class_weights
        )

    batch = prepared.train[name].batch(np.arange(8))
    plain, weighted = step({})(batch, NAME), step(given_weights)(batch, NAME)
    assert torch.equal(plain["plain"], weighted["plain"])
    assert torch.equal(weighted["unweighted"], weighted["task"].detach())
    assert batch.labels is not None
    losses = example_losses(prepared.model.tasks[name].kind, prepared.model(batch).logits, batch.labels)
    scale = given_weights[name][batch.labels.long()] if name in given_weights else torch.ones(8)
    assert weighted["task"].item() == pytest.approx((losses * scale).mean().item(), rel=1e-5)
    assert plain["task"].item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert torch.equal(plain["task"], weighted["task"]) == (name == "near")


def uneven(encoder: Path, **keys: Any) -> dict[str, Any]:
    wanted = table(encoder, stop={"max_epochs": 2}, accumulate=2)
    wanted["tasks"]["mood"]["class_weights"] = {"sky": 3}
    wanted["tasks"]["same"]["class_weights"] = "balanced"
    return {**wanted, "runtime": {"checkpoint_every": 1}, **keys}


@pytest.mark.usefixtures("own_cache")
def test_a_run_with_weights_differs_and_goes_on_to_the_bit(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = uneven(tiny_encoder)
    whole = train(wanted, data_dir=small_data, run_dir=tmp_path / "whole")
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(9)))
    resume(tmp_path / "cut")
    assert same_run(tmp_path / "cut", tmp_path / "whole")
    written = tomllib.loads((tmp_path / "whole" / "experiment.toml").read_text())
    assert written["tasks"]["mood"]["class_weights"] == {"sky": 3.0}
    assert "class_weights" not in written["tasks"]["near"]
    for name in ("mood", "same"):
        wanted["tasks"][name]["class_weights"] = "none"
    none = train(wanted, data_dir=small_data, run_dir=tmp_path / "none")
    for name in ("mood", "same"):
        del wanted["tasks"][name]["class_weights"]
    silent = train(wanted, data_dir=small_data, run_dir=tmp_path / "silent")
    assert same_run(tmp_path / "none", tmp_path / "silent")
    assert none.evaluation == silent.evaluation
    losses = [json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["losses"] for run in (whole, none)]
    assert losses[0] != losses[1]


def test_weights_of_labels_that_the_data_do_not_have_are_refused(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = uneven(tiny_encoder)
    wanted["tasks"]["mood"]["class_weights"] = {"beast": 1, "plcae": 2, "mud": 1}
    said = [
        "tasks.mood.class_weights: there is no label 'plcae' (labels: beast, place, sky). Did you mean 'place'?",
        "tasks.mood.class_weights: there is no label 'mud' (labels: beast, place, sky).",
    ]
    for begin in (
        check_experiment,
        lambda source, data_dir: train(source, data_dir=data_dir, run_dir=tmp_path / "run"),
    ):
        with pytest.raises(DataError) as caught:
            begin(wanted, data_dir=small_data)
        assert [str(problem) for problem in caught.value.problems] == said
    assert not (tmp_path / "run").exists()


def test_weights_come_back_from_toml_and_know_labels_by_their_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\ty\n" + "".join(f"text {number}\t{number % 2}.0\n" for number in range(40)))
    wanted = {"kind": "binary", "text": "a", "label": "y", "train": "a.tsv", "class_weights": {"1.0": 2, "0": 1}}
    experiment = load({"tasks": {"t": wanted}}).experiment
    assert load(tomllib.loads(to_toml(experiment))).experiment == experiment
    data = read_tasks(experiment, tmp_path, tmp_path / "cache")["t"]
    found = class_weights_of(data.task, data.labels, data.targets("train"))
    assert found is not None
    assert found[1] / found[0] == pytest.approx(2)
    overrides = ["tasks.t.class_weights.1=5"]
    table_of = load({"tasks": {"t": {**wanted, "class_weights": {"0": 1}}}}, overrides=overrides).experiment.tasks["t"]
    assert isinstance(experiment, Experiment)
    assert table_of.kind == "binary"
    assert table_of.class_weights == {"0": 1.0, "1": 5.0}
