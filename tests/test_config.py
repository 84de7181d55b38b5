"""Experiments: what loads, what is refused and in which words, overrides, and the way back to TOML."""

from __future__ import annotations

import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.catalogue import catalogue
from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.experiment import Experiment, RuntimeOptions, trunk_name, trunk_options
from smoothtune.config.loading import PACKAGED, find, load, packaged_names, to_toml, validated_run
from smoothtune.config.regularisers import (
    PRESETS,
    RADIUS,
    RDropOptions,
    RegulariserBase,
    RegulariserOptions,
    SmoothnessOptions,
    VatOptions,
)
from smoothtune.config.schedules import ScheduleOptions, TemperatureOptions
from smoothtune.config.stage import Rates, Stage, Stop
from smoothtune.config.tasks import Task, shape_of
from smoothtune.config.trunks import CosineTrunk, JointTrunk, MeanTrunk, SiameseTrunk, TrunkOptions
from smoothtune.errors import ConfigurationError, UsageError

FULL = """
seed = 7
name = "full"

[encoder]
name = "minilm"
max_length = 128

[tasks.sst]
kind = "classification"
text = "sentence"
label = "sentiment"
labels = ["0", "1", "2", "3", "4"]
train = "sst/train.tsv"
dev = "sst/dev.tsv"
test = "sst/test.tsv"
max_train_rows = 1000
loss_weight = 2.0
trunk = "sentiment"

[tasks.quora]
kind = "binary"
text = ["sentence1", "sentence2"]
label = "is_duplicate"
train = "quora/train.tsv"
dev = "quora/dev.tsv"
trunk = "pairs"

[tasks.sts]
kind = "regression"
range = [0, 5]
text = ["sentence1", "sentence2"]
label = "similarity"
train = "sts/train.tsv"
dev = 0.2
trunk = "pairs"

[trunks.sentiment]
kind = "conv_bilstm"
[trunks.pairs]
kind = "pwim_resnet"

[lora]
rank = 8
alpha = 16
targets = ["query", "down"]
dropout = 0.1
[adapters]
size = 32

[[stages]]
name = "together"
kind = "tasks"
tasks = ["sst", "quora", "sts"]
train = ["encoder", "trunks", "outputs"]
schedule = "round_robin"
schedule_options = { until = "first_exhausted", every_task = true }
weighting = ["fixed", "learned"]
batch_size = 32
learning_rate = 3e-5
warmup = 0.2
weight_decay = 0.1
layer_decay = 0.9
gradient_clip = 2.0
accumulate = 2
on_nan = "skip"
precision = "bfloat16"
stop = { metric = "score", patience = 1, threshold = 1e-2, max_epochs = 10, max_steps = 500, per_task = true }

[[stages.regularisers]]
kind = "smoothness"
name = "smart"
preset = "paper"
weight = 5.0
tasks = ["sst", "sts"]
precision = "float32"
every = 2
fraction = 0.5
warmup = 0.2
radius = 1e-3
norm = 2
per = "text"
layer = "middle"

[[stages.regularisers]]
kind = "r_drop"
tasks = "quora"

[[stages]]
train = ["outputs.sts", "trunks.pairs", "encoder.embeddings", "encoder.layers.1-2", "lora", "adapters.sts"]
tasks = "sts"
from = "start"
frozen_dropout = true
stop = { metric = "sts" }
"""
SST = {"kind": "classification", "text": "s", "label": "l", "train": "sst.tsv"}
STS = {"kind": "regression", "text": ["a", "b"], "label": "l", "train": "sts.tsv"}


def table(**changes: Any) -> dict[str, Any]:
    """A smallest experiment, with top-level keys added or replaced."""
    return {"tasks": {"sst": deepcopy(SST)}, **changes}


def refusal(*overrides: str, **changes: Any) -> list[str]:
    """The problems of a table that is refused."""
    with pytest.raises(ConfigurationError) as caught:
        load(table(**changes), overrides=overrides)
    assert str(caught.value).splitlines()[0] == "the experiment cannot be run:"
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def stage_of(**keys: Any) -> Stage:
    return load(table(stages=[keys])).experiment.stages[0]


