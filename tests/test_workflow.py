"""An experiment from table or TOML to a run folder, its evaluation and its model."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import smoothtune
from smoothtune.cli.main import app
from smoothtune.cli.watcher import Watcher
from smoothtune.errors import ConfigurationError, DataError, ModelFileError, TrainingError, UsageError
from smoothtune.training import optimiser_step
from smoothtune.training.loop import StepReport
from smoothtune.training.stage_events import StageBegin, StageEnd, StageEpoch
from smoothtune.workflow import material as workflow
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.frozen import Encoding, FrozenStates
from smoothtune.workflow.run import Run, read_experiment
from smoothtune.workflow.train import RunBegin, RunEnd, train
from tests.small_data import ROWS, TASKS, table, write_data

RUN_FILES = {"experiment.toml", "metrics.jsonl", "evaluation.json", "run.json", "check.json", "model"}
RUN_FILES |= {f"dev_predictions_{task}.tsv" for task in TASKS}
METRICS_KEYS = {"stage", "epoch", "step", "train_seconds", "losses", "train", "dev", "score", "plain_mean"}

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def finished(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Any]]:
    """A run of two stages, and what it told."""
    wanted = table(tiny_encoder)
    wanted["stages"].append({**wanted["stages"][0], "name": "heads", "train": ["outputs"], "weighting": "learned"})
    events: list[Any] = []
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        return train(wanted, data_dir=small_data, run_dir=folder, listen=events.append), events


def quick(encoder: Path, **stage: Any) -> dict[str, Any]:
    return table(encoder, **{"stop": {"max_epochs": 1}, **stage})


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    assert set(a) == set(b)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_its_folder(finished: tuple[Run, list[Any]]) -> None:
    run, _ = finished
    assert {path.name for path in run.folder.iterdir()} == RUN_FILES | {"stages", ".lock"}
    assert [path.name for path in (run.folder / "stages").iterdir()] == ["together"]
    assert {path.name for path in (run.folder / "model").iterdir()} == {
        "config.toml", "encoder.json", "labels.json", "model.safetensors", "provenance.json", "tokenizer.json",
    }  # fmt: skip
    assert not run.interrupted


def test_the_written_experiment_is_the_one_that_ran(finished: tuple[Run, list[Any]], small_data: Path) -> None:
    run, _ = finished
    found = read_experiment(run.folder)
    assert found == run.experiment
    assert found.tasks["mood"].train == str(small_data / "mood.train.tsv")
    assert [stage.name for stage in found.stages] == ["together", "heads"]


def test_metrics_hold_one_line_an_epoch(finished: tuple[Run, list[Any]]) -> None:
    run, _ = finished
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        ("together", 1), ("together", 2), ("heads", 0), ("heads", 1), ("heads", 2),
    ]  # fmt: skip
    entry = lines.pop(2)
    assert set(entry) == set(lines[2])
    assert (entry["step"], entry["train_seconds"], entry["losses"], entry["coverage"]) == (0, 0.0, {}, {})
    assert entry["best"] is True
    best = max(line["score"] for line in lines[:2])
    assert entry["score"] == pytest.approx(best, abs=1e-6)  # the entry is scored on the states kept of a frozen encoder
    for line in lines:
        assert set(line) >= METRICS_KEYS
        assert set(line["losses"]) == set(line["dev"]) == set(line["train"]) == set(TASKS)
        assert 0 <= line["dev"]["mood"]["accuracy"] <= 1
        assert 0 <= line["score"] <= 1
        assert line["coverage"]["near"] == {"once": 40, "repeated": 0, "unseen": 0}
    assert [line["step"] for line in lines] == [15, 30, 15, 30]
    assert ["weights" in line for line in lines] == [False, False, True, True]
    assert lines[1]["train_seconds"] >= lines[0]["train_seconds"] > 0


def test_a_run_tells_what_happens_in_order(finished: tuple[Run, list[Any]]) -> None:
    run, events = finished
    kinds = [type(event) for event in events if not isinstance(event, StepReport | Encoding)]
    stage = [StageBegin, StageEpoch, StageEpoch, StageEnd]
    assert kinds == [RunBegin, *stage, FrozenStates, StageBegin, StageEpoch, *stage[1:], RunEnd]
    assert sum(isinstance(event, StepReport) for event in events) == 60
    assert events[0].folder == run.folder
    assert events[-1].run == run


def test_the_second_stage_begins_from_the_best_and_moves_only_outputs(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, finished: tuple[Run, list[Any]]
) -> None:
    alone = train(table(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "alone")
    one, two = weights(alone), weights(finished[0])
    assert {name.partition(".")[0] for name in one if not torch.equal(one[name], two[name])} == {"outputs"}


def test_a_run_records_where_and_from_what_it_was_made(finished: tuple[Run, list[Any]]) -> None:
    run, _ = finished
    state = json.loads((run.folder / "run.json").read_text())
    assert state["interrupted"] is False
    assert state["precision"] == "float32"
    assert {"device", "threads", "packages", "python", "cores", "processor"} <= set(state)
    provenance = json.loads((run.folder / "model" / "provenance.json").read_text())
    assert provenance["seed"] == 3
    assert provenance["data"]["mood"]["train"]["rows"] == ROWS["train"]
    assert len(provenance["data"]["mood"]["dev"]["content"]) == 64


@pytest.mark.parametrize("metric", ["near.spearman", "mood", "mood.macro_f1", "plain_mean"])
def test_a_stage_may_follow_any_metric_of_a_task(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, metric: str
) -> None:
    events: list[Any] = []
    wanted = table(tiny_encoder, stop={"metric": metric, "max_epochs": 2})
    run = train(wanted, data_dir=small_data, run_dir=tmp_path / "run", listen=events.append)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    task, _, name = metric.partition(".")
    told = [line["plain_mean"] if task == "plain_mean" else line["dev"][task][name or "accuracy"] for line in lines]
    (end,) = (event for event in events if isinstance(event, StageEnd))
    assert (end.metric, end.best) == (metric, pytest.approx(max(told)))


def test_the_check_report_is_kept(finished: tuple[Run, list[Any]]) -> None:
    run, events = finished
    report = json.loads((run.folder / "check.json").read_text())
    assert report == json.loads(json.dumps(events[0].check.to_json()))
    mood = report["tasks"]["mood"]["train"]
    assert mood["rows"] == 40
    assert mood["balance"] == {"beast": 14, "place": 13, "sky": 13}
    assert mood["leaks"] is None
    assert report["tasks"]["near"]["train"]["span"]["max"] == 5
    assert report["tasks"]["same"]["dev"]["leaks"]["whole"]["count"] >= 0


def test_evaluation_of_the_run_is_that_of_training(finished: tuple[Run, list[Any]]) -> None:
    run, events = finished
    assert run.evaluation == json.loads((run.folder / "evaluation.json").read_text())
    assert evaluate_run(run.folder).to_json() == run.evaluation
    best = max(event.report.dev.score for event in events if isinstance(event, StageEpoch))
    last = max(event.report.dev.score for event in events if isinstance(event, StageEpoch) if event.factors)
    assert run.evaluation is not None
    assert run.evaluation["score"]["value"] == pytest.approx(last)
    assert best <= 1
    assert set(run.evaluation["tasks"]) == set(TASKS)
    assert run.evaluation["tasks"]["mood"]["accuracy"]["n"] == ROWS["dev"]


def test_evaluation_on_another_split_and_on_a_file(
    finished: tuple[Run, list[Any]], small_data: Path, tmp_path: Path
) -> None:
    run, _ = finished
    assert evaluate_run(run.folder, split="train").scores.tasks["mood"]["accuracy"].n == 40
    lines = (small_data / "mood.dev.tsv").read_text().splitlines()
    (tmp_path / "few.tsv").write_text("\n".join(lines[:8]) + "\n")
    found = evaluate_run(run.folder, data=[f"mood={tmp_path / 'few.tsv'}"])
    assert list(found.scores.tasks) == ["mood"]
    assert found.scores.tasks["mood"]["accuracy"].n == 7


def test_words_alone_stands_beside_the_run(finished: tuple[Run, list[Any]]) -> None:
    found = evaluate_run(finished[0].folder, with_words_alone=True).to_json()
    assert found["words_alone"]["tasks"]["mood"]["accuracy"]["value"] > 0.6  # a word decides the label
    assert set(found["difference"]["tasks"]) == set(TASKS)
    for part in ("score", "plain_mean"):
        assert found["words_alone"][part]["low"] <= found["words_alone"][part]["value"]
    mood = found["tasks"]["mood"]["accuracy"]["value"] - found["words_alone"]["tasks"]["mood"]["accuracy"]["value"]
    assert found["difference"]["tasks"]["mood"]["value"] == pytest.approx(mood)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "best"}, "--split: got 'best', expected one of train, dev, test"),
        ({"split": "test"}, "--split test: no task of this run has such data; name a file with --data TASK=FILE"),
        ({"data": ["mood"]}, "--data mood: expected TASK=FILE"),
        ({"data": ["sst=x.tsv"]}, "--data sst=x.tsv: this run has no task 'sst'; its tasks: mood, same, near"),
    ],
)
def test_what_cannot_be_evaluated(finished: tuple[Run, list[Any]], options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluate_run(finished[0].folder, **options)
    assert str(error.value) == text


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as error:
        evaluate_run(tmp_path)
    assert str(error.value) == f"{tmp_path}: is not a run folder (it has no experiment.toml)"


def test_labels_of_another_file_must_be_known(finished: tuple[Run, list[Any]], tmp_path: Path) -> None:
    (tmp_path / "odd.tsv").write_text("text\tlabel\na cat\tfish\n")
    with pytest.raises(DataError, match="fish"):
        evaluate_run(finished[0].folder, data=[f"mood={tmp_path / 'odd.tsv'}"])


def test_the_model_of_a_run_answers(finished: tuple[Run, list[Any]]) -> None:
    model = finished[0].model()
    assert model.tasks == TASKS
    assert smoothtune.load(str(finished[0].folder)).predict("mood", ["a cat"]) == model.predict("mood", ["a cat"])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = quick(tiny_encoder)
    wanted["encoder"] |= {"dropout": 0.1}
    one, two, other = (
        train(wanted, data_dir=small_data, run_dir=tmp_path / name, seed=seed)
        for name, seed in (("one", 5), ("two", 5), ("other", 6))
    )
    assert one.experiment.seed == 5
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))
    assert one.evaluation == two.evaluation


def test_toml_with_overrides_and_paths_beside_it(tiny_encoder: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "here")
    path = tmp_path / "here" / "my small.toml"
    wanted = quick(tiny_encoder)
    del wanted["name"]
    path.write_text(tomli_w.dumps(wanted), encoding="utf-8")
    run = smoothtune.train(path, run_dir=tmp_path / "run", overrides=["stages.0.batch_size=20"])
    assert run.experiment.name == "my-small"
    assert run.experiment.stages[0].batch_size == 20
    assert json.loads((run.folder / "metrics.jsonl").read_text())["step"] == 6


def test_runs_go_into_a_dated_folder_by_default(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(quick(tiny_encoder), data_dir=small_data)
    assert run.folder.parent == Path("runs")
    assert run.folder.name.startswith("small-20")


def test_an_existing_run_folder_is_refused(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError) as error:
        train(quick(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run")
    folder = tmp_path / "run"
    wanted = (
        f"{folder}: exists already; a run never overwrites one: give another --run-dir, or --resume to go on with it"
    )
    assert str(error.value) == wanted
    assert list(folder.iterdir()) == []


def refused(kind: type[Exception], wanted: dict[str, Any], data: Path, folder: Path) -> str:
    """The error's text; nothing may have been written."""
    with pytest.raises(kind) as error:
        train(wanted, data_dir=data, run_dir=folder)
    assert not folder.exists()
    return str(error.value)


