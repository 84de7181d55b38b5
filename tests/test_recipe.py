"""The recipe `auto`: what it chooses, what a run says of it, and that a probe is where training begins."""

from __future__ import annotations

import json
import signal
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.config.loading import load, to_toml
from smoothtune.config.trunks import SiameseTrunk as SiameseOptions
from smoothtune.errors import ConfigurationError, TerminatedError, UsageError
from smoothtune.inference.answering import answer_examples, features_of
from smoothtune.nn.trunks.siamese import SiameseTrunk
from smoothtune.runtime.signals import terminable
from smoothtune.training.stage_events import StageEnd, StageEpoch
from smoothtune.workflow import trial
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.probe_fit import ProbeRows, set_probes
from smoothtune.workflow.recipe import Choosing, RecipeChosen
from smoothtune.workflow.train import chosen_experiment, resume, train
from tests.killing import KillAt, metrics, same_run, until_killed
from tests.small_data import GROUPS, prepare, table

pytestmark = pytest.mark.usefixtures("own_cache")
LABELS = ("beast", "place", "sky")


def open_table(encoder: Path, *tasks: str) -> dict[str, Any]:
    """The small experiment as a new user writes it: no stages, no trunks."""
    wanted = table(encoder)
    del wanted["stages"], wanted["trunks"]
    wanted["tasks"] = {name: task for name, task in wanted["tasks"].items() if name in tasks}
    for task in wanted["tasks"].values():
        del task["trunk"]
    wanted["runtime"] = {"threads": 1}
    return wanted


