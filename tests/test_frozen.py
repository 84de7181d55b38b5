"""A stage on a frozen encoder: kept states answer as the encoder does, are computed once, and are never stale."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from typer.testing import CliRunner

import smoothtune
from smoothtune.cli.main import app
from smoothtune.config.experiment import trunk_options
from smoothtune.data.batching import Examples
from smoothtune.data.tokenising import load_tokenizer, tokenise
from smoothtune.errors import UsageError
from smoothtune.files import WriteError
from smoothtune.inference.answering import answer_examples
from smoothtune.objective.look import Look
from smoothtune.training.stage_events import StageEpoch
from smoothtune.types import Needs
from smoothtune.workflow import frozen
from smoothtune.workflow.frozen import Encoding, FrozenStates, StateKeeper, StateNeeds, fingerprint
from smoothtune.workflow.train import Event
from tests.small_data import SINGLE, TASKS, Always, Prepared, prepare, table
from tests.test_house import TRUNKS

HEADS: dict[str, Any] = {"train": ["trunks", "outputs"]}
POOLED = {"cls", "mean", "siamese", "cosine", "joint"}


@dataclass
class Kept:
    """Examples with states, and what was told of them."""

    prepared: Prepared
    cache: Path
    dtype: torch.dtype = torch.float32
    told: list[Encoding | FrozenStates] = field(default_factory=list)

    @property
    def state_needs(self) -> dict[str, StateNeeds]:
        experiment = self.prepared.experiment
        options = {name: trunk_options(name, task, experiment.trunks) for name, task in experiment.tasks.items()}
        return {name: (option.needs, option.reads) for name, option in options.items()}

    @property
    def needs(self) -> dict[str, Needs]:
        experiment = self.prepared.experiment
        return {name: trunk_options(name, task, experiment.trunks).needs for name, task in experiment.tasks.items()}

    def give(self, *, at_most: int | None = None) -> list[dict[str, Examples]]:
        keeper = StateKeeper(self.prepared.model.encoder, self.dtype, self.cache, "heads", self.told.append)
        return keeper.give([self.prepared.train, self.prepared.dev], self.state_needs, at_most=at_most)

    @property
    def outcome(self) -> FrozenStates:
        last = self.told[-1]
        assert isinstance(last, FrozenStates)
        return last


class NoEncoder:
    """Inside, the encoder must not run."""

    def __init__(self, prepared: Prepared) -> None:
        self._encoder = prepared.model.encoder

    def __enter__(self) -> None:
        self._handle = self._encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder ran"))

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def prepared_with(trunk: Mapping[str, Any], encoder: Path, data: Path, cache: Path, **stage: Any) -> Prepared:
    wanted = table(encoder, trunk=trunk, **{**HEADS, "batch_size": 16, **stage})
    return prepare(wanted, data, cache, ["mood"] if trunk["kind"] in SINGLE else ["same", "near"])


@pytest.fixture
def prepared(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    return prepare(table(tiny_encoder, **HEADS), small_data, shared_cache)


def test_the_kinds_that_need_no_more_than_a_pooled_state_say_so(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    found = {
        kind: set(Kept(prepared_with({"kind": kind}, tiny_encoder, small_data, shared_cache), Path()).needs.values())
        for kind in TRUNKS
    }
    assert {kind for kind, needs in found.items() if needs != {"states"}} == POOLED
    pooled = {"cls": "cls", "mean": "mean", "siamese": "mean", "cosine": "mean", "joint": "cls"}
    assert {kind: found[kind] for kind in pooled} == {kind: {needs} for kind, needs in pooled.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [None, (0, 2)])
@pytest.mark.parametrize("kind", list(TRUNKS))
def test_kept_states_answer_as_the_encoder_does(
    kind: str, layers: Any, dtype: torch.dtype, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    several = {} if layers is None else {"layers": list(layers)}
    if several and kind not in ("cls", "mean", "siamese", "joint"):
        return  # the other trunks read the last layer alone
    prepared = prepared_with({"kind": kind, **TRUNKS[kind], **several}, tiny_encoder, small_data, shared_cache)
    given = Kept(prepared, tmp_path, dtype).give()
    close = 1e-5 if dtype == torch.float32 else 3e-2
    for split, kept in zip((prepared.train, prepared.dev), given, strict=True):
        for task, examples in split.items():
            expected = answer_examples(prepared.model, examples, dtype=dtype, batch_size=8)
            with NoEncoder(prepared):
                found = answer_examples(prepared.model, kept[task], dtype=dtype, batch_size=8)
            np.testing.assert_allclose(found, expected, rtol=close, atol=close)
            assert expected.std() > 0


@pytest.mark.parametrize("kind", list(TRUNKS))
def test_training_on_kept_states_is_training_on_the_encoder(
    kind: str, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    trunk = {"kind": kind, **TRUNKS[kind], **({} if kind == "cosine" else {"dropout": 0.3})}
    losses = []
    for keep in (False, True):
        prepared = prepared_with(trunk, tiny_encoder, small_data, shared_cache, learning_rate=1e-3)
        if keep:
            prepared.train, prepared.dev = Kept(prepared, tmp_path).give()
            with NoEncoder(prepared):
                events = list(prepared.run().events())
        else:
            events = list(prepared.run().events())
        epochs = [event.report for event in events if isinstance(event, StageEpoch)]
        losses.append([part["unweighted"] for epoch in epochs for part in epoch.losses.values()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(set(losses[0])) == len(losses[0]) >= 2


def test_states_are_computed_once(prepared: Prepared, tmp_path: Path) -> None:
    kept = Kept(prepared, tmp_path)
    first = kept.give()
    assert kept.outcome.obstacle is None
    assert kept.outcome.encoded == kept.outcome.texts == 60 + 2 * 2 * 60
    assert kept.outcome.bytes == kept.outcome.texts * 16 * 4
    assert [event.done for event in kept.told[:-1] if isinstance(event, Encoding)][-1] == 300
    with NoEncoder(prepared):
        second = kept.give()
    assert (kept.outcome.encoded, kept.outcome.texts) == (0, 300)
    for before, after in zip(first, second, strict=True):
        assert list(before) == list(TASKS)
        for task, examples in before.items():
            assert len(examples.states) == len(examples.columns)
            for one, other in zip(examples.states, after[task].states, strict=True):
                assert torch.equal(one.values, other.values)


def test_another_trunk_of_the_same_need_finds_them(
    tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    for kind, encoded in (("siamese", True), ("cosine", False), ("pwim_dcnn", True), ("pwim_resnet", False)):
        kept = Kept(prepared_with({"kind": kind}, tiny_encoder, small_data, shared_cache), tmp_path)
        kept.give()
        assert bool(kept.outcome.encoded) == encoded, kind


def test_a_changed_weight_is_another_encoder(prepared: Prepared, tmp_path: Path) -> None:
    kept = Kept(prepared, tmp_path)
    before, name = kept.give()[0]["mood"], fingerprint(prepared.model.encoder)
    with torch.no_grad():
        prepared.model.encoder.get_parameter("layers.0.up.bias")[3] += 0.1
    assert fingerprint(prepared.model.encoder) != name
    after = kept.give()[0]["mood"]
    assert kept.outcome.encoded == 300
    assert not torch.equal(before.states[0].values, after.states[0].values)


def test_another_dtype_is_another_store(prepared: Prepared, tmp_path: Path) -> None:
    Kept(prepared, tmp_path).give()
    other = Kept(prepared, tmp_path, torch.bfloat16)
    other.give()
    assert other.outcome.encoded == 300


def test_with_other_kernels_it_is_another_encoder(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = prepared.model.encoder
    first = fingerprint(encoder)
    assert fingerprint(encoder) == first
    monkeypatch.setattr(frozen, "told", lambda device: f"off: no compiler, {device}")
    assert fingerprint(encoder) != first


@pytest.mark.parametrize("change", ["max_length", "tokenizer"])
def test_other_tokens_are_other_texts(prepared: Prepared, tiny_encoder: Path, tmp_path: Path, change: str) -> None:
    kept = Kept(prepared, tmp_path)
    kept.give()
    tokenizer = load_tokenizer(tiny_encoder)
    if change == "tokenizer":
        tokenizer.normalizer = None
    rows = Rows([("The cat and the dog sat on the mat",), ("A film",)])
    lengths = {"max_length": (24, 5), "tokenizer": (24, 24)}[change]
    stores = []
    for number, length in enumerate(lengths):
        plain = tokenizer if number or change == "max_length" else load_tokenizer(tiny_encoder)
        columns = tokenise(rows, plain, reads="single", max_length=length, cache=tmp_path)
        examples = replace(prepared.train["mood"], columns=columns, chosen=np.arange(2, dtype=np.int32))
        prepared.train = prepared.dev = {"mood": examples}
        kept.give()
        stores.append(kept.outcome.encoded)
    assert stores == [2, 2]
    kept.give()
    assert kept.outcome.encoded == 0


class Rows:
    """A text table in memory."""

    def __init__(self, rows: list[tuple[str, ...]]) -> None:
        self.rows = rows

    @property
    def content_key(self) -> str:
        return repr(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, size: int) -> Iterator[list[tuple[str, ...]]]:
        yield self.rows


def test_the_encoder_computes_them_without_dropout_and_gets_its_mode_back(
    tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    wanted = table(tiny_encoder, **HEADS)
    wanted["encoder"] |= {"dropout": 0.5, "attention_dropout": 0.5}
    prepared = prepare(wanted, small_data, shared_cache)
    prepared.model.train()
    prepared.model.encoder.embeddings.eval()
    modes = [part.training for part in prepared.model.modules()]
    kept = Kept(prepared, tmp_path).give()[0]["mood"]
    assert [part.training for part in prepared.model.modules()] == modes
    expected = answer_examples(prepared.model, prepared.train["mood"], dtype=torch.float32)
    found = answer_examples(prepared.model, kept, dtype=torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_short_stage_does_not_encode_more_than_it_reads(prepared: Prepared, tmp_path: Path) -> None:
    kept = Kept(prepared, tmp_path)
    given = kept.give(at_most=119)
    assert kept.outcome.obstacle == "the stage reads at most 119 of its 120 training rows"
    assert (kept.outcome.encoded, kept.outcome.short) == (0, True)
    assert list(tmp_path.iterdir()) == []
    assert given == [prepared.train, prepared.dev]
    kept.give(at_most=120)
    kept.give(at_most=1)
    assert (kept.outcome.obstacle, kept.outcome.short) == (None, False)


def test_without_room_the_examples_stay_as_they_are(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise WriteError("there is no room")

    monkeypatch.setattr(frozen, "make_room", refuse)
    kept = Kept(prepared, tmp_path)
    assert kept.give() == [prepared.train, prepared.dev]
    assert (kept.outcome.obstacle, kept.outcome.encoded, kept.outcome.short) == ("there is no room", 0, False)


def test_states_that_another_process_removes_meanwhile_are_told(prepared: Prepared, tmp_path: Path) -> None:
    kept, removed = Kept(prepared, tmp_path), []

    def listen(event: Encoding | FrozenStates) -> None:
        kept.told.append(event)
        if not removed:
            removed.extend(tmp_path.glob("states-*"))
            for folder in removed:
                shutil.rmtree(folder)

    keeper = StateKeeper(prepared.model.encoder, torch.float32, tmp_path, "heads", listen)
    assert keeper.give([prepared.train, prepared.dev], kept.state_needs) == [prepared.train, prepared.dev]
    what = "has gone: another process made room for its own; free space or choose another cache with XDG_CACHE_HOME"
    assert kept.outcome.obstacle == f"{removed[0]}: {what}"
    assert (kept.outcome.encoded, kept.outcome.short) == (0, False)
    kept.give()
    assert (kept.outcome.obstacle, kept.outcome.encoded) == (None, 40)


def test_kept_states_can_be_neither_perturbed_nor_asked_for_inputs(prepared: Prepared, tmp_path: Path) -> None:
    batch = Kept(prepared, tmp_path).give()[0]["near"].batch(np.arange(4))
    for options in ({"keep_inputs": True}, {"perturbation": torch.zeros(8, 1, 16)}):
        with pytest.raises(ValueError, match="task near: kept states have no layer inputs"):
            prepared.model(batch, **options)


class Still(Always):
    """A regulariser that is 0 everywhere."""

    name = "still"

    def __call__(self, look: Look) -> tuple[torch.Tensor, dict[str, float]]:
        return 0.0 * look.logits.sum(), {}


def test_regularisers_are_refused_before_the_first_step_where_the_encoder_does_not_run(
    prepared: Prepared, tmp_path: Path
) -> None:
    train = Kept(prepared, tmp_path).give()[0]
    with pytest.raises(UsageError) as caught:
        prepared.run(regularisers=[Still()], examples={**train, "same": prepared.train["same"]})
    assert str(caught.value) == (
        "stage together: regularisers (still) look at the encoder, but the examples of mood, near carry its kept states; "
        'give examples without states (runtime.frozen_states = "off" makes none), or no regularisers'
    )
    assert len(list(prepared.run(regularisers=[Still()]).events())) > 2
    assert len(list(prepared.run(examples=train).events())) > 2


def run(folder: Path, encoder: Path, data: Path, name: str, **changes: Any) -> tuple[list[Event], dict[str, Any]]:
    """A run of the small experiment; what was told, and its run.json."""
    told: list[Event] = []
    wanted = {**table(encoder, **{**HEADS, **changes.pop("stage", {})}), **changes}
    smoothtune.train(wanted, data_dir=data, run_dir=folder / name, listen=told.append)
    return told, json.loads((folder / name / "run.json").read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_keeps_them_and_says_so(tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path) -> None:
    told, facts = run(tmp_path, tiny_encoder, small_data, "kept")
    (outcome,) = [event for event in told if isinstance(event, FrozenStates)]
    assert facts["frozen"] == [
        {
            "stage": "together",
            "texts": 300,
            "encoded": 300,
            "bytes": 19200,
            "seconds": outcome.seconds,
            "obstacle": None,
            "short": False,
        }
    ]
    assert len(list((own_cache / "smoothtune").glob("states-*"))) == 10
    _, facts = run(tmp_path, tiny_encoder, small_data, "again")
    assert facts["frozen"][0]["encoded"] == 0
    _, facts = run(tmp_path, tiny_encoder, small_data, "off", runtime={"frozen_states": "off"})
    assert facts["frozen"] == []
    kept, again, off = (metrics(tmp_path / name) for name in ("kept", "again", "off"))
    for one, same, plain in zip(kept, again, off, strict=True):
        assert one["losses"] == same["losses"]
        for task in TASKS:
            assert one["losses"][task]["task"] == pytest.approx(plain["losses"][task]["task"], rel=1e-4)
        assert one["score"] == pytest.approx(plain["score"], abs=1e-3)


@pytest.mark.parametrize("stage", [{"train": ["encoder", "outputs"]}, {"train": ["encoder.layers.1", "outputs"]}])
def test_an_encoder_that_trains_keeps_nothing(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path, stage: dict[str, Any]
) -> None:
    _, facts = run(tmp_path, tiny_encoder, small_data, "run", stage=stage)
    assert facts["frozen"] == []
    assert list((own_cache / "smoothtune").glob("states-*")) == []


def test_the_states_are_those_of_the_encoder_that_the_stage_begins_with(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    first = table(tiny_encoder, name="first")["stages"][0]
    stages = [first, {**first, **HEADS, "name": "second"}]
    _, facts = run(tmp_path, tiny_encoder, small_data, "heads")
    _, both = run(tmp_path, tiny_encoder, small_data, "both", stages=stages)
    assert (facts["frozen"][0]["encoded"], both["frozen"][0]["encoded"]) == (300, 300)
    assert [row["stage"] for row in both["frozen"]] == ["second"]


def test_ctrl_c_while_encoding_leaves_nothing_half_written(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Encoding) and event.done > 100:
            raise KeyboardInterrupt

    found = smoothtune.train(table(tiny_encoder, **HEADS), data_dir=small_data, run_dir=tmp_path / "run", listen=stop)
    assert found.interrupted
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    left = [path.name for path in (own_cache / "smoothtune").glob("*states-*")]
    assert 0 < len(left) < 10
    assert not any(name.endswith(".part") for name in left)
    _, facts = run(tmp_path, tiny_encoder, small_data, "again")
    assert 0 < facts["frozen"][0]["encoded"] < 300


def experiment_file(folder: Path, wanted: Mapping[str, Any]) -> str:
    path = folder / "small.toml"
    path.write_text(tomli_w.dumps(wanted), encoding="utf-8")
    return str(path)


def test_the_command_says_that_the_encoder_is_at_rest_and_what_is_kept(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    file, data = experiment_file(tmp_path, table(tiny_encoder, **HEADS)), ["--data-dir", str(small_data)]
    first = CliRunner().invoke(app, ["train", file, *data, "--run-dir", str(tmp_path / "first")]).stderr
    rest = "stage together: nothing in the encoder trains, so there is no dropout in it"
    assert f"{rest}; its states of 300 texts are kept, 0.0 MB in the cache: 300 encoded in " in first
    assert "note: stage together: nothing in the encoder trains, so there is no dropout in it" in first
    again = CliRunner().invoke(app, ["train", file, *data, "--run-dir", str(tmp_path / "again")]).stderr
    assert f"{rest}; its states of 300 texts are kept, 0.0 MB in the cache: all were there already" in again
    checked = CliRunner().invoke(app, ["check", file, *data]).stderr
    assert "note: stage together: nothing in the encoder trains" in checked


def test_the_command_does_not_warn_of_a_stage_that_is_too_short(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    file = experiment_file(tmp_path, table(tiny_encoder, **HEADS, stop={"max_epochs": 1, "max_steps": 2}))
    arguments = ["train", file, "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0
    reads = "the stage reads at most 16 of its 120 training rows"
    assert f"so there is no dropout in it; each step computes its states: {reads}" in answer.stderr
    assert "warning: stage" not in answer.stderr
    assert not list((own_cache / "smoothtune").glob("*states-*"))


def test_the_command_warns_and_goes_on_where_the_disk_is_full(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    file = experiment_file(tmp_path, table(tiny_encoder, **HEADS))
    arguments = ["train", file, "--data-dir", str(small_data), "--run-dir", str(tmp_path / "run")]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0
    assert "warning: stage together: nothing in the encoder trains" in answer.stderr
    assert "its states cannot be kept, so each step computes them: " in answer.stderr
    assert "cannot be written: No space left on device; free space or choose another cache" in answer.stderr
    assert not list((own_cache / "smoothtune").glob("*states-*"))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