def test_every_key_of_a_full_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text(FULL)
    loaded = load(tmp_path / "full.toml")
    found, (first, second) = loaded.experiment, loaded.experiment.stages
    assert (loaded.base, found.name, found.seed) == (tmp_path, "full", 7)
    assert (found.encoder.name, found.encoder.max_length) == ("minilm", 128)
    sst, quora, sts = found.tasks.values()
    assert (sst.text, sst.label, sst.labels) == (("sentence",), "sentiment", ("0", "1", "2", "3", "4"))
    assert (sst.train, sst.dev, sst.test) == ("sst/train.tsv", "sst/dev.tsv", "sst/test.tsv")
    assert (sst.max_train_rows, sst.loss_weight, sst.trunk) == (1000, 2.0, "sentiment")
    assert (quora.kind, quora.text, quora.labels) == ("binary", ("sentence1", "sentence2"), None)
    assert (sts.range, sts.dev, sts.metric) == ((0, 5), 0.2, "pearson")
    assert [trunk.kind for trunk in found.trunks.values()] == ["conv_bilstm", "pwim_resnet"]
    assert (first.name, first.tasks, first.train) == ("together", ("sst", "quora", "sts"), Stage().train)
    assert (first.schedule, first.schedule_options.until, first.every_task) == ("round_robin", "first_exhausted", True)
    assert (first.weighting, first.batch_size, first.warmup) == (("fixed", "learned"), 32, 0.2)
    assert first.learning_rate == Rates(encoder=3e-5, trunks=3e-5, outputs=3e-5, adaptations=3e-5)
    assert (first.weight_decay, first.layer_decay, first.gradient_clip, first.accumulate) == (0.1, 0.9, 2.0, 2)
    assert (first.on_nan, first.precision) == ("skip", "bfloat16")
    assert first.stop == Stop(patience=1, threshold=1e-2, max_epochs=10, max_steps=500, per_task=True)
    smart, r_drop = first.regularisers
    assert (smart.label, smart.weight, smart.tasks, smart.precision) == ("smart", 5.0, ("sst", "sts"), "float32")
    assert (smart.every, smart.fraction, smart.warmup, smart.layer) == (2, 0.5, 0.2, "middle")
    assert (smart.radius, smart.norm, smart.per) == (1e-3, "2", "text")
    assert (smart.noise, smart.direction, smart.dropout) == (1e-3, "normalised", "independent")  # of the preset
    assert r_drop == RDropOptions(tasks=("quora",))
    assert (second.name, second.tasks, second.stop.metric) == ("stage-2", ("sts",), "sts")
    assert (first.begins_from, second.begins_from) == (None, "start")
    assert (first.frozen_dropout, second.frozen_dropout) == (False, True)
    assert found.lora == LoraOptions(rank=8, alpha=16, targets=("query", "down"), dropout=0.1)
    assert found.adapters == AdapterOptions(size=32)
    assert found.stage_tasks(second) == ("sts",)
    assert load(tmp_path / "full.toml", data_dir=tmp_path, seed=0).experiment.seed == 0


def test_what_is_not_said_has_a_default() -> None:
    found = load(table(tasks={"sst": SST, "sts": STS})).experiment
    assert (found.name, found.seed, found.encoder.name, found.encoder.max_length) == ("experiment", 1, "minilm", 128)
    assert (found.tasks["sst"].dev, found.tasks["sst"].on_bad_row) == (0.1, "error")
    assert (found.runtime.device, found.runtime.threads, found.stages) == ("auto", None, (Stage(),))
    assert found.stages[0].learning_rate == Rates(encoder=5e-5, trunks=1e-3, outputs=1e-3, adaptations=5e-4)
    assert found.lora == LoraOptions(rank=4, alpha=4, targets=("query", "value"), dropout=0)
    assert found.adapters == AdapterOptions(size=64)
    assert found.stages[0].regularisers == ()
    assert (found.stages[0].stop.max_epochs, found.stages[0].stop.patience) == (3, None)
    assert found.stage_tasks(found.stages[0]) == ("sst", "sts")
    own = {name: trunk_options(name, task, found.trunks) for name, task in found.tasks.items()}
    assert own == {"sst": MeanTrunk(), "sts": SiameseTrunk()}
    assert [trunk_name(name, task) for name, task in found.tasks.items()] == ["sst", "sts"]


@pytest.mark.parametrize(("value", "shown"), [(True, "true"), (2.5, "2.5"), ("10", "'10'"), ([3], "[3]")])
def test_what_is_no_time_for_a_checkpoint_is_told(value: Any, shown: str) -> None:
    wanted = "a number of steps, a table such as { minutes = 5 }, or false for never"
    assert refusal(runtime={"checkpoint_every": value}) == [f"runtime.checkpoint_every: got {shown}, expected {wanted}"]


def test_an_experiment_cannot_be_changed_and_its_tasks_have_a_shape_without_data() -> None:
    found = load(table()).experiment
    with pytest.raises(ValueError, match="frozen"):
        found.seed = 2  # type: ignore[misc]
    shape = shape_of(found.tasks["sst"])
    assert (shape.kind, shape.text, hasattr(shape, "train")) == ("classification", ("s",), False)


