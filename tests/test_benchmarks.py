"""What the benchmarks' page shows and refuses to show, and which kept results are used again."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "workers")]

import checkpoint_run  # noqa: E402

import checkpoint_blocks  # noqa: E402
import efficient_stage  # noqa: E402
import frozen  # noqa: E402
import growth  # noqa: E402
import harness  # noqa: E402
import page  # noqa: E402
import quality  # noqa: E402
import sections  # noqa: E402
import sides  # noqa: E402
import targets  # noqa: E402
from intervals import Interval  # noqa: E402
from smoothtune.config.loading import load  # noqa: E402
from sources import code_of  # noqa: E402

MACHINE = {
    "date": "2026-01-02T00:00:00",
    "processor": "a processor",
    "cores": 2,
    "python": "3.11",
    "packages": {"torch": "2", "transformers": "5"},
}
SETTINGS: dict[str, Any] = {
    "machine": MACHINE, "load_before": 0.1, "data": "SST", "batch": 32, "steps": 12, "device": "cpu", "threads": None,
}  # fmt: skip
ONE = {"value": 1.0, "low": 1.0, "high": 1.0}
ROW = {
    "side": "smoothtune", "note": "ours", "failure": None, "median": 0.2, "ratio": ONE, "first_pass_seconds": 1.0,
    "peak_anonymous_mb": 100.0, "per_second": 50.0, "load_seconds": 1.0, "versions": {"python": "3.11"},
}  # fmt: skip
FLOOR = {
    "products_seconds": 0.1, "best_rate_seconds": 0.05, "flops": 5e10, "tokens": 800.0, "failure": None,
    "ours_seconds": 0.16, "ratio": {"value": 1.6, "low": 1.25, "high": 2.0},
}  # fmt: skip
TRAINING = {**SETTINGS, "repetitions": 5, "workloads": {"sst": [ROW]}}
FLOORS = {**SETTINGS, "threads": 2, "repetitions": 5, "best_rate": 1e12, "workloads": {"sst": FLOOR}}
PREDICTION = {**SETTINGS, "repetitions": 5, "rows": 512, "workloads": {"sst": [ROW]}}
POINT = {"value": 32, "seconds_per_step": 0.1, "other_seconds": 2.0, "peak_anonymous_mb": 100.0}
GROWTH = {
    **SETTINGS, "base": growth.BASE, "warm": 4, "steps": 6, "repetitions": 1, "code": "abc", "axes": {"length": [POINT]},
}  # fmt: skip
THREE = {
    **SETTINGS, "rows": {"sst": 100}, "train_seconds": [9.0], "seconds": [10.0], "median": 9.0, "peak_anonymous_mb": 100.0,
}  # fmt: skip
CHECKPOINTS = {
    **SETTINGS,
    "epochs": 3,
    "repetitions": 5,
    "rows": {
        "off": {"writes": 0, "megabytes": 0, "writing": {"median": 0.0, "most": 0.0}},
        "default": {"writes": 1.0, "megabytes": 361, "writing": {"median": 0.0125, "most": 0.021}, "over_off": ONE},
    },
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results; `{part: value}` is written to it."""
    for module in (harness, growth, quality):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "HERE", tmp_path)

    def write(**parts: Any) -> Path:
        for name, value in parts.items():
            harness.save(name.replace("_on_cuda", "-cuda"), value)
        return tmp_path / "results"

    return write


def on_cuda(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "device": "cuda", "machine": {**MACHINE, "gpu": "a card"}}


def test_without_a_cuda_result_the_page_says_why(results, monkeypatch):
    results(training=TRAINING)
    monkeypatch.setattr(page, "_has_cuda", lambda: False)
    assert "## CUDA\n\n`make bench-cuda`\n\nNot measured: no CUDA device was at hand.\n" in page.page()
    monkeypatch.setattr(page, "_has_cuda", lambda: True)
    assert "## CUDA\n\n`make bench-cuda`\n\nNot measured.\n" in page.page()


