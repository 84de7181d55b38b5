"""The benchmark of Wang's pipeline: it trains, goes on, scores every stage, compares the ends; and what its page shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import harness  # noqa: E402
import results_page as page  # noqa: E402
import wang_pipeline as pipeline  # noqa: E402
from smoothtune.config.loading import load  # noqa: E402
from tests.test_packaged_smoothness import write_rows  # noqa: E402


def test_what_is_changed_of_the_packaged_experiments():
    assert pipeline.overrides("wang/full") == [
        "tasks.quora.max_train_rows=20000", "stages.0.stop.max_epochs=5",
        *(f"stages.{number}.stop.max_epochs=8" for number in (1, 2, 3)),
    ]  # fmt: skip
    assert pipeline.overrides("wang/efficient")[1:] == [f"stages.{number}.stop.max_epochs=8" for number in (0, 1, 2)]


@pytest.mark.usefixtures("own_cache")
def test_both_experiments_are_trained_scored_and_shown(tiny_encoder, tmp_path, monkeypatch):
    def few_steps(name: str) -> list[str]:
        stages = range(len(load(name).experiment.stages))
        changes = {"batch_size": 8, "stop.max_steps": 3, "schedule": "round_robin"}
        return [f"stages.{number}.{key}={value}" for number in stages for key, value in changes.items()]

    monkeypatch.setattr(pipeline, "overrides", few_steps)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    for module in (harness, page):
        monkeypatch.setattr(module, "HERE", tmp_path)
    sizes = [f"encoder.name={tiny_encoder}", "encoder.max_length=24", "trunks.pairs.depth=1", "adapters.size=4"]
    sizes = [part for size in sizes for part in ("--set", size)]
    data, runs = write_rows(tmp_path / "data"), tmp_path / "runs"
    monkeypatch.setattr(
        sys, "argv", ["wang_pipeline.py", "--data-dir", str(data), "--runs", str(runs), "--jobs", "2", *sizes]
    )
    pipeline.main()
    found = json.loads((tmp_path / "results" / "wang_pipeline.json").read_text())["seeds"]["1"]
    full, efficient = (found["runs"][name]["stages"] for name in pipeline.NAMES)
    assert [stage["name"] for stage in full] == ["joint", "sst", "quora", "sts"]
    assert [list(stage["scores"]) for stage in efficient] == [["sst"], ["sst", "quora"], ["sst", "quora", "sts"]]
    assert [stage["score"] is None for stage in efficient] == [True, True, False]
    assert all(stage["score"] is not None and stage["trained"] < stage["parameters"] for stage in full[1:])
    evaluation = json.loads((runs / "wang-full-1" / "evaluation.json").read_text())
    assert full[-1]["score"] == evaluation["score"]
    assert full[-1]["scores"]["sst"] == evaluation["tasks"]["sst"]["accuracy"]
    gains = found["differences"]
    for task in ("sst", "quora", "sts"):
        ends = [run[-1]["scores"][task]["value"] for run in (full, efficient)]
        assert gains["joint"][task]["value"] == pytest.approx(ends[0] - ends[1])
        assert gains["efficient"][task]["value"] == pytest.approx(ends[0] - full[0]["scores"][task]["value"])
    shown = page.page()
    assert (
        "| after | trained | epochs (best) | time | sst, accuracy | quora, accuracy | sts, pearson | score |" in shown
    )
    assert shown.count("\n| sst | ") == 2
    assert "| the joint stage, before the efficient ones | " in shown
    before = (runs / "wang-full-1" / "run.json").stat().st_mtime_ns
    pipeline.main()  # finds both runs done
    assert (runs / "wang-full-1" / "run.json").stat().st_mtime_ns == before


def test_the_page_in_the_tree_shows_the_results_in_the_tree():
    assert page.OUT.read_text(encoding="utf-8") == page.page(), "run make bench-results-page"