MISTAKES = """
seed = -1
nmae = "x"
[encoder]
max_lenght = 128
implementation = "nativ"
[tasks.sst]
kind = "classification"
text = ["a", "b", "c"]
labels = ["one"]
metric = "acuracy"
train = "x.tsv"
[tasks.quora]
kind = "binry"
[tasks.sts]
text = "t"
[tasks.other]
kind = "regression"
range = [5, 0]
text = "t"
label = "l"
train = "x.tsv"
dev = 1.5
[trunks.pairs]
kind = "siamse"
[trunks.sentiment]
kind = "conv_bilstm"
kernel = 4
[[stages]]
name = "one two"
schedule = "proportionl"
weighting = "inverse"
stop = { patience = 0, max_epoch = 3 }
[[stages]]
schedule = "temperature"
schedule_options = { alpha = 2.0, every_task = true }
learning_rate = { encoder = 0, trunk = 1e-3 }
gradient_clip = true
[[stages.regularisers]]
kind = "smothness"
[[stages.regularisers]]
kind = "smoothness"
preset = "papr"
weight = -1
radius = 0
norm = 3
layer = "midle"
stepsize = 0.1
[[stages.regularisers]]
weight = 1
[runtime]
device = "gpu"
"""
SAID = """\
  seed: input should be greater than or equal to 0, got -1
  encoder.implementation: got 'nativ', expected one of auto, native, transformers. Did you mean 'native'?
  encoder.max_lenght: unknown key. Did you mean 'max_length'?
  tasks.sst.text: value should have at most 2 items after validation, not 3, got ['a', 'b', 'c']
  tasks.sst.labels: tuple should have at least 2 items after validation, not 1, got ['one']
  tasks.sst.metric: got 'acuracy', expected one of accuracy, macro_f1. Did you mean 'accuracy'?
  tasks.sst.label: is required but missing
  tasks.quora.kind: got 'binry', expected one of classification, binary, regression. Did you mean 'binary'?
  tasks.sts.kind: is required but missing; one of classification, binary, regression
  tasks.other.range: the range must rise, got [5, 0]
  tasks.other.dev: input should be less than 1, got 1.5
  trunks.pairs.kind: got 'siamse', expected one of KINDS. Did you mean 'siamese'?
  trunks.sentiment.kernel: 4 is even, so the text would change its length; take 3 or 5
  stages.0.name: string should match pattern '^[A-Za-z0-9_-]+$', got 'one two'
  stages.0.schedule: got 'proportionl', expected one of SCHEDULES. Did you mean 'proportional'?
  stages.0.weighting.0: got 'inverse', expected one of none, fixed, inverse_size, learned. Did you mean 'inverse_size'?
  stages.0.stop.patience: input should be greater than or equal to 1, got 0
  stages.0.stop.max_epoch: unknown key. Did you mean 'max_epochs'?
  stages.1.schedule_options.alpha: input should be less than or equal to 1, got 2.0
  stages.1.schedule_options.every_task: unknown key. Known keys: alpha, steps_per_epoch.
  stages.1.regularisers.0.kind: got 'smothness', expected one of REGULARISERS. Did you mean 'smoothness'?
  stages.1.regularisers.1.weight: input should be greater than or equal to 0, got -1
  stages.1.regularisers.1.preset: got 'papr', expected one of wang, paper, mtdnn, exact, cheap. Did you mean 'paper'?
  stages.1.regularisers.1.radius: input should be greater than 0, got 0
  stages.1.regularisers.1.norm: got 3, expected one of inf, 2.
  stages.1.regularisers.1.layer: got 'midle', expected the number of a layer from 0 on, or 'middle'
  stages.1.regularisers.1.stepsize: unknown key. Did you mean 'step_size'?
  stages.1.regularisers.2.kind: is required but missing; one of REGULARISERS
  stages.1.learning_rate.encoder: input should be greater than 0, got 0
  stages.1.learning_rate.trunk: unknown key. Did you mean 'trunks'?
  stages.1.gradient_clip: got true, expected a number, or false for none
  runtime.device: string should match pattern '^(auto|cpu|cuda(:\\d+)?)$', got 'gpu'
  nmae: unknown key. Did you mean 'name'?"""


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(MISTAKES)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    unions = {"KINDS": TrunkOptions, "SCHEDULES": ScheduleOptions, "REGULARISERS": RegulariserOptions}
    said = SAID
    for word, union in unions.items():
        said = said.replace(word, ", ".join(_kinds(union)))
    assert str(caught.value) == f"{path}: the experiment cannot be run:\n{said}"
    assert len(caught.value.problems) == 33


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {}}, "tasks: dictionary should have at least 1 item after validation, not 0, got {}"),
        ({"tasks": 3}, "tasks: must be a table, got 3"),
        ({"tasks": {"sst": 3}}, "tasks.sst: must be a table, got 3"),
        ({"stages": []}, "stages: tuple should have at least 1 item after validation, not 0, got []"),
        ({"stages": {"name": "x"}}, "stages: must be a list, got {'name': 'x'}"),
        (
            {"tasks": {"sst": {**SST, "labels": ["a", "b", "a"]}}},
            "tasks.sst.labels: labels must differ, got a, b, a",
        ),
        (
            {"tasks": {"sst": {**SST, "range": [0, 5]}}},
            "tasks.sst.range: unknown key. Known keys: class_weights, dev, kind, label, labels, loss_weight, "
            "max_train_rows, metric, on_bad_row, temperature, test, text, train, trunk.",
        ),
        (
            {"tasks": {"sst": {**SST, "class_weights": "balnced"}}},
            'tasks.sst.class_weights: got \'balnced\', expected "balanced", "none" or a table such as { rare = 3.0 }',
        ),
        (
            {"tasks": {"sst": {**SST, "class_weights": {}}}},
            'tasks.sst.class_weights: got {}, expected "balanced", "none" or a table such as { rare = 3.0 }',
        ),
        *(
            (
                {"tasks": {"sst": {**SST, "class_weights": {"a": 1, "b": weight}}}},
                f"tasks.sst.class_weights: the weight of 'b' is {weight!r}, expected a positive number",
            )
            for weight in (0, -1.5, math.inf, math.nan, True, "2", None)
        ),
        (
            {"tasks": {"sts": {**STS, "class_weights": "balanced"}}},
            "tasks.sts.class_weights: unknown key. Did you mean 'loss_weight'?",
        ),
        (
            {"stages": [{"schedule_options": {"alpha": 1}}]},
            "stages.0.schedule_options.alpha: unknown key. There are none to set here; remove it.",
        ),
        (
            {"stages": [{"schedule_options": {"kind": "temperature"}}]},
            "stages.0: schedule_options.kind is 'temperature', but schedule is 'proportional'; set schedule alone and "
            "leave out schedule_options.kind",
        ),
    ],
)
def test_a_table_of_the_wrong_form_is_refused(changes: dict[str, Any], said: str) -> None:
    assert refusal(**changes) == [said]