def test_an_experiment_without_stages_leaves_them_to_the_recipe_and_one_with_stages_does_not(
    tiny_encoder: Path,
) -> None:
    left_open = load(open_table(tiny_encoder, "mood")).experiment
    assert left_open.recipe == "auto"
    assert "stages" not in tomllib.loads(to_toml(left_open))
    assert load(left_open).experiment.recipe == "auto"
    assert load(table(tiny_encoder)).experiment.recipe == "none"
    assert load({**open_table(tiny_encoder, "mood"), "recipe": "none"}).experiment.stages[0].init is None
    with pytest.raises(ConfigurationError) as caught:
        load({**table(tiny_encoder), "recipe": "auto"})
    assert [problem.where for problem in caught.value.problems] == ["recipe"]


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ({"stop": {"max_steps": 0}}, "stages.0.stop.max_steps"),
        ({"stop": {"keep": "last", "patience": 2}}, "stages.0.stop.keep"),
        ({"stop": {"keep": "last", "no_task_below_start": True}}, "stages.0.stop.keep"),
        ({"init": "probe", "train": ["encoder"]}, "stages.0.init"),
    ],
)
def test_keys_of_the_probe_that_contradict_others_are_named(tiny_encoder: Path, stage: Any, where: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(table(tiny_encoder, **stage))
    assert [problem.where for problem in caught.value.problems] == [where]


def test_layers_that_the_encoder_does_not_have_are_refused(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = table(tiny_encoder, trunk={"kind": "mean", "layers": [0, 9]})
    with pytest.raises(ConfigurationError, match="has 2 layers: 0"):
        train(wanted, data_dir=small_data, run_dir=tmp_path / "run")


@pytest.mark.parametrize("what", ["linear probe of mood", "fine-tuning"])
def test_sigterm_ends_the_recipe_in_one_line(what: str, tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def listen(event: Any) -> None:
        if isinstance(event, Choosing) and event.what == what:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")

    wanted, run = open_table(tiny_encoder, "mood"), tmp_path / "run"
    with pytest.raises(TerminatedError) as caught:
        train(wanted, data_dir=small_data, run_dir=run, listen=listen)
    assert (str(caught.value), caught.value.exit_code) == (
        "ended by SIGTERM before the first step; give the same command again",
        143,
    )
    assert not run.exists()
    with pytest.raises(
        TerminatedError, match=r"^ended by SIGTERM while the recipe chose; give the same command again$"
    ):
        chosen_experiment(load(wanted, data_dir=small_data), listen=listen)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_program_that_handles_sigterm_itself_goes_on_doing_so(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
    try:
        with terminable("ended"):
            signal.raise_signal(signal.SIGTERM)
        assert handled == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with ThreadPoolExecutor(1) as pool, terminable("ended"):
            assert pool.submit(_entered).result()
    finally:
        signal.signal(signal.SIGTERM, before)


def _entered() -> bool:
    handler = signal.getsignal(signal.SIGTERM)
    with terminable("in a thread"):
        return signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("scaling", ["none", "unit", "standard"])
@pytest.mark.parametrize("layers", [None, [1], [0, 1, 2]])
def test_outputs_begin_as_the_fits_of_their_features(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, layers: Any, scaling: str
) -> None:
    wanted = table(tiny_encoder)
    wanted["trunks"] = {
        "single": {"kind": "mean", "dropout": 0.1, "layers": layers, "scaling": scaling},
        "pair": {"kind": "siamese", "layers": layers, "scaling": scaling, "cosine": True},
    }
    prepared = prepare(wanted, small_data, tmp_path)
    rows = {name: ProbeRows(part, np.arange(len(part))) for name, part in prepared.train.items()}
    probes = set_probes(prepared.model, rows, dtype=torch.float32, seed=3)
    for name, part in prepared.dev.items():
        expected = probes[name].fit(features_of(prepared.model, part, dtype=torch.float32).astype(np.float64))
        found = answer_examples(prepared.model, part, dtype=torch.float32).reshape(len(part), -1)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_the_trunk_of_a_probe_reads_the_layers_it_names(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, trunk={"kind": "mean", "layers": [0, 2], "dropout": 0.0})
    model = prepare(wanted, small_data, tmp_path).model
    model.eval()
    prepared = prepare(table(tiny_encoder, trunk={"kind": "mean", "dropout": 0.0}), small_data, tmp_path)
    batch = prepared.train["mood"].batch(np.arange(4))
    encoded = model.encoder(batch.tokens, keep_inputs=True)
    mask = batch.tokens.mask.unsqueeze(2)
    pooled = [(part * mask).sum(1) / mask.sum(1) for part in (encoded.inputs[0], encoded.states)]
    torch.testing.assert_close(model.features_of(batch), torch.cat(pooled, dim=1))


def test_unit_and_standard_features_are_what_they_say(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    for scaling in ("unit", "standard"):
        wanted = table(tiny_encoder, trunk={"kind": "mean", "layers": [0, 2], "scaling": scaling, "dropout": 0.0})
        prepared = prepare(wanted, small_data, tmp_path)
        rows = {"mood": ProbeRows(prepared.train["mood"], np.arange(40))}
        set_probes(prepared.model, rows, dtype=torch.float32, seed=3)
        features = features_of(prepared.model, prepared.train["mood"], dtype=torch.float32)
        if scaling == "unit":
            blocks = np.square(features.reshape(40, 2, -1)).mean(axis=2)
            np.testing.assert_allclose(blocks, 1, rtol=1e-5)
        else:
            np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-4)


def test_cosines_stand_last_and_one_for_each_layer() -> None:
    options = SiameseOptions(layers=(0, 1), cosine=True, dropout=0.0)
    trunk = SiameseTrunk(options, 4)
    u, v = torch.randn(3, 1, 8), torch.randn(3, 1, 8)
    mask = torch.ones(3, 1, dtype=torch.bool)
    found = trunk(u, mask, v, mask)
    assert found.shape == (3, trunk.features) == (3, 34)
    expected = torch.cosine_similarity(u.view(3, 2, 4), v.view(3, 2, 4), dim=2)
    torch.testing.assert_close(found[:, 32:], expected)


@pytest.fixture(scope="module")
def run_of_one(
    tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """One task trained by the recipe, and its events."""
    folder = tmp_path_factory.mktemp("recipe")
    events: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train(open_table(tiny_encoder, "mood"), data_dir=small_data, run_dir=folder / "run", listen=events.append)
    return folder / "run", events


def test_a_run_says_what_its_recipe_chose(run_of_one: tuple[Path, list[Any]]) -> None:
    folder, events = run_of_one
    resolved = tomllib.loads((folder / "experiment.toml").read_text())
    (stage,) = resolved["stages"]
    record = json.loads((folder / "run.json").read_text())["recipe"]
    assert (resolved["recipe"], stage["init"], resolved["tasks"]["mood"]["trunk"]) == ("none", "probe", "mood")
    assert record["tasks"]["mood"]["rows"] == 40
    assert record["model"] in ("probe", "fine-tuned")
    assert record["cross_validation"]["folds"] == 3
    assert json.loads((folder / "recipe.json").read_text())["name"] == "auto"
    (chosen,) = [event for event in events if isinstance(event, RecipeChosen)]
    assert chosen.sentences[0].startswith("mood: 40 rows of 3 classes; linear probe on ")
    tried = [event for event in events if isinstance(event, Choosing)]
    assert tried[0].what == "linear probe of mood"
    assert tried[-1].done == tried[-1].total > 0


def test_a_run_of_the_recipe_is_as_good_as_its_probe_by_cross_validation(run_of_one: tuple[Path, list[Any]]) -> None:
    folder, _ = run_of_one
    record = json.loads((folder / "run.json").read_text())["recipe"]
    compared = record["cross_validation"]["tasks"]["mood"]
    better = compared["tuned"] > compared["probe"] and compared["tuned_loss"] < compared["probe_loss"]
    assert record["cross_validation"]["better"] == better
    assert (record["model"] == "fine-tuned") == better
    assert record["steps"] == (40 if better else 0)


def test_the_probe_stands_beside_the_model_unless_it_is_the_model(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = table(tiny_encoder, init="probe", stop={"max_steps": 30, "max_epochs": 30, "keep": "last"})
    train(wanted, data_dir=small_data, run_dir=tmp_path / "tuned")
    found = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    assert set(found["baselines"]) == {"largest class", "probe"}
    before = json.loads((tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()[0])
    assert before["step"] == 0
    for task, scores in before["dev"].items():
        for metric, value in scores.items():
            assert found["baselines"]["probe"]["tasks"][task][metric]["value"] == pytest.approx(value)
    assert evaluate_run(tmp_path / "tuned").to_json()["baselines"]["probe"] == found["baselines"]["probe"]

    wanted = table(tiny_encoder, init="probe", train=["outputs"], stop={"max_steps": 0})
    train(wanted, data_dir=small_data, run_dir=tmp_path / "probe")
    found = json.loads((tmp_path / "probe" / "evaluation.json").read_text())
    assert set(found["baselines"]) == {"largest class"}
    assert json.loads((tmp_path / "probe" / "run.json").read_text())["stages"][0]["best_step"] == 0


def test_no_task_of_the_best_state_is_below_its_probe(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, init="probe", learning_rate=0.05, stop={"max_epochs": 4, "no_task_below_start": True})
    events: list[Any] = []
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run", listen=events.append)
    epochs = [event for event in events if isinstance(event, StageEpoch)]
    start = epochs[0].report.dev.main
    assert any(event.below for event in epochs[1:])  # a rate that breaks the encoder
    for event in epochs[1:]:
        lower = {task for task, value in event.report.dev.main.items() if not value >= start[task]}
        assert set(event.below) == lower
        assert not (event.best and lower)
    (end,) = [event for event in events if isinstance(event, StageEnd)]
    assert all(end.after.main[task] >= value for task, value in start.items())


def test_three_tasks_by_the_recipe_are_none_below_their_probes(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    train(open_table(tiny_encoder, "mood", "same", "near"), data_dir=small_data, run_dir=tmp_path / "run")
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["stages"][-1]
    for task, scores in stage["before"]["dev"].items():
        main = "pearson" if task == "near" else "accuracy"
        assert stage["after"]["dev"][task][main] >= scores[main] - 1e-9


def test_the_last_state_is_kept_where_the_stage_says_so(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, learning_rate=0.05, init="probe", stop={"max_epochs": 3, "keep": "last"})
    events: list[Any] = []
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run", listen=events.append)
    last = [event for event in events if isinstance(event, StageEpoch)][-1]
    (end,) = [event for event in events if isinstance(event, StageEnd)]
    assert end.after.state_dict() == last.report.dev.state_dict()
    assert end.best_step == last.report.step


@pytest.mark.parametrize("place", [1, 2, 7, 12, 19])
def test_a_run_that_began_with_a_probe_resumes_to_the_same_bits(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, place: int
) -> None:
    wanted = table(
        tiny_encoder, trunk={"kind": "mean", "layers": [0, 2], "scaling": "standard"}, init="probe",
        stop={"max_steps": 20, "max_epochs": 9, "no_task_below_start": True},
    )  # fmt: skip
    wanted["tasks"]["mood"]["class_weights"] = "balanced"
    wanted["encoder"]["dropout"] = 0.1
    wanted["runtime"] = {"threads": 1, "checkpoint_every": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(wanted, data_dir=small_data, run_dir=whole)
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=cut, listen=KillAt(place)))
    resume(cut)
    assert same_run(cut, whole)


def test_the_same_experiment_resumes_what_the_recipe_chose(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_better", lambda tasks, rows: True)
    wanted = open_table(tiny_encoder, "mood", "near")
    wanted["runtime"] = {"threads": 1, "checkpoint_every": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(wanted, data_dir=small_data, run_dir=whole)
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=cut, listen=KillAt(2)))
    train(wanted, data_dir=small_data, run_dir=cut, resume=True)
    assert same_run(cut, whole)
    assert metrics(cut) == metrics(whole)
    finished = train(wanted, data_dir=small_data, run_dir=cut, resume=True)
    assert finished.evaluation is not None
    wanted["tasks"]["mood"]["metric"] = "macro_f1"
    with pytest.raises(UsageError, match="another one"):
        train(wanted, data_dir=small_data, run_dir=cut, resume=True)


def test_a_run_folder_that_is_taken_is_refused_before_the_recipe_is_at_work(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    events: list[Any] = []
    with pytest.raises(UsageError, match="exists already"):
        train(open_table(tiny_encoder, "mood"), data_dir=small_data, run_dir=tmp_path, listen=events.append)
    assert events == []


@pytest.mark.parametrize("kind", ["conv_bilstm", "cls", "pwim_dcnn", "joint", "cosine"])
def test_tasks_that_name_a_trunk_keep_it(tiny_encoder: Path, small_data: Path, tmp_path: Path, kind: str) -> None:
    task = "mood" if kind in ("conv_bilstm", "cls") else "near"
    wanted = open_table(tiny_encoder, task)
    wanted["trunks"] = {"named": {"kind": kind}}
    wanted["tasks"][task]["trunk"] = "named"
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    resolved = tomllib.loads((tmp_path / "run" / "experiment.toml").read_text())
    assert resolved["trunks"]["named"]["kind"] == kind
    assert resolved["stages"][0].get("init") == (None if kind == "pwim_dcnn" else "probe")


def test_probes_stand_on_lora_adapters_and_regularisers(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, init="probe", trunk={"kind": "mean", "layers": [1, 2], "scaling": "unit"})
    first = wanted["stages"][0]
    first["regularisers"] = [{"kind": "smoothness", "preset": "exact", "radius": 0.03, "layer": 1}, {"kind": "r_drop"}]
    wanted["encoder"]["dropout"] = 0.1
    wanted["stages"].append(
        {
            **first,
            "name": "own",
            "train": ["lora", "adapters", "outputs"],
            "regularisers": [],
            "stop": {"max_epochs": 1},
        }
    )
    train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert [stage["before"] is not None for stage in stages] == [True, True]


def test_show_writes_out_what_the_recipe_chooses(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, written: Callable[[Any, Path], Path]
) -> None:
    path = written(open_table(tiny_encoder, "mood"), tmp_path / "my.toml")
    shown = CliRunner().invoke(app, ["show", str(path), "--resolved", "--data-dir", str(small_data)])
    assert shown.exit_code == 0, shown.stderr
    resolved = tomllib.loads(shown.stdout)
    assert resolved["stages"][0]["init"] == "probe"
    assert "recipe: linear probe of mood" in shown.stderr
    left_open = CliRunner().invoke(app, ["show", str(path), "--set", "seed=4"])
    assert tomllib.loads(left_open.stdout)["recipe"] == "auto"


@pytest.fixture
def written() -> Callable[[Any, Path], Path]:
    import tomli_w

    def write(wanted: Any, path: Path) -> Path:
        path.write_text(tomli_w.dumps(wanted), encoding="utf-8")
        return path

    return write


def test_a_rare_class_has_balanced_weights_where_macro_f1_gains_by_them(tiny_encoder: Path, tmp_path: Path) -> None:
    lines = ["text\tlabel"]
    for number in range(160):
        label = LABELS[2] if number % 40 == 7 else LABELS[number % 2]
        words = GROUPS[label]
        lines.append(f"a {('small', 'big', 'slow', 'fast')[number % 4]} {words[number % len(words)]}\t{label}")
    for split in ("train", "dev"):
        (tmp_path / f"mood.{split}.tsv").write_text("\n".join(lines) + "\n")
    train(open_table(tiny_encoder, "mood"), data_dir=tmp_path, run_dir=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())["tasks"]["mood"]
    resolved = tomllib.loads((tmp_path / "run" / "experiment.toml").read_text())["tasks"]["mood"]
    assert record["class_weights"] in ("balanced", "none")
    assert resolved["class_weights"] == record["class_weights"]
