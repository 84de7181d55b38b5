"""Stages: what is frozen does not move by a bit, each begins where it says, LoRA and adapters come in when they train."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.experiment import Experiment, ModelConfig
from smoothtune.config.loading import load
from smoothtune.errors import ConfigurationError, ModelFileError, UsageError
from smoothtune.inference.model import Model
from smoothtune.nn.model import MultiTaskModel
from smoothtune.training.loop import StepReport, put_frozen_to_rest
from smoothtune.training.optimiser import parameter_groups
from smoothtune.training.stage_events import StageBegin, StageEnd
from smoothtune.training.step import StepModule
from smoothtune.workflow import material as workflow
from smoothtune.workflow.check import check_encoder, encoding_of
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.frozen import FrozenStates
from smoothtune.workflow.run import Run
from smoothtune.workflow.scoring import EpochEvaluation, EpochScores
from smoothtune.workflow.train import train
from tests.small_data import STAGE, snapshot, table
from tests.test_packaged_smoothness import write_rows

pytestmark = pytest.mark.usefixtures("own_cache")
KINDS = (("mood", "accuracy"), ("same", "accuracy"), ("near", "pearson"))
MOOD = {"lora.mood", "adapters.mood", "outputs.mood"}


def staged(encoder: Path, *stages: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    """The small experiment with these stages, each of one epoch unless it says otherwise."""
    return {
        **table(encoder),
        "lora": {"rank": 2},
        "adapters": {"size": 4},
        "stages": [{**STAGE, "stop": {"max_epochs": 1}, **stage} for stage in stages],
        **keys,
    }


JOINT: dict[str, Any] = {"name": "joint"}
EFFICIENT: dict[str, Any] = {"name": "mood", "tasks": ["mood"], "train": sorted(MOOD)}
NEAR: dict[str, Any] = {"name": "near", "tasks": ["near"], "train": ["lora", "outputs"]}


def run_of(wanted: Mapping[str, Any], data: Path, folder: Path, listen: Any = lambda _: None) -> Run:
    return train(wanted, data_dir=data, run_dir=folder, listen=listen)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def parts(names: set[str]) -> set[str]:
    """`encoder`, `trunks.NAME`, `outputs.TASK` ... of full names."""
    return {"encoder" if name.startswith("encoder.") else ".".join(name.split(".")[:2]) for name in names}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Parts of what differs in any bit or is new."""
    return parts({name for name, part in after.items() if name not in before or not torch.equal(part, before[name])})


class Rising(EpochScores):
    """Scores of which each is better than those before, so that a stage leaves its last epoch."""

    count = 0

    def value(self, metric: str) -> float:
        Rising.count += 1
        return float(Rising.count)


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    class Evaluation(EpochEvaluation):
        def __call__(self, model: MultiTaskModel) -> EpochScores:
            found = super().__call__(model)
            return Rising(found.dev, found.train, found.undefined)

    monkeypatch.setattr(workflow, "EpochEvaluation", Evaluation)


# the packaged pipeline, tiny


def tiny(name: str, data: Path, encoder: Path, folder: Path, listen: Any = lambda _: None) -> Run:
    """A packaged experiment on made rows and the tiny encoder, a few steps of each stage."""
    overrides = [f"encoder.name={encoder}", "encoder.max_length=24", "trunks.pairs.depth=1", "adapters.size=4"]
    for number in range(len(load(name).experiment.stages)):
        stage = f"stages.{number}"
        overrides += [f"{stage}.batch_size=8", f"{stage}.stop.max_steps=3", f"{stage}.schedule=round_robin"]
    return train(name, data_dir=data, run_dir=folder, overrides=overrides, listen=listen)


PIPELINE = {
    "joint": {"encoder", "trunks.sentiment", "trunks.pairs", "outputs.sst", "outputs.quora", "outputs.sts"},
    "sst": {"lora.sst", "adapters.sst", "trunks.sentiment", "outputs.sst"},
    "quora": {"lora.quora", "adapters.quora", "trunks.pairs", "outputs.quora"},
    "sts": {"lora.sts", "adapters.sts", "outputs.sts"},
}