CROSSED = [
    (
        {"tasks": {"sst": {**SST, "labels": ["low", "high"], "class_weights": {"hgih": 2, "low": 1}}}},
        "tasks.sst.class_weights: there is no label 'hgih' (labels: low, high). Did you mean 'high'?",
    ),
    (
        {"tasks": {"sts": {**STS, "text": ["a", "a"]}}},
        "tasks.sts.text: names column 'a' twice; a pair needs two columns",
    ),
    (
        {"tasks": {"sst": {**SST, "text": "x", "label": "x"}}},
        "tasks.sst.label: 'x' is a text column too; name the column of the answers",
    ),
    (
        {
            "tasks": {"sst": {**SST, "trunk": "mine"}, "b": {**SST, "trunk": "mein"}},
            "trunks": {"mein": {"kind": "mean"}},
        },
        "tasks.sst.trunk: there is no [trunks.mine] (defined: mein). Did you mean 'mein'?",
    ),
    (
        {
            "tasks": {"sst": {**SST, "trunk": "both"}, "sts": {**STS, "trunk": "both"}},
            "trunks": {"both": {"kind": "mean"}},
        },
        "tasks.sts.trunk: a 'mean' trunk reads one text column, but tasks.sts.text names 2",
    ),
    (
        {
            "tasks": {"sst": {**SST, "trunk": "both"}, "sts": {**STS, "trunk": "both"}},
            "trunks": {"both": {"kind": "joint"}},
        },
        "tasks.sst.trunk: a 'joint' trunk reads two text columns, but tasks.sst.text names 1",
    ),
    ({"trunks": {"idle": {"kind": "mean"}}}, "trunks.idle: no task uses this trunk; remove it or name it in a task"),
    (
        {"tasks": {"sst": SST, "b": {**SST, "trunk": "sst"}}, "trunks": {"sst": {"kind": "mean"}}},
        "trunks.sst: has the name of task 'sst', which uses a trunk of its own; set tasks.sst.trunk",
    ),
    (
        {"tasks": {"sst": {**SST, "loss_weight": 2}}},
        'tasks.sst.loss_weight: is read only by weighting "fixed", which no stage uses',
    ),
    (
        {"stages": [{"name": "a"}, {"name": "a"}]},
        "stages.1.name: 'a' is the name of another stage; names must differ",
    ),
    (
        {"stages": [{"tasks": ["sts"], "stop": {"metric": "sts"}}]},
        "stages.0.tasks: there is no task 'sts' (tasks: sst). Did you mean 'sst'?",
    ),
    ({"stages": [{"tasks": ["sst", "sst"]}]}, "stages.0.tasks: a task stands twice in sst, sst"),
    (
        {"stages": [{"stop": {"metric": "accuracy"}}]},
        "stages.0.stop.metric: got 'accuracy', expected one of score, plain_mean, sst, sst.accuracy, sst.macro_f1",
    ),
    (
        {"stages": [{"stop": {"per_task": True}}]},
        "stages.0.stop.per_task: without `stop.patience` each task leaves a state of its own, but encoder, trunks may be "
        "shared; set `stop.patience`, or train lora, adapters and outputs alone",
    ),
    (
        {"stages": [{"weighting": ["fixed", "fixed"]}]},
        "stages.0.weighting: a weighting stands twice in fixed, fixed",
    ),
    (
        {"stages": [{"train": ["output"]}]},
        "stages.0.train: nothing is called 'output' here; known: encoder, encoder.embeddings, encoder.layers.A-B, "
        "trunks, outputs, lora, adapters, trunks.sst, outputs.sst, lora.sst, adapters.sst. Did you mean 'outputs'?",
    ),
    (
        {"stages": [{"train": ["encoder.layers.5-2"]}]},
        "stages.0.train: 'encoder.layers.5-2' names no layers; write encoder.layers.2-5",
    ),
    *(
        (
            {"stages": [{"regularisers": [{"kind": "r3f"}, {"kind": "vat", "name": name}]}]},
            f"stages.0.regularisers.1.name: {said}",
        )
        for name, said in {
            "r3f": "'r3f' is the name of another regulariser of this stage; names must differ, and the default is the kind",
            "task": "'task' is the name of a part that every loss has (task, unweighted, weight); choose another",
            "weight": "'weight' is the name of a part that every loss has (task, unweighted, weight); choose another",
            "unweighted": "'unweighted' is the name of a part that every loss has (task, unweighted, weight); "
            "choose another",
        }.items()
    ),
    (
        {
            "tasks": {"sst": SST, "b": SST},
            "stages": [{"tasks": "b", "regularisers": [{"kind": "r3f", "tasks": "sst"}]}],
        },
        "stages.0.regularisers.0.tasks: this stage has no task 'sst' (its tasks: b).",
    ),
    (
        {"stages": [{"regularisers": [{"kind": "proximal", "tasks": ["stt"]}]}]},
        "stages.0.regularisers.0.tasks: this stage has no task 'stt' (its tasks: sst). Did you mean 'sst'?",
    ),
    (
        {"stages": [{"regularisers": [{"kind": "freelb", "tasks": ["sst", "sst"]}]}]},
        "stages.0.regularisers.0.tasks: a task stands twice in sst, sst",
    ),
    *(
        (
            {"stages": [{"regularisers": [{"kind": "smoothness", "radius": 0.5, **keys}]}]},
            'stages.0.regularisers.0.radius: got 0.5, but projection = "unit" rescales to norm 1 and reads no radius; '
            'remove it, or set projection = "ball" or "sphere"',
        )
        for keys in (
            {"preset": "mtdnn"},
            {"preset": "paper", "projection": "unit", "noise": 1, "step_size": 1},
            {"projection": "unit", "noise": 1, "step_size": 0.5},
        )
    ),
    *(
        (
            {**table(**changes), "stages": [{**stage, "regularisers": [{"kind": "r_drop"}]}]},
            "stages.0.regularisers.0: there is no dropout in anything that it looks at, so its two passes never differ; "
            "give the encoder or a trunk that trains dropout, or remove it",
        )
        for changes, stage in (
            ({}, {"train": "outputs"}),
            ({}, {"train": ["outputs", "lora", "adapters"]}),
            (
                {"tasks": {"sts": {**STS, "trunk": "x"}}, "trunks": {"x": {"kind": "cosine"}}},
                {"train": ["outputs", "trunks"]},
            ),
            (
                {
                    "encoder": {"dropout": 0, "attention_dropout": 0},
                    "tasks": {"sst": {**SST, "trunk": "x"}},
                    "trunks": {"x": {"kind": "mean", "dropout": 0}},
                },
                {},
            ),
        )
    ),
]


