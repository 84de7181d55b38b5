"""Options that nothing reads, or that are of another type, are refused; what is written out of itself stays readable."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from smoothtune.config.loading import load, packaged_names, to_toml
from smoothtune.errors import ConfigurationError
from smoothtune.workflow.run import RunFiles, read_experiment

TASK = {"kind": "classification", "text": "s", "label": "l", "train": "sst.tsv"}


def table(*stages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"tasks": {"a": TASK, "b": TASK}, "stages": list(stages) or [{}], **keys}


def refusal(wanted: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(wanted)
    return [str(problem) for problem in caught.value.problems]


IDLE = 'is read only by stages that train it, and none does; add "{}" to a stage\'s `train`'


@pytest.mark.parametrize("part", ["lora", "adapters"])
@pytest.mark.parametrize("default", [False, True])
def test_options_of_an_adaptation_that_no_stage_trains_are_refused_at_default_values_too(
    part: str, default: bool
) -> None:
    values = {"lora": {"rank": 4 if default else 2}, "adapters": {"size": 64 if default else 8}}
    assert refusal(table(**{part: values[part]})) == [f"{part}: {IDLE.format(part)}"]


def test_an_experiment_writes_out_the_adaptations_that_a_stage_trains_alone() -> None:
    for train, written in (("outputs", set()), (["outputs", "lora.a"], {"lora"}), (["adapters"], {"adapters"})):
        experiment = load(table({"train": train})).experiment
        found = tomllib.loads(to_toml(experiment))
        assert {"lora", "adapters"} & set(found) == written
        assert load(found).experiment == experiment
    assert {"rank", "alpha", "targets", "dropout"} == set(
        tomllib.loads(to_toml(load(table({"train": "lora"})).experiment))["lora"]
    )


def test_a_run_that_writes_out_defaults_that_no_stage_reads_can_be_read(tmp_path: Path) -> None:
    experiment = load(table()).experiment
    RunFiles(tmp_path).write_experiment(experiment)
    file = tmp_path / "experiment.toml"
    bare = file.read_text(encoding="utf-8")
    assert read_experiment(tmp_path) == experiment
    idle = '\n[lora]\nrank = 4\nalpha = 4.0\ntargets = ["query", "value"]\ndropout = 0.0\n\n[adapters]\nsize = 64\n'
    file.write_text(bare + idle, encoding="utf-8")
    assert read_experiment(tmp_path) == experiment
    file.write_text(bare + "\n[lora]\nrank = 2\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="lora: is read only by stages that train it"):
        read_experiment(tmp_path)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            {"train": "outputs", "learning_rate": {"encoder": 1e-3, "outputs": 1e-3}},
            "learning_rate.encoder: is read only by a stage that trains something there, and this one trains outputs; "
            "remove it",
        ),
        (
            {"train": ["encoder", "outputs"], "learning_rate": {"adaptations": 1e-3}},
            "learning_rate.adaptations: is read only by a stage that trains something there, and this one trains "
            "encoder, outputs; remove it",
        ),
        (
            {"train": ["lora", "outputs"], "layer_decay": 0.5},
            "layer_decay: got 0.5, but this stage trains nothing in the encoder; remove it",
        ),
        ({"train": ["lora", "lora"]}, "train: 'lora' stands twice; remove it"),
        (
            {"train": ["encoder.layers.4-5", "encoder"]},
            "train: 'encoder.layers.4-5' is part of 'encoder', which stands there too; remove it",
        ),
        (
            {"train": ["outputs.a", "outputs"]},
            "train: 'outputs.a' is part of 'outputs', which stands there too; remove it",
        ),
        (
            {"train": ["encoder.layers.4", "encoder.layers.3-5"]},
            "train: 'encoder.layers.4' is part of 'encoder.layers.3-5', which stands there too; remove it",
        ),
        (
            {"train": ["encoder.layers.4", "encoder.layers.4-4"]},
            "train: 'encoder.layers.4-4' is part of 'encoder.layers.4', which stands there too; remove it",
        ),
        ({"train": []}, 'train: names nothing; name what learns, for example ["encoder", "trunks", "outputs"]'),
    ],
)
def test_keys_of_a_stage_that_change_nothing_are_refused(stage: dict[str, Any], said: str) -> None:
    assert refusal(table(stage)) == [f"stages.0.{said}"]


@pytest.mark.parametrize(
    "stage",
    [
        {"train": "outputs"},  # rates of the encoder are inherited
        {"train": "outputs", "learning_rate": 1e-3},
        {"train": ["lora", "outputs"], "learning_rate": {"adaptations": 1e-3}},
        {"train": ["encoder.embeddings", "outputs"], "learning_rate": {"encoder": 1e-3}, "layer_decay": 0.5},
        {"train": ["encoder.layers.0-1", "encoder.layers.1-2", "outputs"]},
        {"train": ["outputs.a", "outputs.b", "lora.a"]},
    ],
)
def test_a_stage_that_reads_its_keys_loads_and_comes_back_from_toml(stage: dict[str, Any]) -> None:
    experiment = load(table(stage)).experiment
    assert load(tomllib.loads(to_toml(experiment))).experiment == experiment


def test_one_rate_of_a_number_may_be_overridden_whatever_trains() -> None:
    wanted = table({"train": "outputs", "learning_rate": 1e-3})
    found = load(wanted, overrides=["stages.0.learning_rate.outputs=1e-4"]).experiment.stages[0].learning_rate
    assert (found.outputs, found.encoder) == (1e-4, 1e-3)


WHOLE, NUMBER, TRUTH = (f"input should be a valid {kind}" for kind in ("integer", "number", "boolean"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.rank=true", f"{WHOLE}, got True"),
        ('lora.rank="4"', f"{WHOLE}, got '4'"),
        ("lora.alpha=false", f"{NUMBER}, got False"),
        ("seed=true", f"{WHOLE}, got True"),
        ('stages.0.frozen_dropout="yes"', f"{TRUTH}, got 'yes'"),
        ("stages.0.frozen_dropout=1", f"{TRUTH}, got 1"),
        ('stages.0.warmup="0.1"', f"{NUMBER}, got '0.1'"),
        ('stages.0.gradient_clip="1"', f"{NUMBER}, got '1'"),
        ("stages.0.learning_rate.outputs=true", f"{NUMBER}, got True"),
        ("stages.0.stop.max_steps=true", f"{WHOLE}, got True"),
        ('stages.0.regularisers.0.weight="3"', f"{NUMBER}, got '3'"),
        ("stages.0.regularisers.0.every=true", f"{WHOLE}, got True"),
        ("runtime.threads=true", f"{WHOLE}, got True"),
        ("runtime.checkpoint_every.steps=true", f"{WHOLE}, got True"),
        ("encoder.dropout=true", f"{NUMBER}, got True"),
    ],
)
def test_what_is_no_number_or_truth_value_is_not_taken_for_one(override: str, said: str) -> None:
    wanted = table({"train": ["encoder", "outputs", "lora"], "regularisers": [{"kind": "r3f"}]})
    with pytest.raises(ConfigurationError) as caught:
        load(wanted, overrides=[override])
    assert [str(problem) for problem in caught.value.problems] == [f"{override.partition('=')[0]}: {said}"]


def test_whole_numbers_are_fractions_and_some_fractions_are_whole() -> None:
    overrides = [
        "stages.0.weight_decay=0",
        "stages.0.stop.max_steps=1e3",
        "tasks.a.dev=0.5",
        "stages.0.gradient_clip=1",
    ]
    stage = load(table({}), overrides=overrides).experiment.stages[0]
    assert (stage.weight_decay, stage.stop.max_steps, stage.gradient_clip) == (0.0, 1000, 1.0)


def test_no_packaged_experiment_has_a_dead_key() -> None:
    assert len([load(name) for name in packaged_names()]) >= 10