def test_cuda_results_get_the_tables_of_the_others(results):
    results(
        training_on_cuda=on_cuda(TRAINING), floor_on_cuda=on_cuda(FLOORS), prediction_on_cuda=on_cuda(PREDICTION),
        growth_on_cuda=on_cuda(GROWTH),
    )  # fmt: skip
    shown = {part.partition("\n")[0]: part for part in page.page().split("\n## ")}
    assert "| smoothtune | 200 ms |  | 1.0 s |" in shown["Training on CUDA"]
    assert "a card; a processor" in shown["Training on CUDA"]
    assert "| 31.2 % |" in shown["The floor on CUDA"]
    assert "| smoothtune | 50 |" in shown["Prediction on CUDA"]
    assert "python benchmarks/growth.py --device cuda" in shown["How cost grows on CUDA"]
    assert "CUDA" not in shown
    assert "Not measured." in shown["Training"]


def test_the_page_names_the_parts_that_bench_leaves_out():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    together = re.search(r"^PARTS := (.*)$", makefile, flags=re.MULTILINE)
    assert together is not None
    in_bench = {f"make bench-{part}" for part in together[1].split()}
    by_name = {section.command for section in page.SECTIONS} - in_bench | {page.BENCH_CUDA}
    said = re.search(r"which is run by name: (.*?)\.\s", page.INTRODUCTION, flags=re.DOTALL)
    assert said is not None
    assert set(re.findall(r"`(.*?)`", said[1])) == by_name
    assert len(in_bench) + len(by_name) == len(page.SECTIONS) + 1


def test_sections_say_of_how_many_runs_a_time_is():
    assert "; one run. Training took 9 s" in sections.three_tasks(THREE)
    thrice = {**THREE, "train_seconds": [9.0] * 3, "seconds": [10.0, 11.0, 30.0]}
    assert "; median of 3 runs. Training took 9 s, the whole call, with reading, tokenising and evaluation, 11 s" in (
        sections.three_tasks(thrice)
    )
    assert "A step is the median of the 6 steps that follow 4 uncounted ones (one run)." in sections.growth(GROWTH)
    assert "(median of 3 runs)" in sections.growth({**GROWTH, "repetitions": 3})


def test_a_step_is_told_as_a_multiple_of_its_products(results):
    results(floor=FLOORS)
    shown = sections.floor(FLOORS)
    assert "| 1.60 (1.25 to 2.00) | 50.0 ms | 31.2 % |" in shown
    found = [target for target in targets.all_targets() if "its matrix products" in target.aim]
    assert [(target.measured, target.reached) for target in found] == [("1.60 (1.25 to 2.00)", True)]


def test_the_aim_of_mixed_batches_is_judged_at_the_shortest_texts(results):
    row = {"precision": "float32", "level": "pass", "one_ms": 10.0, "three_ms": 15.0}
    rows = [{**row, "tokens": 5, "times_as_fast": {"value": 1.5, "low": 1.4, "high": 1.6}},
            {**row, "tokens": 8, "times_as_fast": {"value": 2.5, "low": 2.4, "high": 2.6}}]  # fmt: skip
    results(mixed_batch={**SETTINGS, "rows": rows})
    found = [target for target in targets.all_targets() if "three adapted tasks" in target.aim]
    assert [(target.measured, target.reached) for target in found] == [("1.50 (1.40 to 1.60)", False)]


def test_a_step_above_twice_its_products_is_no_aim_reached(results):
    slow = {**FLOOR, "ratio": {"value": 2.1, "low": 1.9, "high": 2.4}}
    results(floor={**FLOORS, "workloads": {"sst": slow}})
    assert [target.reached for target in targets.all_targets() if "its matrix products" in target.aim] == [False]


def test_the_floor_without_our_step_says_why(results):
    failed = {name: value for name, value in FLOOR.items() if name not in ("ratio", "ours_seconds")}
    shown = sections.floor({**FLOORS, "workloads": {"sst": {**failed, "failure": "no memory"}}})
    assert "no memory" in shown
    assert "31.2 %" not in shown