@pytest.mark.parametrize(("changes", "said"), CROSSED)
def test_tables_that_contradict_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    assert refusal(**changes) == [said]


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, {"train": ["outputs", "trunks"]}),
        ({}, {"train": ["outputs", "trunks.sst"]}),
        ({}, {"train": ["outputs", "encoder.layers.1"]}),
        ({"encoder": {"dropout": 0}}, {"train": ["outputs", "encoder"]}),
        ({}, {"train": "outputs", "frozen_dropout": True}),
        ({"lora": {"dropout": 0.1}}, {"train": ["outputs", "lora"]}),
        (
            {"tasks": {"sst": SST, "b": {**SST, "trunk": "x"}}, "trunks": {"x": {"kind": "mean", "dropout": 0}}},
            {"train": ["outputs", "trunks"]},
        ),
    ],
)
def test_r_drop_may_look_wherever_there_is_some_dropout(changes: dict[str, Any], stage: dict[str, Any]) -> None:
    found = load(table(**changes, stages=[{**stage, "regularisers": [{"kind": "r_drop"}]}])).experiment
    assert found.stages[0].regularisers == (RDropOptions(),)


@pytest.mark.parametrize(
    "selector", ["encoder.layers.²", "encoder.layers.1-", "encoder.layers.-1", "encoder.layers.A-B"]
)
def test_a_selection_of_layers_that_cannot_be_read_is_refused(selector: str) -> None:
    assert refusal(stages=[{"train": [selector]}])[0].startswith(
        f"stages.0.train: nothing is called {selector!r} here;"
    )


def test_a_trunk_may_be_shared_by_tasks_of_one_input() -> None:
    tasks = {"a": {**STS, "trunk": "pairs"}, "b": {**STS, "trunk": "pairs"}}
    assert load(table(tasks=tasks, trunks={"pairs": {"kind": "joint"}})).experiment.trunks == {"pairs": JointTrunk()}


def test_a_run_without_hold_out_is_older_than_the_key() -> None:
    experiment = load(table()).experiment
    assert experiment.hold_out == "stratified"
    written = tomllib.loads(to_toml(experiment))
    assert written["hold_out"] == "stratified"
    assert validated_run(written, "").hold_out == "stratified"
    del written["hold_out"]
    assert validated_run(written, "").hold_out == "hashed"
    assert load(written).experiment.hold_out == "stratified"
    assert load(tomllib.loads(to_toml(validated_run(written, "")))).experiment.hold_out == "hashed"


def test_overrides_reach_every_value(tmp_path: Path) -> None:
    path = tmp_path / "full.toml"
    path.write_text(FULL)
    given_values = {
        "seed": ("3", lambda e: e.seed, 3),
        "encoder.name": ("folder/of mine", lambda e: e.encoder.name, "folder/of mine"),
        "encoder.dropout": ("0.2", lambda e: e.encoder.dropout, 0.2),
        "tasks.sst.labels": ('["a", "b"]', lambda e: e.tasks["sst"].labels, ("a", "b")),
        "tasks.quora.text.1": ("question", lambda e: e.tasks["quora"].text, ("sentence1", "question")),
        "tasks.sts.dev": ("sts.tsv", lambda e: e.tasks["sts"].dev, "sts.tsv"),
        "trunks.pairs.kind": ("cosine", lambda e: e.trunks["pairs"], CosineTrunk()),
        "stages.0.stop.max_epochs": ("2", lambda e: e.stages[0].stop.max_epochs, 2),
        "stages.0.learning_rate.trunks": (
            "1e-3",
            lambda e: e.stages[0].learning_rate,
            Rates(encoder=3e-5, outputs=3e-5, adaptations=3e-5),
        ),
        "stages.1.learning_rate": ("1e-4", lambda e: e.stages[1].learning_rate.encoder, 1e-4),
        "stages.1.gradient_clip": ("false", lambda e: e.stages[1].gradient_clip, None),
        "stages.0.regularisers.0.weight": ("3", lambda e: e.stages[0].regularisers[0].weight, 3.0),
        "stages.0.regularisers.0.norm": ("inf", lambda e: e.stages[0].regularisers[0].norm, "inf"),
        "stages.0.regularisers.0.layer": ("1", lambda e: e.stages[0].regularisers[0].layer, 1),
        "stages.0.regularisers.0.preset": ("wang", lambda e: e.stages[0].regularisers[0].projection, "sphere"),
        "stages.0.regularisers.1.second_loss": ("false", lambda e: e.stages[0].regularisers[1].second_loss, False),
        "stages.1.regularisers": ('[{kind = "vat"}]', lambda e: e.stages[1].regularisers, (VatOptions(),)),
        "stages.1.name": ('"last"', lambda e: e.stages[1].name, "last"),
        "stages.1.from": ("together", lambda e: e.stages[1].begins_from, "together"),
        "lora.targets": ("key", lambda e: e.lora.targets, ("key",)),
        "runtime.threads": ("1", lambda e: e.runtime.threads, 1),
    }
    found = load(path, overrides=[f"{key}={value[0]}" for key, value in given_values.items()]).experiment
    for key, (_, get, expected) in given_values.items():
        assert get(found) == expected, key


