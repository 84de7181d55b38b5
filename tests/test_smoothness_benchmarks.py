"""The benchmarks of smoothness: what is run again, what is chosen, what the page shows, and that each script measures."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import harness  # noqa: E402
import little_data  # noqa: E402
import little_data_cells as cells  # noqa: E402
import little_data_tuning as tuning  # noqa: E402
import looking  # noqa: E402
import smoothness_cost as cost  # noqa: E402
import smoothness_page as page  # noqa: E402
import smoothness_tables as tables  # noqa: E402
from intervals import paired_difference  # noqa: E402
from rows import SOURCES, read_rows  # noqa: E402
from smoothtune.config.loading import load  # noqa: E402

MACHINE = {
    "date": "2026-01-02T00:00:00",
    "processor": "a processor",
    "cores": 2,
    "python": "3.11",
    "packages": {"torch": "2", "transformers": "5"},
}
SETTINGS: dict[str, Any] = {"machine": MACHINE, "load_before": 0.1, "data": "SST, Quora and STS", "threads": 1}
ONE = {"value": 1.0, "low": 0.9, "high": 1.1}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results."""
    for module in (harness, cells):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "HERE", tmp_path)
    return tmp_path / "results"


@pytest.fixture
def grid(results, tmp_path, monkeypatch):
    """A grid whose runs are answered at once, its files, and the seeds that were really run."""
    done: list[tuple[int, int]] = []

    def answer(side: Any, spec: dict[str, Any], **_: Any) -> dict[str, Any]:
        regularisers = spec["experiment"]["stages"][0].get("regularisers", [])
        done.append((spec["experiment"]["seed"], len(regularisers)))
        return {
            "tasks": {"sst": 0.5, "quora": 0.8, "sts": 0.6},
            "score": 0.7 + 0.01 * len(regularisers),
            "train_seconds": 1.0,
        }

    monkeypatch.setattr(cells, "run_side", answer)
    rows = {task: read_rows(source, None)[:40] for task, source in SOURCES.items()}
    cells.write_tasks(tmp_path / "data", rows, rows)
    return cells.Grid("little_data", 1), tmp_path / "data", done


def test_a_cell_that_is_kept_is_not_run_again(grid, results, capsys):
    settings, folder, done = grid
    wanted = [cells.Cell("plain", 1), cells.Cell("r_drop", 1, ({"kind": "r_drop"},)), cells.Cell("plain", 2)]
    first = cells.run_all(wanted, settings, folder)
    assert done == [(1, 0), (1, 1), (2, 0)]
    assert cells.run_all(wanted, settings, folder) == first
    assert len(done) == 3
    assert sorted(path.name for path in (results / "little_data").iterdir()) == [
        "plain-1.json", "plain-2.json", "r_drop-1.json",
    ]  # fmt: skip


def test_a_cell_made_otherwise_is_run_anew_and_one_of_other_code_is_told(grid, results, monkeypatch, capsys):
    settings, folder, done = grid
    cells.run_all([cells.Cell("r_drop", 1, ({"kind": "r_drop"},))], settings, folder)
    cells.run_all([cells.Cell("r_drop", 1, ({"kind": "r_drop", "weight": 2.0},))], settings, folder)
    assert done == [(1, 1), (1, 1)]
    assert "r_drop-1.json is run anew, for these differ: regularisers" in capsys.readouterr().err
    monkeypatch.setattr(cells, "package_code", lambda: "other")
    cells.run_all([cells.Cell("r_drop", 1, ({"kind": "r_drop", "weight": 2.0},))], settings, folder)
    assert len(done) == 2
    assert "made by another code and is taken" in capsys.readouterr().err


