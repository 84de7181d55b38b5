"""What the terminal shows of an evaluation: columns, classes, confusion, warnings, and labels that mean harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from smoothtune.cli.evaluation_tables import print_evaluation, warnings
from smoothtune.evaluation.scores import TaskAnswers
from smoothtune.workflow.evaluation import evaluation_of


def evaluation(
    classes: int, *, rows: int = 60, labels: tuple[str, ...] | None = None, right: float = 0.7, probe: bool = False
) -> dict[str, Any]:
    """One task of so many classes; the first has a third of the rows more than the others."""
    generator = np.random.default_rng(1)
    targets = np.arange(rows) % classes * (generator.random(rows) < 0.75)
    predictions = np.where(generator.random(rows) < right, targets, (targets + 1) % classes)
    names = labels if labels is not None else tuple(f"c{number}" for number in range(classes))
    answers = {"mood": TaskAnswers("classification", "accuracy", predictions, targets)}
    others = {"probe": {"mood": TaskAnswers("classification", "accuracy", targets, targets)}} if probe else None
    return evaluation_of(answers, {"mood": names}, largest={"mood": names[0]}, baselines=others).to_json()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("wide")
def test_scores_classes_and_confusion_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(evaluation(4), "dev", per_class=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert lines[0].split() == ["task", "metric", "dev", "95", "%", "interval", "largest", "class", "rows"]
    at = lines.index("mood: each class, with 95 % intervals")
    assert lines[at + 1].split() == ["class", "rows", "precision", "recall", "F1"]
    at = lines.index("mood: rows by label (down) and prediction (across)")
    assert lines[at + 1].split() == ["label", "c0", "c1", "c2", "c3"]
    matrix = np.array([line.split()[1:] for line in lines[at + 3 : at + 7]], dtype=int)
    assert matrix.sum() == 60
    assert matrix[0, 3] == 0  # an empty cell is shown


def test_more_than_12_classes_are_shown_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(evaluation(13), "dev", per_class=False)
    shown = capsys.readouterr()
    assert "each class" not in shown.out
    assert "mood: 13 classes; --per-class shows each of them and which are confused" in shown.err
    print_evaluation(evaluation(13), "dev", per_class=True)
    shown = capsys.readouterr()
    assert "c12" in shown.out
    assert "--per-class" not in shown.err
    print_evaluation(evaluation(12), "dev", per_class=False)
    assert "each class" in capsys.readouterr().out


def test_a_matrix_too_wide_for_the_terminal_is_a_list_of_the_confused_pairs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_evaluation(evaluation(60, rows=600), "dev", per_class=True)
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("mood: confused pairs, the first 20 of "))
    assert lines[at + 1].split() == ["label", "prediction", "rows"]
    counts = [int(line.split()[2]) for line in lines[at + 3 : at + 23]]
    assert counts == sorted(counts, reverse=True)


def test_labels_are_shown_as_they_are_and_never_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    labels = ("[red]x[/red]", "\x1b[31mred", "tab\there")
    print_evaluation(evaluation(3, labels=labels, right=0.0), "dev", per_class=False)
    shown = capsys.readouterr()
    for stream in (shown.out, shown.err):
        assert "\x1b" not in stream
    for label in ("[red]x[/red]", r"\x1b[31mred", r"tab\there"):
        assert label in shown.out
    assert "the largest class ('[red]x[/red]') for every row" in shown.err


def test_a_task_that_a_baseline_reaches_is_warned_of() -> None:
    (line,) = warnings(evaluation(3, right=0.0))
    share = evaluation(3)["baselines"]["largest class"]["tasks"]["mood"]["accuracy"]["value"]
    assert line == (
        f"warning: mood: accuracy 0.000 is no better than the largest class ('c0') for every row ({share:.3f})"
    )
    assert list(warnings(evaluation(3))) == []
    (line,) = warnings(evaluation(3, probe=True))
    assert line.startswith("warning: mood: accuracy 0.")
    assert line.endswith(" is no better than the probe (1.000)")


def test_two_baselines_take_the_place_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(evaluation(3, probe=True), "dev", per_class=False)
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header == ["task", "metric", "dev", "95", "%", "interval", "largest", "class", "probe"]


def test_an_evaluation_of_an_earlier_release_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    old = {"tasks": {"near": {"pearson": {**estimate, "n": 9}}}, "score": estimate, "plain_mean": estimate}
    print_evaluation(old, "dev", per_class=True)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split() == ["task", "metric", "dev", "95", "%", "interval", "rows"]
    assert shown.err == ""