def test_growth_keeps_results_by_device(results, monkeypatch):
    folder = results(growth=GROWTH)
    before = (folder / "growth.json").read_text()
    monkeypatch.setattr(sys, "argv", ["growth.py", "--device", "cuda", "length"])
    monkeypatch.setattr(growth, "one_token_words", list)
    monkeypatch.setattr(growth, "measure", lambda axis, value, *_: {**POINT, "value": value})
    monkeypatch.setattr(growth, "settings_of", lambda **given: {**SETTINGS, **given})
    drawn: list[str] = []
    monkeypatch.setattr(growth, "plot", drawn.append)
    growth.main()
    found = json.loads((folder / "growth-cuda.json").read_text())
    assert list(found["axes"]) == ["length"]
    assert len(found["axes"]["length"]) == 6
    assert drawn == ["growth-cuda"]
    assert (folder / "growth.json").read_text() == before


def test_growth_adds_axes_only_to_those_measured_alike(capsys):
    assert growth.kept_axes(None, GROWTH) == {}
    assert growth.kept_axes(GROWTH, GROWTH) == GROWTH["axes"]
    assert capsys.readouterr().err == ""
    old = {name: value for name, value in GROWTH.items() if name != "code"}
    assert growth.kept_axes({**old, "threads": 1}, GROWTH) == {}
    assert "dropped, for these settings differ: threads, code" in capsys.readouterr().err
    assert growth.kept_axes({**GROWTH, "machine": {**MACHINE, "processor": "another"}}, GROWTH) == {}
    assert "differ: processor" in capsys.readouterr().err


@pytest.fixture
def runs_of(results, tmp_path, monkeypatch):
    """Runs one seed of our side, whose worker answers at once; a list of the seeds that were really run."""
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\na film\t1\n")
    spec = {"data": str(tmp_path), "checkpoint": "somewhere", "batch_size": 32, "device": "cpu", "rows": 1}
    done: list[int] = []

    def answer(side: Any, *_: Any, **__: Any) -> dict[str, Any]:
        done.append(side.options["seed"])
        dev = {"tasks": {"task": {"accuracy": {"value": 0.5}}}}
        return {"dev": dev, "first_pass_seconds": 1.0, "peak_anonymous_mb": 100.0, "versions": {}}

    monkeypatch.setattr(quality, "run_side", answer)
    monkeypatch.setattr(quality, "package_code", lambda: "abc")

    def run(*, seed: int = 1, threads: int | None = None, side: Any = sides.OURS, **changes: Any) -> None:
        quality.run_seed("ours", side, seed, {**spec, **changes}, threads)

    return Namespace(run=run, done=done, folder=results(), data=tmp_path)


def test_a_quality_run_is_used_again(runs_of, capsys):
    runs_of.run()
    capsys.readouterr()
    runs_of.run()
    runs_of.run(data=str(runs_of.data), checkpoint="elsewhere")
    assert runs_of.done == [1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["threads", "spec", "data", "code", "side", "versions"])
def test_a_quality_run_made_otherwise_is_run_anew(runs_of, monkeypatch, capsys, what):
    runs_of.run()
    if what == "data":
        (runs_of.data / "dev.tsv").write_text("text\tlabel\nanother film\t1\n")
    if what == "code":
        monkeypatch.setattr(quality, "package_code", lambda: "def")
    if what == "versions":
        monkeypatch.setattr(quality, "versions", lambda: {"torch": "1"})
    side = replace(sides.OURS, options={"precision": "float32"}) if what == "side" else sides.OURS
    # The code of the package counts for our own side alone, which `replace` no longer is.
    told = "side, code" if what == "side" else what
    for _ in range(2):
        runs_of.run(threads=1 if what == "threads" else None, batch_size=16 if what == "spec" else 32, side=side)
    assert runs_of.done == [1, 1]
    assert f"ours-1.json is run anew, for these differ: {told}\n" in capsys.readouterr().err


def test_quality_runs_of_another_device_are_kept_apart(runs_of):
    runs_of.run()
    runs_of.run(device="cuda")
    runs_of.run()
    assert runs_of.done == [1, 1]
    assert (runs_of.folder / "quality-cuda" / "ours-1.json").is_file()


