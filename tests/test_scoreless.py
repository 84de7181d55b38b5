"""A task whose dev rows admit no score: the stage follows the others, and everybody is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.evaluation.comparison import paired_difference
from smoothtune.evaluation.metrics import has_score
from smoothtune.evaluation.scores import TaskAnswers, point_scores, score_tasks
from smoothtune.training.stage_events import StageEnd, StageEpoch
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.events import RunBegin
from smoothtune.workflow.train import resume, train
from tests.killing import KillAt, same_run, until_killed
from tests.small_data import table

pytestmark = pytest.mark.usefixtures("own_cache")
RIGHT, WRONG = np.array([0, 1, 1, 0]), np.array([0, 0, 0, 0])


def answers(targets: Any, predictions: Any = (0.1, 0.2, 0.3, 0.5)) -> dict[str, TaskAnswers]:
    return {
        "same": TaskAnswers("binary", "accuracy", WRONG, RIGHT),
        "near": TaskAnswers("regression", "pearson", np.array(predictions), np.array(targets, dtype=float)),
    }


def test_which_targets_admit_a_score() -> None:
    assert has_score("pearson", np.array([1.0, 2.0]))
    assert not has_score("pearson", np.array([2.0, 2.0]))
    assert not has_score("spearman", np.array([2.0]))
    assert has_score("accuracy", np.array([1, 1]))
    assert not has_score("accuracy", np.array([]))


def test_means_leave_out_tasks_without_a_score() -> None:
    given = answers([2.5] * 4)
    point, whole = point_scores(given), score_tasks(given)
    assert point.scoreless == whole.scoreless == ("near",)
    assert (point.score, point.plain_mean, whole.score.value, whole.plain_mean.value) == (0.5, 0.5, 0.5, 0.5)
    assert math.isnan(point.main["near"])
    assert whole.to_json()["scoreless"] == ["near"]
    assert paired_difference(given, given, seed=1).mean.value == 0


def test_a_model_that_answers_all_alike_is_not_let_off() -> None:
    given = answers([1.0, 2.0, 3.0, 4.0], [2.5] * 4)
    point = point_scores(given)
    assert point.scoreless == ()
    assert math.isnan(point.score)
    assert "scoreless" not in score_tasks(given).to_json()


def test_where_no_task_has_a_score_there_is_none() -> None:
    given = {"near": answers([2.5] * 4)["near"]}
    assert math.isnan(point_scores(given).score)
    assert math.isnan(score_tasks(given).score.value)


@pytest.fixture
def flat(small_data: Path, tmp_path: Path) -> Path:
    """The dev rows of `near` with one number alone."""
    path = tmp_path / "flat.tsv"
    head, *rows = (small_data / "near.dev.tsv").read_text().splitlines()
    path.write_text("\n".join([head, *(row.rpartition("\t")[0] + "\t2.5" for row in rows)]) + "\n")
    return path


def wanted(encoder: Path, flat: Path, **stop: Any) -> dict[str, Any]:
    found = table(encoder, stop={"max_epochs": 6, "patience": 2, **stop})
    found["tasks"]["near"]["dev"] = str(flat)
    return {**found, "runtime": {"checkpoint_every": 1}}


def test_the_stage_follows_the_tasks_that_have_a_score(
    tiny_encoder: Path, small_data: Path, flat: Path, tmp_path: Path
) -> None:
    events: list[Any] = []
    run = train(wanted(tiny_encoder, flat), data_dir=small_data, run_dir=tmp_path / "run", listen=events.append)
    epochs = [event for event in events if isinstance(event, StageEpoch)]
    scores = [event.report.dev.score for event in epochs]
    assert all(math.isfinite(score) for score in scores)
    assert [event.report.dev.main["mood"] / 2 + event.report.dev.main["same"] / 2 for event in epochs] == pytest.approx(
        scores
    )
    assert any(event.best for event in epochs)
    (end,) = [event for event in events if isinstance(event, StageEnd)]
    assert end.best == max(scores)
    assert end.after.score == end.best
    told = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["score"] for line in told] == pytest.approx(scores)
    (begin,) = [event for event in events if isinstance(event, RunBegin)]
    assert begin.check.tasks["near"]["dev"].doubts.constant
    assert run.evaluation is not None
    assert run.evaluation["scoreless"] == ["near"]
    assert evaluate_run(run.folder).to_json() == run.evaluation


def test_such_a_run_is_resumed_to_the_same_bits(
    tiny_encoder: Path, small_data: Path, flat: Path, tmp_path: Path
) -> None:
    given = wanted(tiny_encoder, flat)
    train(given, data_dir=small_data, run_dir=tmp_path / "whole")
    assert until_killed(lambda: train(given, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(40)))
    resume(tmp_path / "cut")
    assert same_run(tmp_path / "cut", tmp_path / "whole")


def test_where_each_task_ends_by_its_own_score_one_without_a_score_trains_as_long_as_the_others(
    tiny_encoder: Path, small_data: Path, flat: Path, tmp_path: Path
) -> None:
    given = wanted(tiny_encoder, flat, per_task=True, patience=1, threshold=0.9)  # no epoch is so much better
    events: list[Any] = []
    train(given, data_dir=small_data, run_dir=tmp_path / "whole", listen=events.append)
    epochs = [event for event in events if isinstance(event, StageEpoch)]
    finished = [task for event in epochs for task in event.finished]
    (end,) = [event for event in events if isinstance(event, StageEnd)]
    assert sorted(finished) == ["mood", "same"]
    assert end.reason == "every task, but those without a score, spent its patience"
    assert len(epochs) < 6
    assert until_killed(lambda: train(given, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(20)))
    resume(tmp_path / "cut")
    assert same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_stage_whose_tasks_all_lack_a_score_says_why_it_ends(
    tiny_encoder: Path, small_data: Path, flat: Path, tmp_path: Path
) -> None:
    given = wanted(tiny_encoder, flat)
    given["stages"][0]["tasks"] = ["near"]
    given["tasks"] = {"near": given["tasks"]["near"]}
    del given["trunks"]["single"]
    events: list[Any] = []
    train(given, data_dir=small_data, run_dir=tmp_path / "run", listen=events.append)
    (end,) = [event for event in events if isinstance(event, StageEnd)]
    assert end.reason == "no score in 2 epochs"


def test_the_program_tells_of_a_task_without_a_score(
    tiny_encoder: Path, small_data: Path, flat: Path, tmp_path: Path
) -> None:
    import tomli_w

    path = tmp_path / "my.toml"
    path.write_text(tomli_w.dumps(wanted(tiny_encoder, flat, max_epochs=1)))
    warning = (
        "warning: near.dev: all 20 rows have the label 2.5: no correlation exists, so the task has no score; "
        "training follows the others"
    )
    for command in (["check"], ["train", "--run-dir", str(tmp_path / "run")]):
        result = CliRunner().invoke(app, [*command, str(path), "--data-dir", str(small_data)], catch_exceptions=False)
        assert warning in result.stderr.splitlines()
    assert "| score of mood, same 0." in result.stderr
    assert "near.pearson is nan: all 20 targets are 2.5" in result.stderr
    assert "all but near" in result.stdout