def test_an_override_of_the_first_stage_needs_no_stages_in_the_file() -> None:
    overrides = ["stages.0.stop.max_epochs=2", "stages.0.learning_rate.encoder=1e-4"]
    found = load(table(recipe="none"), overrides=overrides).experiment
    assert load(table(), overrides=[*overrides, "recipe=none"]).experiment == found
    with pytest.raises(
        UsageError, match=r"--set stages.0.stop.max_epochs=2: this file has no \[\[stages\]\], the recipe"
    ):
        load(table(), overrides=overrides)
    assert (found.stages[0].stop.max_epochs, found.stages[0].name) == (2, "train")
    assert found.stages[0].learning_rate == Rates(encoder=1e-4)


def test_overrides_leave_the_given_table_as_it_was() -> None:
    given_table = table(stages=[{"stop": {"max_epochs": 5}}])
    before = deepcopy(given_table)
    load(given_table, overrides=["stages.0.stop.max_epochs=2", "tasks.sst.label=x"], seed=9)
    assert given_table == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "--set seed: expected PATH=VALUE, for example stages.0.stop.max_epochs=2"),
        ("=3", "--set =3: expected PATH=VALUE, for example stages.0.stop.max_epochs=2"),
        ("a..b=3", "--set a..b=3: expected PATH=VALUE, for example stages.0.stop.max_epochs=2"),
        ("stages.3.name=a", "--set stages.3.name=a: stages has entries 0 to 0, got '3'"),
        ("stages.-1.name=a", "--set stages.-1.name=a: stages has entries 0 to 0, got '-1'"),
        ("stages.x=a", "--set stages.x=a: stages has entries 0 to 0, got 'x'"),
        ("stages.²=a", "--set stages.²=a: stages has entries 0 to 0, got '²'"),
        (
            "stages.0.regularisers.0.weight=3",
            "--set stages.0.regularisers.0.weight=3: stages.0.regularisers has no entries; give it as a whole: "
            "--set 'stages.0.regularisers=[...]'",
        ),
        ("tasks.sst.text.0=a", "--set tasks.sst.text.0=a: tasks.sst.text is a value, not a table"),
        ("tasks.sst.text.a.b=a", "--set tasks.sst.text.a.b=a: tasks.sst.text is a value, not a table"),
    ],
)
def test_an_override_that_cannot_be_placed_is_refused(override: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(table(stages=[{}]), overrides=[override])
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encodr.name=x", "encodr: unknown key. Did you mean 'encoder'?"),
        ("stages.0.batchsize=8", "stages.0.batchsize: unknown key. Did you mean 'batch_size'?"),
        ("seed.x=3", "seed: input should be a valid integer, got {'x': 3}"),
        ("tasks.sts.label=x", "tasks.sts.kind: is required but missing; one of classification, binary, regression"),
    ],
)
def test_an_override_of_an_unknown_path_is_told_like_an_unknown_key(override: str, said: str) -> None:
    assert refusal(override, recipe="none") == [said]


def test_the_schedule_chooses_its_options() -> None:
    stage = stage_of(schedule="temperature", schedule_options={"alpha": 0})
    assert stage.schedule_options == TemperatureOptions(alpha=0)
    assert stage_of(schedule="annealed").schedule_options.kind == "annealed"
    assert stage_of(schedule="temperature", schedule_options={"kind": "temperature"}).schedule == "temperature"


def _kinds(union: Any) -> list[str]:
    classes = typing.get_args(typing.get_args(union)[0])
    return [typing.get_args(cls.model_fields["kind"].annotation)[0] for cls in classes]