def test_a_quality_run_that_does_not_say_how_it_was_made_is_taken_with_a_note(runs_of, capsys):
    runs_of.run()
    path = runs_of.folder / "quality" / "ours-1.json"
    kept = json.loads(path.read_text())
    del kept["made_with"]
    path.write_text(json.dumps(kept))
    capsys.readouterr()
    runs_of.run()
    assert runs_of.done == [1]
    assert "ours-1.json does not say what it was made with and is taken as it is" in capsys.readouterr().err
    path.write_text(json.dumps({**kept, "rows": 7}))
    runs_of.run()
    assert runs_of.done == [1, 1]


def test_quality_is_saved_by_device(results):
    runs = [{"accuracy": 0.5 + number / 100, "epoch_seconds": 1.0, "peak_anonymous_mb": 9.0} for number in range(3)]
    folder = results()
    quality.judge({"ours": runs, "trainer": deepcopy(runs)}, {"device": "cuda", "rows": 3})
    assert [path.name for path in folder.iterdir()] == ["quality-cuda.json"]


def test_the_code_of_a_folder_is_named_by_its_text_and_places(tmp_path):
    (tmp_path / "a.py").write_text("one")
    before = code_of(tmp_path)
    (tmp_path / "a.pyc").write_text("compiled")
    assert code_of(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    moved = code_of(tmp_path)
    (tmp_path / "b.py").write_text("two")
    assert len({before, moved, code_of(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epochs", "1"], "--epochs: got 1, expected at least 2, since later epochs are compared with the first"),
        (["--repetitions", "0"], "--repetitions: got 0, expected at least 1"),
        ([], "name the folder of the data with --data-dir, or in SMOOTHTUNE_DATA"),
    ],
)
def test_frozen_refuses_what_it_cannot_measure(arguments, told, monkeypatch, capsys):
    monkeypatch.delenv("SMOOTHTUNE_DATA", raising=False)
    with pytest.raises(SystemExit) as found:
        frozen.options_of(arguments)
    assert found.value.code == 2
    assert told in capsys.readouterr().err


def test_frozen_takes_the_packaged_sst_stage_as_it_is():
    packaged, found = load("wang/baseline").experiment, frozen.baseline()
    assert found.tasks == {"sst": packaged.tasks["sst"]}
    assert found.stages == (packaged.stages[0],)
    assert found.stages[0].name == "sst"
    assert list(found.trunks) == ["first_token"]
    assert found.encoder == packaged.encoder


@pytest.mark.parametrize("trunk", ["wang/baseline", "conv_bilstm", "siamese"])
def test_a_frozen_run_reports_every_time(trunk, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # what `measure` sets goes with the test
    monkeypatch.setattr(frozen, "SAMPLES", {"siamese": ("quora", 64), "conv_bilstm": ("sst", 64)})
    for folder, head, rows in (
        ("sst", "sentence\tsentiment", [f"film number {n}\t{n % 5}" for n in range(40)]),
        ("quora", "sentence1\tsentence2\tis_duplicate", [f"how {n}?\twhy {n}?\t{n % 2}" for n in range(40)]),
    ):
        (tmp_path / folder).mkdir()
        for split in ("train", "dev"):
            lines = [head, *(f"{split} {row}" for row in rows)]
            (tmp_path / folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    found = frozen.measure(trunk, 2, tmp_path)
    assert found["texts"] == {"wang/baseline": 80, "conv_bilstm": 72, "siamese": 144}[trunk]
    assert 0 < found["encoding"] < found["first"]
    assert found["later_min"] == found["later_median"] > 0
    assert ("predicting" in found) == (trunk == "wang/baseline")
    assert ("epoch_without_states" in found) == (trunk == "conv_bilstm")


def test_the_aims_of_a_frozen_encoder_take_the_median_of_its_runs(results):
    lines = [
        {"trunk": "wang/baseline", "ratio": ratio, "encoding": encoding, "predicting": 10.0}
        for ratio, encoding in ((30, 10.0), (10, 14.0), (25, 10.5))
    ]
    results(frozen={**SETTINGS, "lines": [json.dumps(line) for line in [*lines, {"trunk": "siamese", "ratio": 1}]]})
    found = [(target.measured, target.reached) for target in targets.all_targets()]
    assert found == [("25", True), ("1.05", True)]


def test_the_section_on_checkpoints_shows_both_shares() -> None:
    off, default = sections.checkpoints(CHECKPOINTS).splitlines()[-2:]
    assert off.split("|")[1:3] == [" off ", " 0 "]
    assert "361 MB" not in off
    assert "| 361 MB | 1.2 % (at most 2.1 %) | 1.00" in default


def test_blocks_of_steps_around_checkpoints_are_paired() -> None:
    marks = [(0, 0.0), (2, 1.0), (4, 2.0), (6, 5.0), (8, 6.0), (10, 9.5), (0, 0.0), (12, 20.0), (14, 22.0), (16, 23.0)]
    assert checkpoint_run.pairs_of(marks, 2) == [(3.0, 1.0), (2.0, 1.0)]


def test_what_checkpoints_cost_is_said_with_its_interval() -> None:
    row = {"seconds": [90.0, 101.0, 130.0], "writes": 2.0}
    share = checkpoint_blocks.share_of(Interval(0.5, 0.25, 1.0), row)
    assert (share.value, share.low) == (pytest.approx(1 / 100), pytest.approx(0.5 / 100.5))
    result = {
        "block": 20, "pairs": 50, "without": 2.5, "writing": 0.45, "difference": {"value": 0.5, "low": 0.25, "high": 1.0},
        "of_default": share.to_json(),
    }  # fmt: skip
    text = sections.checkpoint_blocks(result)
    assert "A checkpoint costs 0.50 (0.25 to 1.00) s (0.45 s of it inside the writing)" in text
    assert "cost 1.0 % (0.5 to 2.0 %) of the stage" in text
    assert "default setting" not in sections.checkpoint_blocks({**result, "of_default": None})


@pytest.mark.parametrize(("high", "reached"), [(0.029, True), (0.031, False)])
def test_the_aim_for_checkpoints_takes_the_end_of_the_interval(results, high: float, reached: bool) -> None:
    results(checkpoint_blocks={**SETTINGS, "of_default": {"value": 0.014, "low": 0.01, "high": high}})
    (found,) = targets.all_targets()
    assert (found.measured[:5], found.reached) == ("1.4 %", reached)


def test_the_efficient_stage_is_measured_with_every_trunk_unless_some_are_named(results, monkeypatch, capsys):
    report = {"seconds_per_step": [0.1, 0.1], "peak_anonymous_mb": 100.0}
    monkeypatch.setattr(efficient_stage, "write_workload", lambda *_: {"passes": 2})
    monkeypatch.setattr(
        efficient_stage, "alternated", lambda *_, **__: {side: [report] * 2 for side in efficient_stage.LEARNS}
    )
    for given, wanted in ([], ["mean", "conv_bilstm"]), (["mean"], ["mean"]):
        monkeypatch.setattr(sys, "argv", ["efficient_stage.py", *given])
        efficient_stage.main()
        found = harness.read("efficient_stage")
        assert found is not None
        assert list(found["trunks"]) == wanted
    monkeypatch.setattr(sys, "argv", ["efficient_stage.py", "other"])
    with pytest.raises(SystemExit):
        efficient_stage.main()
    assert "no such trunk: other; expected mean, conv_bilstm" in capsys.readouterr().err


def test_the_section_on_the_sums_of_the_cache_shows_their_share() -> None:
    run = {"seconds": [9.0, 10.0, 12.0], "megabytes": 172.0, "sum_seconds": 0.05, "sync_seconds": 0.5, "most": 0.007}
    share = {"value": 0.005, "low": 0.004, "high": 0.0065}
    result = {
        "rows": 100_000,
        "repetitions": 3,
        "rates": {"CRC-32": 5.8e9},
        "runs": {"an empty cache": {**run, "share": share}},
    }
    text = sections.cache_sums(result)
    assert "over 100,000 SST rows" in text
    assert "CRC-32 5.8 GB/s" in text
    cells = "| an empty cache | 3 | 172 MB | 10.0 s | 0.050 s | 0.50 s | 0.500 % (0.400 to 0.650 %), at most 0.700 % |"
    assert text.splitlines()[-1] == cells