def test_a_cell_that_fails_ends_the_grid(grid, monkeypatch):
    settings, folder, _ = grid

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ended with status 1: no memory")

    monkeypatch.setattr(cells, "run_side", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        cells.run_all([cells.Cell("plain", 1), cells.Cell("plain", 2)], settings, folder)


@pytest.mark.parametrize("name", list(little_data.VARIANTS))
def test_every_variant_is_an_experiment_without_selection(name, grid):
    _, folder, _ = grid
    table = cells.quick_table(folder, steps=625, seed=3, regularisers=little_data.VARIANTS[name], rows=cells.TRAIN_ROWS)
    experiment = load(table).experiment
    (stage,) = experiment.stages
    assert stage.stop.max_epochs == 1
    assert stage.schedule_options.steps_per_epoch == 625
    assert {task: found.max_train_rows for task, found in experiment.tasks.items()} == cells.TRAIN_ROWS
    assert [found.kind for found in stage.regularisers] == [found["kind"] for found in little_data.VARIANTS[name]]
    radii = [getattr(found, "radius", getattr(found, "noise", 1.0)) for found in stage.regularisers]
    assert all(
        found.precision == "float32" for found, radius in zip(stage.regularisers, radii, strict=True) if radius < 1e-3
    )


def test_differences_to_plain_are_paired_by_seed():
    runs = {
        (name, seed): {"tasks": {"sst": 0.1 * seed + gain}, "score": 0.2 * seed + gain, "train_seconds": 1.0}
        for seed in (1, 2, 3)
        for name, gain in (("plain", 0.0), ("exact", 0.01 * seed))
    }
    found = little_data.compared(runs, (1, 2, 3), {"plain": None, "exact": "plain"})
    assert found["plain"]["sst"]["difference"] is None
    assert found["plain"]["sst"]["mean"] == pytest.approx(0.2)
    difference = found["exact"]["score"]["difference"]
    assert difference["value"] == pytest.approx(0.02)
    assert difference["high"] - difference["value"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)


def test_what_computes_in_float32_is_compared_with_plain_in_float32():
    assert little_data.beside("plain", ()) is None
    assert {name: little_data.beside(name, tables) for name, tables in little_data.VARIANTS.items() if name != "plain"} == {
        "plain-float32": "plain", "r_drop": "plain", "r_drop-as-paper": "plain", "r3f": "plain-float32", "wang": "plain-float32",
        "paper": "plain-float32", "mtdnn": "plain", "exact": "plain", "cheap": "plain",
    }  # fmt: skip
    values = {"plain": 0.7, "plain-float32": 0.8, "wang": 0.81}
    runs = {
        (name, seed): {"tasks": {}, "score": value, "train_seconds": 1.0}
        for seed in (1, 2)
        for name, value in values.items()
    }
    others = {"plain": None, "plain-float32": "plain", "wang": "plain-float32"}
    assert little_data.compared(runs, (1, 2), others)["wang"]["score"]["difference"]["value"] == pytest.approx(0.01)


def test_a_cell_with_a_precision_trains_and_is_kept_under_it(grid, results):
    settings, folder, _ = grid
    assert cells.quick_table(folder, steps=3, seed=1, precision="float32")["stages"][0]["precision"] == "float32"
    cells.run_all([cells.Cell("plain-float32", 1, (), "float32"), cells.Cell("plain", 1)], settings, folder)
    kept = {
        name: json.loads((results / "little_data" / f"{name}-1.json").read_text())["made_with"]
        for name in ("plain", "plain-float32")
    }
    assert kept["plain-float32"]["precision"] == "float32"
    assert "precision" not in kept["plain"]


def test_a_paired_interval_ignores_what_the_pairs_share():
    found = paired_difference([0.5, 0.9, 0.1], [0.4, 0.8, 0.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_what_is_held_out_shares_no_text_with_the_rest():
    rows = [((f"a{number % 50}", f"b{number % 50}"), "1") for number in range(100)]
    rows += [((f"b{number}", f"a{number}"), "0") for number in range(50)]
    kept, away = tuning.held_out(rows)
    assert len(away) == 30
    assert len(kept) == 120
    assert not {frozenset(texts) for texts, _ in kept} & {frozenset(texts) for texts, _ in away}


def test_cheap_places_are_those_that_were_measured_cheap_enough():
    names = (
        "exact",
        "exact, layer = middle",
        "exact, fraction = 0.25",
        "exact, layer = 4, fraction = 0.5",
        "exact, every = 4",
    )
    found = {name: {"over_plain": {"value": 1.39}} for name in names}
    found["exact, layer = middle"]["over_plain"]["value"] = 1.41
    places = tuning.cheap_places({"variants": found})
    assert places == (
        {"layer": 0, "fraction": 0.25},
        {"layer": 4, "fraction": 0.5},
        {"layer": 0, "fraction": 1.0, "every": 4},
    )
    assert list(map(tuning.name_of, places)) == ["cheap-0-0.25", "cheap-4-0.5", "cheap-0-1-every-4"]
    assert tuning.cheap_places(None) == ({"layer": "middle", "fraction": 0.5},)


def test_tuning_takes_the_best_of_the_finalists(grid, monkeypatch):
    settings, folder, done = grid

    def answer(side: Any, spec: dict[str, Any], **_: Any) -> dict[str, Any]:
        seed, found = spec["experiment"]["seed"], spec["experiment"]["stages"][0].get("regularisers")
        done.append((seed, 0))
        if not found:
            return {"tasks": {}, "score": 0.5, "train_seconds": 1.0}
        lucky = 0.2 if found[0]["radius"] == 0.003 and seed == 101 else 0.0
        good = 0.1 * (found[0]["radius"] == 0.03) + 0.05 * (found[0]["weight"] == 3.0)
        return {"tasks": {}, "score": 0.5 + lucky + good, "train_seconds": 1.0}

    monkeypatch.setattr(cells, "run_side", answer)
    found = tuning.Tuning(settings, folder, (101, 102, 103))
    chosen = tuning.tuned(found, [{"layer": "middle", "fraction": 0.5}], finalists=5)
    assert chosen["exact"]["radius"] == 0.03
    assert chosen["exact"]["weight"] == 3.0
    assert chosen["cheap"]["layer"] == "middle"
    assert chosen["cheap"]["radius"] == 0.03
    assert {len(row["differences"]) for row in found.table.values()} == {1, 3}
    assert tuning.lines_of(found.table, chosen)[-1].startswith("chosen for cheap: {'kind': 'smoothness'")
    assert tuning.tuned(found, [], finalists=5).keys() == {"exact"}
    (stage,) = load(cells.quick_table(folder, steps=1, seed=1, regularisers=[chosen["cheap"]])).experiment.stages
    assert stage.regularisers[0].fraction == 0.5


def test_variants_take_turns_and_a_turn_of_every_is_its_steps():
    order: list[str] = []
    variants = {"plain": (lambda: order.append("plain"), 1), "every": (lambda: order.append("every"), 2)}
    seconds = cost.in_turn(variants, repetitions=2, warm=1)
    assert order == ["plain", "every", "every"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_every_variant_of_the_cost_is_a_regulariser():
    model = looking.quick_model()
    for name, table in cost.tables().items():
        (found,) = looking.regularisers_of([table], model)
        assert found.applies("sst"), name
    assert len(cost.tables()) > 20


def test_the_cost_is_measured_against_plain():
    found = cost.measure(None, ["exact", "exact, every = 2"], repetitions=1, warm=0)
    assert list(found["variants"]) == ["plain", "exact", "exact, every = 2"]
    assert found["variants"]["plain"]["over_plain"]["value"] == 1.0
    assert all(len(row["seconds"]) == 1 for row in found["variants"].values())
    assert found["missing"] == []
    with pytest.raises(SystemExit, match="no such variant: exactly"):
        cost.measure(None, ["exactly"], repetitions=1, warm=0)


def test_the_tables_hold_every_number(monkeypatch):
    monkeypatch.setattr(tables, "RADII", (1e-2,))
    monkeypatch.setattr(tables, "PRESETS", ("exact", "cheap"))
    monkeypatch.setattr(looking, "BATCH", 4)
    batches = {task: looking.first_batches(task, None, 1) for task in ("sst", "sts")}
    found = tables.of_model(looking.quick_model(), batches, "before")
    assert list(found) == ["float32", "bfloat16"]
    for dtype, tasks in found.items():
        assert list(tasks) == ["sst", "sts"]
        for task in tasks.values():
            assert list(task["rows"]) == ["exact", "cheap", "0.01"]
            row = task["rows"]["0.01"]
            assert row["norm"] == pytest.approx(0.01, rel=1e-6)
            assert row["adversarial"] > row["signs"]
            assert ("adversarial_float64" in row) == (dtype == "float32")
    row = found["float32"]["sst"]["rows"]["0.01"]
    assert row["adversarial"] == pytest.approx(row["adversarial_float64"], rel=0.01)
    assert found["bfloat16"]["sst"]["rounding"]["logit"] > found["float32"]["sst"]["rounding"]["logit"] > 0


def test_the_divergence_of_the_tables_is_that_of_the_definition():
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.0]])
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    assert tables.float64_divergence("classification", a, b, 1.0) == pytest.approx(
        float(((p - q) * (p / q).log()).sum())
    )
    one, other = torch.tensor([1.5]), torch.tensor([-0.5])
    assert tables.float64_divergence("binary", one, other, 1.0) == pytest.approx(
        tables.float64_divergence("classification", torch.tensor([[0.0, 1.5]]), torch.tensor([[0.0, -0.5]]), 1.0)
    )
    assert tables.float64_divergence("regression", one, other, 4.0) == pytest.approx(0.25)


PERTURBATION = {"random": 1e-9, "signs": 2e-9, "adversarial": 3e-7, "dropout": 0.4, "norm": 1e-5, "surviving": 0.98}
TASK = {"rounding": {"logit": 2e-6, "divergence": 3e-13}, "rows": {"exact": PERTURBATION, "1e-05": PERTURBATION}}
PAGES = {
    "smoothness_tables": {**SETTINGS, "steps": 300, "states": {"before": {"bfloat16": {"sst": TASK}}}},
    "smoothness_cost": {
        **SETTINGS, "tokens": 800, "longest": 30, "dtype": "bfloat16", "repetitions": 20, "warm": 3,
        "missing": ["smart-pytorch, bf16: not installed"],
        "variants": {
            "plain": {"median": 0.1, "over_plain": ONE},
            "cheap": {"median": 0.15, "over_plain": {"value": 1.5, "low": 1.4, "high": 1.6}},
        },
    },
    "little_data_tuning": {
        **SETTINGS, "steps": 625, "seeds": [101, 102], "finalists": 3, "chosen": {"exact": tuning.at(0.03, 1.0)},
        "table": {"exact-0.03-1": {"regulariser": {}, "differences": {"101": 0.01}, "mean": 0.01}},
    },
    "little_data": {
        **SETTINGS, "steps": 625, "seeds": [1, 2], "rows": {"sst": 1000}, "codes": 1,
        "variants": {"plain": [], "r_drop": [{"kind": "r_drop", "weight": 1.0}]},
        "compared": {
            "plain": {"beside": None, "score": {"values": [0.70, 0.72], "mean": 0.71}},
            "r_drop": {"beside": "plain", "score": {"values": [0.71, 0.74], "mean": 0.725}},
            "cheap": {"beside": "plain", "score": {"values": [0.70, 0.73], "mean": 0.715}},
        },
    },
}  # fmt: skip
SHOWN = {
    "smoothness_tables": "| radius 1e-05 | 1.0e-05 | 98 % | 1.0e-09 | 2.0e-09 | 3.0e-07 |",
    "smoothness_cost": "| `cheap` at most 1.4 plain steps | 1.50 (1.40 to 1.60) | no |",
    "little_data_tuning": "- `exact`: radius 0.03, weight 1.0",
    "little_data": "| r_drop | +0.0150 (-0.0485 to +0.0785) |",
}


@pytest.mark.parametrize("part", list(page.PARTS))
def test_the_page_shows_a_part_in_its_place(part, results):
    assert page.filled(f"words\n<!-- table: {part} -->\nold\n<!-- end -->\nmore\n") == (
        f"words\n<!-- table: {part} -->\n\nNot measured.\n\n<!-- end -->\nmore\n"
    )
    harness.save(part, json.loads(json.dumps(PAGES[part])))
    once = page.filled(f"words\n<!-- table: {part} -->\nold\n<!-- end -->\nmore\n")
    assert SHOWN[part] in once
    assert "a processor, 2 cores" in once
    assert page.filled(once) == once


def test_the_page_in_the_tree_shows_the_results_in_the_tree():
    text = (ROOT / "docs" / "smoothness.md").read_text(encoding="utf-8")
    assert page.filled(text) == text, "run make bench-smoothness-page"


def test_the_page_has_a_place_for_every_part():
    text = (ROOT / "docs" / "smoothness.md").read_text(encoding="utf-8")
    assert sorted(found["part"] for found in page.PLACE.finditer(text)) == sorted(page.PARTS)
    with pytest.raises(ValueError, match="there is no part 'other'"):
        page.filled("<!-- table: other -->\n<!-- end -->")


def test_the_page_names_commands_that_there_are():
    text = (ROOT / "docs" / "smoothness.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make (bench-smoothness-\w+)`", text))
    assert len(named) == 5
    assert all(f"\n{name}: setup" in makefile for name in named)


def test_a_run_is_scored_once_on_the_files_it_did_not_see(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "workers"))
    import little_data_run

    rows = {task: read_rows(source, None) for task, source in SOURCES.items()}
    cells.write_tasks(
        tmp_path, {task: part[:40] for task, part in rows.items()}, {task: part[40:60] for task, part in rows.items()}
    )
    table = cells.quick_table(tmp_path, steps=3, seed=1, regularisers=little_data.VARIANTS["exact"])
    report = little_data_run.train(
        {"experiment": table, "scored": {task: str(tmp_path / task / "scored.tsv") for task in rows}}
    )
    assert list(report["tasks"]) == ["sst", "quora", "sts"]
    assert 0 <= report["score"] <= 1
    assert all("smoothness" in parts for parts in report["last"].values())