def _values(annotation: Any) -> list[Any]:
    """The values that an annotation lists: literals anywhere in it, and both truth values."""
    if annotation is bool:
        return [False, True]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [value for part in typing.get_args(annotation) for value in _values(part)]
    return []


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """All option classes below an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _classes(field.annotation)
    for part in typing.get_args(annotation):
        yield from _classes(part)


def _listed_values() -> list[tuple[type[BaseModel], str, Any]]:
    return [
        (cls, name, value)
        for cls in dict.fromkeys(_classes(Experiment))
        for name, field in cls.model_fields.items()
        for value in _values(field.annotation)
    ]


def _with_task(cls: Any, keys: dict[str, Any]) -> dict[str, Any]:
    return {"tasks": {"t": {**SST, "kind": _kind(cls), **keys}}}


def _with_trunk(cls: Any, keys: dict[str, Any]) -> dict[str, Any]:
    text = "a" if cls.input == "single" else ["a", "b"]
    return {"tasks": {"t": {**SST, "text": text, "trunk": "x"}}, "trunks": {"x": {"kind": _kind(cls), **keys}}}


def _with_schedule(cls: Any, keys: dict[str, Any]) -> dict[str, Any]:
    return table(stages=[{"schedule": _kind(cls), "schedule_options": keys}])


def _with_regulariser(cls: Any, keys: dict[str, Any]) -> dict[str, Any]:
    return table(stages=[{"regularisers": [{"kind": _kind(cls), **keys}]}])


def _kind(cls: Any) -> str:
    return str(typing.get_args(cls.model_fields["kind"].annotation)[0])


PLACES: dict[Any, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    Experiment: lambda _, keys: table(**keys),
    EncoderOptions: lambda _, keys: table(encoder=keys),
    Stage: lambda _, keys: table(stages=[keys]),
    Stop: lambda _, keys: table(stages=[{"stop": {**({} if "keep" in keys else {"patience": 1}), **keys}}]),
    RuntimeOptions: lambda _, keys: table(runtime=keys),
    LoraOptions: lambda _, keys: table(lora=keys, stages=[{"train": ["lora", "outputs"]}]),
}
PLACES |= dict.fromkeys(typing.get_args(typing.get_args(Task)[0]), _with_task)
PLACES |= dict.fromkeys(typing.get_args(typing.get_args(TrunkOptions)[0]), _with_trunk)
PLACES |= dict.fromkeys(typing.get_args(typing.get_args(ScheduleOptions)[0]), _with_schedule)
PLACES |= dict.fromkeys(typing.get_args(typing.get_args(RegulariserOptions)[0]), _with_regulariser)


def _found(options: Any, cls: type[BaseModel]) -> Iterator[Any]:
    """All options of a class inside an experiment."""
    if isinstance(options, cls):
        yield options
    parts = [getattr(options, name) for name in type(options).model_fields] if isinstance(options, BaseModel) else []
    parts += list(options.values()) if isinstance(options, dict) else []
    parts += list(options) if isinstance(options, tuple) else []
    for part in parts:
        yield from _found(part, cls)


def test_every_listed_value_of_every_option_loads_and_comes_back_from_toml() -> None:
    listed = [item for item in _listed_values() if item[:2] != (Stage, "gradient_clip")]
    for cls, name, value in listed:
        experiment = load(PLACES[cls](cls, {name: value})).experiment
        got = getattr(next(_found(experiment, cls)), name)
        assert got == value or got == (value,), f"{cls.__name__}.{name} = {value!r}"
        assert load(tomllib.loads(to_toml(experiment))).experiment == experiment
    assert len(listed) >= 100
    assert {cls for cls, _, _ in listed} == set(PLACES)


RATE = st.floats(1e-7, 1.0)
SCHEDULES = st.one_of(
    st.fixed_dictionaries({"schedule": st.just("proportional")}),
    st.fixed_dictionaries(
        {
            "schedule": st.just("round_robin"),
            "schedule_options": st.fixed_dictionaries(
                {},
                optional={"until": st.sampled_from(["first_exhausted", "all_exhausted"]), "every_task": st.just(False)},
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "schedule": st.just("temperature"),
            "schedule_options": st.fixed_dictionaries(
                {"alpha": st.floats(0, 1)}, optional={"steps_per_epoch": st.integers(1, 10**6)}
            ),
        }
    ),
)
REGULARISERS = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("smoothness"), "preset": st.sampled_from(sorted(PRESETS))},
        optional={
            "step_size": st.floats(1e-9, 1e3),
            "norm": st.sampled_from(["2", "inf", 2, math.inf]),
            "layer": st.one_of(st.integers(0, 11), st.just("middle")),
            "fraction": st.floats(0, 1, exclude_min=True),
            "tasks": st.sampled_from(["t", ["t"]]),
        },
    ),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["proximal", "r_drop", "r3f", "vat", "freelb"])},
        optional={
            "weight": st.floats(0, 1e6),
            "every": st.integers(1, 99),
            "name": st.sampled_from(["a", "b-1", "C_"]),
        },
    ),
)


def _alive(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage without rates of what it does not train: these are refused."""
    rates, read = stage.get("learning_rate"), Stage.model_validate(stage).rates_read
    kept = {part: rate for part, rate in rates.items() if part in read} if isinstance(rates, dict) else {}
    return {**stage, "learning_rate": kept} if isinstance(rates, dict) else stage


STAGES = st.builds(
    lambda schedule, rest: _alive({**schedule, **rest}),
    SCHEDULES,
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.one_of(RATE, st.fixed_dictionaries({"encoder": RATE}, optional={"outputs": RATE})),
            "weighting": st.one_of(st.just("none"), st.permutations(["fixed", "inverse_size", "learned"])),
            "gradient_clip": st.one_of(st.just(False), st.floats(1e-3, 1e3)),
            "warmup": st.floats(0, 1, exclude_max=True),
            "batch_size": st.integers(1, 4096),
            "train": st.sampled_from(["encoder", ["encoder.layers.0", "lora.t"], ["adapters", "trunks"]]),
            "from": st.just("start"),
            "regularisers": st.lists(REGULARISERS, max_size=3, unique_by=lambda keys: keys.get("name", keys["kind"])),
            "stop": st.fixed_dictionaries({"threshold": st.floats(0, 1)}, optional={"patience": st.integers(1, 9)}),
        },
    ),
)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
TASKS = st.fixed_dictionaries(
    {"kind": st.just("classification"), "text": TEXT, "label": TEXT, "train": TEXT},
    optional={
        "labels": st.lists(st.one_of(st.integers(), TEXT.map(lambda text: f"x{text}y")), min_size=2, unique_by=str),
        "dev": st.one_of(TEXT, st.floats(0.01, 0.99)),
        "max_train_rows": st.integers(1, 10**9),
        "class_weights": st.sampled_from(["balanced", "none"]),
    },
).filter(lambda task: task["text"] != task["label"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), task=TASKS, stages=st.lists(STAGES, min_size=1, max_size=3))
def test_an_experiment_comes_back_from_its_toml(seed: int, task: dict[str, Any], stages: list[dict[str, Any]]) -> None:
    experiment = load({"seed": seed, "tasks": {"t": task}, "stages": stages}).experiment
    assert load(tomllib.loads(to_toml(experiment))).experiment == experiment
    assert load(experiment).experiment == experiment