@pytest.mark.usefixtures("rising")
@pytest.mark.parametrize("name", ["wang/full", "wang/efficient"])
def test_what_a_stage_of_the_pipeline_does_not_train_stays_as_it_was_to_the_bit(
    name: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    begins: list[StageBegin] = []
    run = tiny(
        name,
        write_rows(tmp_path / "data"),
        tiny_encoder,
        tmp_path / "run",
        lambda event: begins.append(event) if isinstance(event, StageBegin) else None,
    )
    stages = [stage.name for stage in run.experiment.stages]
    assert stages == list(PIPELINE)[-len(stages) :]
    folders = [*(run.folder / "stages" / stage for stage in stages[:-1]), run.folder / "model"]
    states = [weights(folder) for folder in folders]
    for stage, before, after in zip(stages[1:], states, states[1:], strict=False):
        assert set(before) <= set(after)
        assert moved(before, after) == PIPELINE[stage], stage
    assert [set(begin.trains) for begin in begins] == [PIPELINE[stage] for stage in stages]
    statistics = [name for name in states[0] if name.startswith("trunks.pairs.") and name.endswith("running_mean")]
    assert statistics
    at = {stage: state[statistics[0]] for stage, state in zip(stages, states, strict=True)}
    assert not torch.equal(at["sst"], at["quora"])  # they do move where the trunk trains
    assert torch.equal(at["quora"], at["sts"])


def test_the_packaged_pipeline_has_the_values_of_the_paper() -> None:
    full, efficient = load("wang/full").experiment, load("wang/efficient").experiment
    joint = load("wang/pwim-resnet-convbilstm-smart5").experiment
    assert full.stages[0] == joint.stages[0]
    assert full.stages[1:] == efficient.stages
    same = {"name", "stages", "lora", "adapters"}
    assert full.model_dump(exclude=same) == efficient.model_dump(exclude=same) == joint.model_dump(exclude=same)
    for experiment in (full, efficient):
        assert (experiment.lora.rank, experiment.lora.targets, experiment.adapters.size) == (4, ("query", "value"), 64)
    rules = {stage.name: (stage.stop.metric, stage.stop.threshold, stage.stop.patience) for stage in full.stages}
    assert rules == {
        "joint": ("score", 1e-2, 1), "sst": ("sst", 1e-3, 5), "quora": ("quora", 1e-3, 3), "sts": ("sts", 1e-3, 5),
    }  # fmt: skip


# what a stage begins with


def test_an_adaptation_comes_in_with_the_first_stage_that_trains_it(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    run = run_of(staged(tiny_encoder, JOINT, EFFICIENT, NEAR), small_data, tmp_path / "run")
    folders = [run.folder / "stages" / "joint", run.folder / "stages" / "mood", run.folder / "model"]
    found = [(list(model.config.lora), list(model.config.adapters)) for model in map(Model.load, folders)]
    assert found == [([], []), (["mood"], ["mood"]), (["mood", "near"], ["mood"])]
    assert sorted(path.name for path in (run.folder / "stages").iterdir()) == ["joint", "mood"]
    assert Model.load(folders[1]).config.lora["mood"] == LoraOptions(rank=2)
    assert run.model().config.adapters == {"mood": AdapterOptions(size=4)}


def test_from_the_stage_before_is_what_happens_anyway(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    plain = run_of(staged(tiny_encoder, JOINT, EFFICIENT), small_data, tmp_path / "plain")
    said = run_of(staged(tiny_encoder, JOINT, {**EFFICIENT, "from": "joint"}), small_data, tmp_path / "said")
    assert moved(weights(plain.folder / "model"), weights(said.folder / "model")) == set()


def test_a_stage_may_begin_from_an_earlier_one_as_if_those_between_had_not_been(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    plain = run_of(staged(tiny_encoder, JOINT, EFFICIENT), small_data, tmp_path / "plain")
    back = run_of(staged(tiny_encoder, JOINT, NEAR, {**EFFICIENT, "from": "joint"}), small_data, tmp_path / "back")
    found, expected = weights(back.folder / "model"), weights(plain.folder / "model")
    assert set(found) == set(expected)  # the LoRA of the stage between is not in it
    assert moved(expected, found) == set()
    assert moved(expected, weights(back.folder / "stages" / "near")) >= {"lora.near", "outputs.near"}


def test_a_stage_may_begin_from_the_state_before_any(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    plain = run_of(staged(tiny_encoder, EFFICIENT), small_data, tmp_path / "plain")
    back = run_of(staged(tiny_encoder, JOINT, {**EFFICIENT, "from": "start"}), small_data, tmp_path / "back")
    assert moved(weights(plain.folder / "model"), weights(back.folder / "model")) == set()
    records = json.loads((back.folder / "run.json").read_text())["stages"]
    assert [(record["from"], record["before"]) for record in records] == [("start", None), ("start", None)]


def test_ctrl_c_in_a_later_stage_leaves_the_folders_of_those_before(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, StepReport) and event.stage == "mood":
            raise KeyboardInterrupt

    run = run_of(staged(tiny_encoder, JOINT, EFFICIENT), small_data, tmp_path / "run", stop)
    assert run.interrupted
    assert [path.name for path in (run.folder / "stages").iterdir()] == ["joint"]
    assert moved(weights(run.folder / "stages" / "joint"), weights(run.folder / "model")) <= MOOD
    assert set(evaluate_run(run.folder, stage="joint").scores.tasks) == {"mood", "same", "near"}
    with pytest.raises(UsageError, match="--stage mood: this run ended before the stage did; leave it out"):
        evaluate_run(run.folder, stage="mood")
    joint, mood = json.loads((run.folder / "run.json").read_text())["stages"]
    assert joint["reason"] == "all epochs done"
    assert mood["before"]["dev"]["mood"] == joint["after"]["dev"]["mood"]
    assert (mood["reason"], mood["after"], mood["trained"] > 0) == (None, None, True)


def test_the_model_after_any_stage_can_be_evaluated_predicted_from_and_exported(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    run = run_of(staged(tiny_encoder, JOINT, EFFICIENT), small_data, tmp_path / "run")
    first = json.loads((run.folder / "run.json").read_text())["stages"][0]["after"]["dev"]
    found = evaluate_run(run.folder, stage="joint").to_json()
    assert {task: found["tasks"][task][name]["value"] for task, name in KINDS} == pytest.approx(
        {task: first[task][name] for task, name in KINDS}
    )
    assert evaluate_run(run.folder, stage="mood").to_json() == run.evaluation
    with pytest.raises(UsageError) as error:
        evaluate_run(run.folder, stage="jont")
    said = "--stage jont: this run has no such stage; its stages: joint, mood. Did you mean 'joint'?"
    assert str(error.value) == said
    (tmp_path / "in.jsonl").write_text('{"text": "the cat"}\n{"text": "very big house"}\n')
    stages = {name: asked("predict", run.folder, tmp_path, "--stage", name) for name in ("joint", "mood")}
    assert stages["joint"] == asked("predict", run.folder / "stages" / "joint", tmp_path) != stages["mood"]
    assert stages["mood"] == asked("predict", run.folder, tmp_path)
    asked("export", run.folder, tmp_path, "--stage", "mood", "--to", str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"^export: task 'mood' has no LoRA; tasks that have: none$"):
        asked("export", run.folder, tmp_path, "--stage", "joint", "--to", str(tmp_path / "more"))
    inside, model = run.folder / "stages" / "joint", run.folder / "model"
    for wrong, message in (
        (inside, f"{inside}: is the model after a stage, not the run's folder; give {run.folder} --stage joint"),
        (model, f"{model}: is the model of a run, not the run's folder; give {run.folder}"),
        (tmp_path, f"{tmp_path}: is not a run folder (it has no experiment.toml)"),
    ):
        for command in ("predict", "evaluate"):
            with pytest.raises(ModelFileError) as misplaced:
                asked(command, wrong, tmp_path, "--stage", "mood")
            assert str(misplaced.value) == message


def asked(command: str, folder: Path, beside: Path, *more: str) -> str:
    """What the program says on stdout, about the task mood where there is a choice; its error is raised."""
    task = {"predict": ["--task", "mood", "--probabilities", str(beside / "in.jsonl")], "export": ["--task", "mood"]}
    answer = CliRunner().invoke(app, [command, str(folder), *task.get(command, []), *more])
    if answer.exception is not None:
        raise answer.exception
    return answer.stdout


# what is told


def test_run_json_tells_what_trained_and_the_metrics_before_and_after(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    ends: list[StageEnd] = []
    run = run_of(
        staged(tiny_encoder, JOINT, EFFICIENT),
        small_data,
        tmp_path / "run",
        lambda event: ends.append(event) if isinstance(event, StageEnd) else None,
    )
    joint, mood = json.loads((run.folder / "run.json").read_text())["stages"]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [("joint", 1), ("mood", 0), ("mood", 1)]
    assert joint["before"] is None
    assert joint["after"]["dev"] == lines[0]["dev"]
    assert mood["before"]["dev"] == lines[1]["dev"] == {"mood": lines[1]["dev"]["mood"]}
    best = lines[2] if lines[2]["best"] else lines[1]
    assert (mood["after"]["dev"], mood["after"]["score"]) == (best["dev"], best["score"])
    assert ends[1].after.main["mood"] == best["dev"]["mood"]["accuracy"]
    own = {name: part for name, part in weights(run.folder / "model").items() if parts({name}) <= MOOD}
    assert mood["trains"] == {
        part: sum(tensor.numel() for name, tensor in own.items() if parts({name}) == {part}) for part in MOOD
    }
    assert mood["trained"] == sum(mood["trains"].values()) < mood["parameters"] / 5
    assert (mood["from"], mood["tasks"], mood["precision"]) == ("joint", ["mood"], "float32")
    assert mood["train_seconds"] > 0


def test_the_command_tells_what_trains_and_the_metrics_before_and_after(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(staged(tiny_encoder, JOINT, EFFICIENT)), encoding="utf-8")
    arguments = ["train", str(file), "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())["stages"][1]
    counts = ", ".join(f"{part} {count:,}" for part, count in record["trains"].items())
    assert f"  {counts}; all else is frozen" in answer.stderr
    assert answer.stderr.count("all else is frozen") == 1  # not of the stage in which everything trains
    trained, everything = record["trained"], record["parameters"]
    assert f"trains {trained:,} of {everything:,} parameters ({trained / everything:.1%})" in answer.stderr
    before, after = (record[when]["dev"]["mood"]["accuracy"] for when in ("before", "after"))
    assert f"  dev before -> after: mood {before:.3f} -> {after:.3f} | score" in answer.stderr
    assert "(it began with untrained parts)" in answer.stderr
    silent = "note: stage mood: nothing in the encoder trains, so there is no dropout in it"
    assert f"{silent}; LoRA or adapters change what it gives, so its states are not kept" in answer.stderr


def test_an_encoder_of_an_unknown_layout_is_refused_before_any_data_are_read(
    tiny_encoder: Path,
) -> None:
    from transformers import DebertaConfig  # the first version: query, key and value are one product

    settings = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    architecture = DebertaConfig(vocab_size=50, num_hidden_layers=2, **settings).to_dict()
    heads = {"name": "heads", "train": ["trunks", "outputs"]}
    experiment = load(staged(tiny_encoder, heads, EFFICIENT)).experiment
    with pytest.raises(ConfigurationError) as caught:
        check_encoder(experiment, architecture)
    (problem,) = caught.value.problems
    assert problem.where == "stages.1.train"
    assert "lora, adapters: smoothtune does not know where the layers of model_type 'deberta' have" in problem.what


# states of a frozen encoder


def test_states_are_kept_only_where_nothing_changes_them(tiny_encoder: Path) -> None:
    heads: dict[str, Any] = {"tasks": ["mood"], "train": ["outputs"]}
    smooth = [{"kind": "smoothness"}]
    stages = (
        {"name": "a", **heads},
        {"name": "b", **heads, "frozen_dropout": True},
        {"name": "c", **heads, "regularisers": smooth},
        EFFICIENT,
        {"name": "d", **heads},
        {"name": "e", "tasks": ["near"], "train": ["outputs"]},
        {"name": "f", **heads, "from": "a"},
        JOINT,
    )
    experiment = load(staged(tiny_encoder, *stages)).experiment
    assert [encoding_of(experiment, number) for number in range(len(stages))] == [
        "kept", "moving", "looked_into", "adapted", "adapted", "kept", "kept", "moving",
    ]  # fmt: skip


def test_a_stage_after_lora_does_not_read_states_of_the_bare_encoder(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    heads = {"name": "heads", "tasks": ["mood"], "train": ["outputs"]}
    stages = [JOINT, {**EFFICIENT, "stop": {"max_epochs": 3}}, heads]
    kept: list[FrozenStates] = []
    wanted = staged(tiny_encoder, *stages)
    run = run_of(
        wanted, small_data, tmp_path / "run", lambda event: kept.append(event) if isinstance(event, FrozenStates) else 0
    )
    assert kept == []
    records = json.loads((run.folder / "run.json").read_text())["stages"]
    assert records[2]["before"]["dev"] == records[1]["after"]["dev"]
    state = weights(run.folder / "stages" / "mood")
    assert bool(state["lora.mood.layers.0.query.b"].any())
    assert evaluate_run(run.folder).to_json() == run.evaluation
    assert run.evaluation is not None
    assert run.evaluation["tasks"]["mood"]["accuracy"]["value"] == records[2]["after"]["dev"]["mood"]["accuracy"]


# dropout and statistics of what is frozen


class Twofold(nn.Module):
    """A part with dropout and one with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)


@pytest.mark.parametrize("kept", [False, True])
def test_dropout_in_frozen_parts_is_off_unless_the_stage_leaves_it_on_and_statistics_always_rest(kept: bool) -> None:
    module = nn.Module()
    module.model, module.frozen_dropout = nn.ModuleDict({"frozen": Twofold(), "trained": Twofold()}), kept
    module.model["frozen"].requires_grad_(False)
    module.train()
    put_frozen_to_rest(module)  # type: ignore[arg-type]
    frozen, trained = module.model["frozen"], module.model["trained"]
    assert (frozen.linear.training, frozen.dropout.training, frozen.norm.training) == (kept, kept, False)
    assert (trained.linear.training, trained.dropout.training, trained.norm.training) == (True, True, True)


@pytest.mark.parametrize("kept", [False, True])
def test_a_stage_says_whether_frozen_parts_drop(
    kept: bool, tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: set[tuple[bool, bool]] = set()
    forward = StepModule.forward

    def watched(self: StepModule, *arguments: Any) -> Any:
        modes.add((self.model.encoder.training, self.model.lora["mood"].training))
        return forward(self, *arguments)

    monkeypatch.setattr(StepModule, "forward", watched)
    wanted = staged(tiny_encoder, {**EFFICIENT, "frozen_dropout": kept})
    wanted["encoder"] |= {"dropout": 0.5, "attention_dropout": 0.5}
    run = run_of(wanted, small_data, tmp_path / "run")
    assert modes == {(kept, True)}
    assert json.loads((run.folder / "check.json").read_text())["frozen"] == ([] if kept else ["mood"])


# rates and the best of a task


def test_adaptations_have_a_rate_of_their_own(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    run = run_of(staged(tiny_encoder, EFFICIENT), small_data, tmp_path / "run")
    model = run.model().network
    rates = {"adaptations": 0.02, "outputs": 0.03}
    stage = load(staged(tiny_encoder, {**EFFICIENT, "learning_rate": rates})).experiment.stages[0]
    chosen = {name: part for name, part in model.named_parameters() if parts({name}) <= MOOD}
    names = {id(part): name for name, part in chosen.items()}
    found = {
        names[id(part)].partition(".")[0]: group["lr"]
        for group in parameter_groups(model, nn.Module(), chosen, stage)
        for part in group["params"]
    }
    assert found == {"lora": 0.02, "adapters": 0.02, "outputs": 0.03}


def test_a_finished_task_keeps_its_best_lora_and_adapters(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []

    class Falling(EpochScores):
        @property
        def main(self) -> Mapping[str, float]:
            return {"mood": -float(len(states)), "near": float(len(states))}

        def value(self, metric: str) -> float:
            return float(len(states))

    class Evaluation(EpochEvaluation):
        def __call__(self, model: MultiTaskModel) -> EpochScores:
            states.append(snapshot(model))
            found = super().__call__(model)
            return Falling(found.dev, found.train, found.undefined)

    monkeypatch.setattr(workflow, "EpochEvaluation", Evaluation)
    stop = {"max_epochs": 3, "patience": 1, "per_task": True}
    stage = {"name": "both", "tasks": ["mood", "near"], "train": ["lora", "adapters", "outputs"], "stop": stop}
    run = run_of(staged(tiny_encoder, stage), small_data, tmp_path / "run")
    found = weights(run.folder / "model")
    assert moved(states[0], found) == {"lora.near", "adapters.near", "outputs.near"}
    assert moved(states[2], found) == set()  # mood has left the schedule with its best
    assert moved(states[0], states[1]) >= MOOD


# configuration


def refusal(encoder: Path, *stages: Mapping[str, Any], **keys: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(staged(encoder, *stages, **keys))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"train": ["lora.mod"]}, "nothing is called 'lora.mod' here; known: encoder, "),
        ({"train": ["lora.mod"]}, "Did you mean 'lora.mood'?"),
        ({"train": ["adapter"]}, "Did you mean 'adapters'?"),
        ({"train": ["lora.near"], "tasks": ["mood"]}, "nothing is called 'lora.near' here"),
        ({"train": []}, "stages.0.train: "),
    ],
)
def test_a_selection_of_nothing_is_refused_with_the_near_name(
    stage: dict[str, Any], said: str, tiny_encoder: Path
) -> None:
    (problem,) = [text for text in refusal(tiny_encoder, {**stage}) if text.startswith("stages.0.train")]
    assert said in problem


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"name": "b", "from": "jont"}, "no stage before this one is called 'jont'; known: start, joint. Did you mean"),
        ({"name": "b", "from": "b"}, "no stage before this one is called 'b'; known: start, joint."),
        ({"name": "start"}, "a stage cannot be called 'start': `from` gives that name to the state before any"),
        ({"name": "b", "form": "joint"}, "unknown key. Did you mean 'from'?"),
    ],
)
def test_a_stage_must_begin_from_one_before_it(second: dict[str, Any], said: str, tiny_encoder: Path) -> None:
    found = refusal(tiny_encoder, {**JOINT, "train": ["lora", "adapters", "outputs"]}, second)
    assert len(found) == 1
    assert said in found[0]


def test_options_of_what_no_stage_trains_are_refused(tiny_encoder: Path) -> None:
    said = "is read only by stages that train it, and none does; add"
    assert refusal(tiny_encoder, JOINT) == [
        f'lora: {said} "lora" to a stage\'s `train`',
        f'adapters: {said} "adapters" to a stage\'s `train`',
    ]
    assert refusal(tiny_encoder, {"train": ["lora.mood"], "tasks": ["mood"]})[0].startswith("adapters: ")


def test_targets_are_named_once(tiny_encoder: Path) -> None:
    (found,) = refusal(tiny_encoder, EFFICIENT, lora={"targets": ["query", "up", "query"]})
    assert found == "lora.targets: 'query' stands twice; name each product once"


def test_what_is_in_the_model_of_a_stage_follows_from(tiny_encoder: Path) -> None:
    experiment: Experiment = load(
        staged(tiny_encoder, JOINT, EFFICIENT, NEAR, {**EFFICIENT, "name": "again", "from": "joint"})
    ).experiment
    assert [experiment.before(number) for number in range(4)] == [(), (0,), (0, 1), (0,)]
    assert [list(experiment.lora_after(number)) for number in range(4)] == [[], ["mood"], ["mood", "near"], ["mood"]]
    assert [list(experiment.adapters_after(number)) for number in range(4)] == [[], ["mood"], ["mood"], ["mood"]]
    assert experiment.lora_after(1) == {"mood": LoraOptions(rank=2)}


def test_model_folders_of_before_name_no_adaptations() -> None:
    config = ModelConfig.model_validate({"encoder": {}, "tasks": {}, "trunks": {}})
    assert (config.lora, config.adapters) == ({}, {})