def test_what_cannot_run_is_refused_before_anything_is_written(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    wanted = quick(tiny_encoder)
    wanted["encoder"]["max_length"] = 65
    text = refused(ConfigurationError, wanted, small_data, folder)
    assert "encoder.max_length: got 65, but" in text
    assert "reads at most 64 tokens" in text
    wanted = quick(tiny_encoder)
    wanted["stages"].append({"name": "late", "train": ["trunks.single", "outputs"]})
    text = refused(UsageError, wanted, small_data, folder)
    assert text.startswith("stage late: train: 'trunks.single' names no parameter")
    wanted["tasks"]["mood"]["train"] = "missing.tsv"
    assert refused(UsageError, wanted, small_data, folder) == text  # told before any data are read
    wanted = quick(tiny_encoder)
    wanted["tasks"]["mood"]["train"] = "missing.tsv"
    assert "missing.tsv" in refused(DataError, wanted, small_data, folder)


class Interrupting:
    """Presses Ctrl-C at a step of the stage."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, event: Any) -> None:
        if isinstance(event, StepReport) and event.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 20])
def test_an_interrupted_run_has_a_model_that_answers(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, at: int
) -> None:
    run = train(table(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run", listen=Interrupting(at))
    assert run.interrupted
    assert run.evaluation is None
    assert json.loads((run.folder / "run.json").read_text())["interrupted"] is True
    assert not (run.folder / "evaluation.json").exists()
    assert run.model().predict("mood", ["the cat"])[0] in ("beast", "place", "sky")
    assert set(evaluate_run(run.folder).scores.tasks) == set(TASKS)


class Pressed:
    """Stands before a function and presses Ctrl-C, so many times, each time it is called."""

    def __init__(self, function: Any, times: int = 1) -> None:
        self.function = function
        self.times = times

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        return self.function(*arguments, **options)


def assert_interrupted(run: Run) -> None:
    assert run.interrupted
    assert json.loads((run.folder / "run.json").read_text())["interrupted"] is True
    assert not (run.folder / "evaluation.json").exists()
    assert run.model().tasks == TASKS
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("place", ["logits_of", "write_model_folder"])
def test_ctrl_c_after_the_last_step_leaves_the_whole_model(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(workflow, place, Pressed(getattr(workflow, place)))
    run = train(quick(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run")
    assert_interrupted(run)


def test_a_second_ctrl_c_while_the_model_is_written_changes_nothing(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(event: Any) -> None:
        if isinstance(event, StepReport):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "write_model_folder", Pressed(workflow.write_model_folder, 3))
        run = train(quick(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run", listen=listen)
    assert_interrupted(run)


def test_training_in_another_thread_leaves_ctrl_c_alone(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(train, quick(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run").result()
    assert not run.interrupted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("presses", [1, 2])
def test_a_program_that_gets_ctrl_c_leaves_a_model_and_exits_130(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, presses: int
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(table(tiny_encoder, stop={"max_epochs": 5000})), encoding="utf-8")
    arguments = ["train", str(path), "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    program = subprocess.Popen(
        [sys.executable, "-m", "smoothtune", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stderr is not None
    for line in program.stderr:
        if line.startswith("epoch 1,"):
            break
    for _ in range(presses):
        program.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 130, errors
    assert "interrupted; the best model so far" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["interrupted"] is True
    assert smoothtune.load(str(tmp_path / "run")).predict("mood", ["the cat"])[0] in ("beast", "place", "sky")


def failing(after: int) -> Any:
    """The loop's optimiser step, whose loss is not finite after so many steps of a stage."""
    step = optimiser_step._total

    def total(found: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal after
        after -= 1
        return step(found) * (math.nan if after < 0 else 1.0)

    return total


def test_a_run_that_fails_leaves_the_best_model_before(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimiser_step, "_total", failing(20))
    folder = tmp_path / "run"
    with pytest.raises(TrainingError) as error:
        train(table(tiny_encoder), data_dir=small_data, run_dir=folder)
    text, _, where = str(error.value).partition("; the best model before that is in ")
    assert text.startswith("stage together, step 21: the loss of task ")
    assert where.startswith(f"{folder / 'model'}; ")
    again = f"train {folder / 'experiment.toml'} --run-dir {folder} --resume --set stages.0.on_nan=skip --allow configuration"
    assert where.endswith(f"; go on with: smoothtune {again} (the same steps would end in the same way)")
    state = json.loads((folder / "run.json").read_text())
    assert (state["failure"], state["interrupted"]) == (text, False)
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert evaluate_run(folder).scores.score.value == pytest.approx(line["score"])
    monkeypatch.setattr(optimiser_step, "_total", failing(3))
    skips, allowed = ["stages.0.on_nan=skip"], ["configuration"]
    run = train(folder / "experiment.toml", run_dir=folder, resume=True, overrides=skips, allow=allowed)
    assert not run.interrupted
    assert read_experiment(folder).stages[0].on_nan == "skip"


def test_a_run_that_fails_before_its_first_evaluation_leaves_no_model(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimiser_step, "_total", failing(3))
    folder = tmp_path / "run"
    with pytest.raises(
        TrainingError,
        match=r"; no model was worth keeping: it came before the first evaluation; there is no checkpoint yet; start over with",
    ):
        train(table(tiny_encoder), data_dir=small_data, run_dir=folder)
    assert json.loads((folder / "run.json").read_text())["failure"].startswith("stage together, step 4")
    assert not (folder / "model").exists()


def test_a_later_stage_that_fails_at_once_leaves_what_the_stages_before_made(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = quick(tiny_encoder, tasks=["mood"])
    wanted["stages"].append({**wanted["stages"][0], "name": "late", "tasks": ["near"], "train": ["outputs"]})
    monkeypatch.setattr(optimiser_step, "_total", failing(5))
    with pytest.raises(TrainingError, match=r"stage late, step 1: .*; the best model before that is in"):
        train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [("together", 1)]  # fresh heads: nothing to beat
    found = evaluate_run(tmp_path / "run").scores.tasks["mood"]["accuracy"].value
    assert found == pytest.approx(lines[0]["dev"]["mood"]["accuracy"])


def test_it_is_said_once_why_a_metric_is_not_a_number(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat.tsv").write_text("first\tsecond\tlabel\n" + "a cat\ta dog\t2\n" * 4)
    wanted = table(tiny_encoder)
    wanted["tasks"]["near"]["dev"] = str(tmp_path / "flat.tsv")
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run", listen=Watcher())
    said = capsys.readouterr().err
    for metric in ("pearson", "spearman"):
        assert said.count(f"near.{metric} is nan: all 4 ") == 1
    assert "mood.accuracy is nan" not in said


def test_the_accelerator_takes_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(workflow, "Accelerator", lambda cpu: cpu)
    devices = [torch.device(name) for name in ("cpu", "cuda", "cuda:1")]
    assert [workflow._accelerator(device) for device in devices] == [True, False, False]
    assert chosen == devices[2:]


def test_an_interrupted_run_keeps_the_best_epoch_so_far(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-3, "warmup": 0.0}
    cut = train(table(tiny_encoder, **settings), data_dir=small_data, run_dir=tmp_path / "cut", listen=Interrupting(20))
    line = json.loads((cut.folder / "metrics.jsonl").read_text())
    assert line["best"] is True
    assert evaluate_run(cut.folder).scores.score.value == pytest.approx(line["score"])


def test_the_program_exits_130_after_ctrl_c(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(table(tiny_encoder)), encoding="utf-8")
    watch = Watcher.__call__

    def interrupted(self: Watcher, event: Any) -> None:
        watch(self, event)
        Interrupting(3)(event)

    monkeypatch.setattr(Watcher, "__call__", interrupted)
    arguments = ["train", str(path), "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert (
        f"interrupted; the best model so far (before a first evaluation: as it stood) is in {tmp_path / 'run' / 'model'}"
        in (result.stderr)
    )
    assert smoothtune.load(str(tmp_path / "run")).tasks == TASKS


def test_the_program_trains_and_evaluates(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(quick(tiny_encoder)), encoding="utf-8")
    arguments = ["train", str(path), "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "accuracy" in result.stdout
    assert "stage together ended: all epochs done" in result.stderr
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == json.loads((tmp_path / "run" / "evaluation.json").read_text())


def test_a_model_trained_in_bfloat16_evaluates_as_it_trained(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    run = train(quick(tiny_encoder, precision="auto"), data_dir=small_data, run_dir=tmp_path / "run")
    assert evaluate_run(run.folder).to_json() == run.evaluation