def test_noise_and_step_follow_a_radius_where_they_are_not_given() -> None:
    def smoothness(**keys: Any) -> tuple[float, float, float]:
        found = stage_of(regularisers=[{"kind": "smoothness", **keys}]).regularisers[0]
        return found.radius, found.noise, found.step_size

    assert smoothness() == (RADIUS, RADIUS, 5 * RADIUS)
    assert smoothness(preset="cheap", radius=1) == (1.0, 1.0, 5.0)
    assert smoothness(radius=0.5, noise=0.1) == (0.5, 0.1, 2.5)
    assert smoothness(radius=0.5, projection="unit") == (0.5, 0.5, 2.5)
    assert smoothness(preset="paper") == smoothness(preset="wang") == (1e-5, 1e-5, 1e-3)
    assert smoothness(preset="paper", radius=0.5) == (0.5, 0.5, 50.0)
    assert smoothness(preset="mtdnn") == (1.0, 1e-5, 1e-3)  # its projection reads no radius


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_the_keys_that_are_not_given_and_comes_back_from_toml_written_out(preset: str) -> None:
    own = {"weight": 3.0, "step_size": 0.5, "per": "text"}
    found = stage_of(regularisers=[{"kind": "smoothness", "preset": preset, **own}]).regularisers[0]
    usual = SmoothnessOptions().model_dump()
    lengths = {key: getattr(found, key) for key in ("radius", "noise")}
    assert found.model_dump() == {**usual, **lengths, **PRESETS[preset], **own, "preset": preset}
    experiment = load(table(stages=[{"regularisers": [{"kind": "smoothness", "preset": preset, **own}]}])).experiment
    written = tomllib.loads(to_toml(experiment))
    assert set(written["stages"][0]["regularisers"][0]) == set(usual) - {"name", "tasks", "precision"}
    assert load(written).experiment == experiment


def test_another_preset_for_keys_that_are_all_written_out_is_refused() -> None:
    given_table = table(stages=[{"regularisers": [{"kind": "smoothness", "preset": "wang"}]}])
    override = "stages.0.regularisers.0.preset=paper"
    assert load(given_table, overrides=[override]).experiment.stages[0].regularisers[0].projection == "ball"
    with pytest.raises(UsageError) as caught:
        load(load(given_table).experiment, overrides=[override])
    assert str(caught.value) == (
        f"--set {override}: stages.0.regularisers.0 writes out every key that a preset stands for, so another one would "
        "change nothing; override these keys, or give it as a whole: "
        """--set 'stages.0.regularisers.0={kind="smoothness", preset=...}'"""
    )
    whole = """stages.0.regularisers.0={kind="smoothness", preset="paper"}"""
    found = load(load(given_table).experiment, overrides=[whole]).experiment.stages[0].regularisers[0]
    assert found == SmoothnessOptions(preset="paper")


def test_the_presets_are_those_that_an_experiment_can_name() -> None:
    names = _values(SmoothnessOptions.model_fields["preset"].annotation)
    assert names == list(PRESETS) == list(catalogue()["presets"])
    assert SmoothnessOptions() == SmoothnessOptions(preset="exact")
    assert PRESETS["exact"] == {}
    keys = {key for preset in PRESETS.values() for key in preset}
    assert keys
    assert keys <= set(SmoothnessOptions.model_fields) - set(RegulariserBase.model_fields) | {"fraction", "every"}


def test_every_packaged_experiment_loads_and_resolves() -> None:
    files = sorted(PACKAGED.rglob("*.toml"))
    assert len(files) >= 1
    assert sorted(find(name) for name in packaged_names()) == files
    for name in packaged_names():
        experiment = load(name).experiment
        assert experiment.name == name
        assert load(tomllib.loads(to_toml(experiment))).experiment == experiment
        sources = [getattr(task, split) for task in experiment.tasks.values() for split in ("train", "dev", "test")]
        packaged = [text.removeprefix("packaged:") for text in sources if str(text).startswith("packaged:")]
        assert [text for text in packaged if not (PACKAGED / text).is_file()] == [], name


def test_the_name_of_a_file_becomes_the_name_of_its_experiment(tmp_path: Path) -> None:
    for stem, name in (("first", "first"), ("erster größer (2)", "erster-gr--er--2-"), ("x" * 150, "x" * 120)):
        (tmp_path / f"{stem}.toml").write_text(to_toml(load(table()).experiment).replace('name = "experiment"\n', ""))
        assert load(tmp_path / f"{stem}.toml").experiment.name == name


def test_data_paths_begin_at_the_data_folder_else_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.toml").write_text(to_toml(load(table()).experiment))
    monkeypatch.chdir(tmp_path)
    assert load("deep/a.toml").base == tmp_path / "deep"
    assert load("deep/a.toml", data_dir="deep/..").base == tmp_path
    assert load(table()).base == tmp_path
    with pytest.raises(UsageError, match=r"^--data-dir nowhere: there is no such folder$"):
        load("deep/a.toml", data_dir="nowhere")


@pytest.mark.parametrize("name", ["score", "plain_mean"])
def test_a_task_cannot_have_the_name_of_a_mean(name: str) -> None:
    task = {"kind": "binary", "text": "text", "label": "label", "train": "train.tsv"}
    with pytest.raises(ConfigurationError, match=f"tasks.{name}: a task cannot be called '{name}'"):
        load({"tasks": {name: task}})


def test_every_task_needs_whole_rounds() -> None:
    task = {"kind": "binary", "text": "text", "label": "label", "train": "train.tsv"}
    stage = {"schedule": "round_robin", "schedule_options": {"until": "all_exhausted", "every_task": True}}
    with pytest.raises(
        ConfigurationError, match=r'stages.0.schedule_options: every_task needs until = "first_exhausted"'
    ):
        load({"tasks": {"a": task}, "stages": [stage]})
