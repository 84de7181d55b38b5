"""The model folder: whatever is damaged is named, and an older folder is replaced whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smoothtune.config.experiment import ModelConfig
from smoothtune.config.tasks import shape_of
from smoothtune.errors import ModelFileError
from smoothtune.files import WriteError
from smoothtune.inference.model import Model
from smoothtune.nn import folder as folders
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.folder import read_model_folder, write_model_folder
from smoothtune.nn.model import Named
from tests.small_data import Prepared, changed, prepare, snapshot, table

FILES = {"config.toml", "encoder.json", "labels.json", "model.safetensors", "provenance.json", "tokenizer.json"}


@pytest.fixture
def prepared(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    return prepare(table(tiny_encoder, trunk={"kind": "pwim_dcnn", "depth": 2}), small_data, shared_cache)


def write(prepared: Prepared, folder: Path, **provenance: Any) -> None:
    experiment = prepared.experiment
    config = ModelConfig(
        encoder=experiment.encoder,
        tasks={name: shape_of(task) for name, task in experiment.tasks.items()},
        trunks=experiment.trunks,
    )
    write_model_folder(
        folder, prepared.model, config, prepared.labels, tokenizer=prepared.tokenizer, provenance=provenance
    )


@pytest.fixture
def folder(prepared: Prepared, tmp_path: Path) -> Path:
    write(prepared, tmp_path / "model", seed=3)
    return tmp_path / "model"


def test_all_files_are_there_and_come_back(prepared: Prepared, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    found = read_model_folder(folder)
    assert found.provenance == {"seed": 3}
    assert found.labels == {"mood": ("beast", "place", "sky"), "same": ("0", "1"), "near": None}
    assert not found.model.training
    assert not changed(found.model, snapshot(prepared.model))
    assert found.config.tasks == {name: shape_of(task) for name, task in prepared.experiment.tasks.items()}


def test_reading_draws_no_weights(folder: Path) -> None:
    before = torch.get_rng_state()
    read_model_folder(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_writing_again_gives_the_same_bytes(prepared: Prepared, folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in FILES}
    write(prepared, folder, seed=3)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", sorted(FILES - {"config.toml"}))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFileError) as error:
        Model.load(folder, device="cpu")
    assert str(error.value) == f"{folder / name}: is missing; the folder is not complete"


def test_a_folder_without_config_is_no_model_folder(folder: Path) -> None:
    (folder / "config.toml").unlink()
    with pytest.raises(ModelFileError) as error:
        read_model_folder(folder)
    wanted = f"{folder}: is not a model folder (it has no config.toml); give RUN/model or a run folder"
    assert str(error.value) == wanted


def test_a_folder_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as error:
        Model.load(tmp_path / "nope", device="cpu")
    assert str(error.value) == f"{tmp_path / 'nope'}: there is no such folder; give a run folder or a model folder"


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        path = folder / name
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return edited


def edit_json(name: str, **values: Any) -> Callable[[Path], None]:
    return edit(name, lambda text: json.dumps({**json.loads(text), **values}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def weight(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return edited


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "cut weights": (cut, "model.safetensors", "is not a whole safetensors file"),
    "no weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 0),
        "model.safetensors",
        "is not a whole safetensors file",
    ),
    "weight missing": (
        weight(lambda state: state.pop("outputs.mood.linear.weight")),
        "model.safetensors",
        "outputs.mood.linear.weight",
    ),
    "weight too many": (
        weight(lambda state: state.update(more=torch.zeros(1))),
        "model.safetensors",
        "more",
    ),
    "format": (
        edit("config.toml", lambda text: text.replace("format = 1", "format = 7")),
        "config.toml",
        "is of format 7, this smoothtune reads format 1; use the release that wrote it",
    ),
    "no format": (
        edit("config.toml", lambda text: text.replace("format = 1", "")),
        "config.toml",
        "is of format None",
    ),
    "broken config": (edit("config.toml", lambda text: text + "\n[["), "config.toml", "cannot be read as TOML"),
    "unknown key": (
        edit("config.toml", lambda text: text.replace("max_length", "max_lenght")),
        "config.toml",
        "encoder.max_lenght",
    ),
    "trunk gone": (
        edit("config.toml", lambda text: text.replace("[trunks.pair]", "[trunks.other]")),
        "config.toml",
        "a task names the trunk 'pair', which is not there",
    ),
    "labels no JSON": (edit("labels.json", lambda text: text[:-5]), "labels.json", "cannot be read as JSON"),
    "labels a list": (edit("labels.json", lambda _: "[]"), "labels.json", "holds no JSON object"),
    "no labels": (edit("labels.json", lambda _: "{}"), "labels.json", "task mood needs a list of at least two"),
    "one label": (edit_json("labels.json", mood=["sky"]), "labels.json", "got ['sky']"),
    "numbers": (edit_json("labels.json", mood=[1, 2, 3]), "labels.json", "got [1, 2, 3]"),
    "twice": (edit_json("labels.json", mood=["a", "a", "b"]), "labels.json", "at least two different labels"),
    "three of two": (
        edit_json("labels.json", same=["a", "b", "c"]),
        "labels.json",
        "task same needs a list of two different labels, got ['a', 'b', 'c']",
    ),
    "labels of another model": (
        edit_json("labels.json", mood=["a", "b"]),
        "model.safetensors",
        "does not fit config.toml, encoder.json and labels.json: size mismatch for outputs.mood.linear.weight",
    ),
    "encoder no JSON": (edit("encoder.json", lambda text: text[1:]), "encoder.json", "cannot be read as JSON"),
    "encoder of nothing": (edit("encoder.json", lambda _: "{}"), "encoder.json", "no encoder can be built from it"),
    "encoder of words": (
        edit_json("encoder.json", hidden_size="wide"),
        "encoder.json",
        "no encoder can be built from it",
    ),
    "encoder of another size": (
        edit_json("encoder.json", num_hidden_layers=1),
        "model.safetensors",
        "does not fit config.toml, encoder.json and labels.json",
    ),
    "provenance": (edit("provenance.json", lambda _: "null"), "provenance.json", "holds no JSON object"),
    "tokenizer": (edit("tokenizer.json", lambda text: text[:-9]), "tokenizer.json", "tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(folder: Path, damage: tuple[Callable[[Path], None], str, str]) -> None:
    harm, name, text = damage
    harm(folder)
    with pytest.raises(ModelFileError) as error:
        Model.load(folder, device="cpu")
    assert str(error.value).startswith(f"{folder / name}: ")
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_an_older_folder_stays_whole_when_writing_fails(
    prepared: Prepared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (folder / name).read_bytes() for name in FILES}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "save_tensors", full)
    with pytest.raises(WriteError) as error:
        write(prepared, folder, seed=4)
    wanted = f"{folder}: cannot be written: No space left on device; free space or choose another folder"
    assert str(error.value) == wanted
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_new_model_replaces_an_older_folder_whole(prepared: Prepared, folder: Path) -> None:
    (folder / "stale").write_text("of another release")
    with torch.no_grad():
        next(prepared.model.parameters()).add_(1)
    write(prepared, folder, seed=4)
    assert {path.name for path in folder.iterdir()} == FILES
    found = read_model_folder(folder)
    assert found.provenance == {"seed": 4}
    assert not changed(found.model, snapshot(prepared.model))


def test_tasks_may_have_any_name(tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder)
    wanted["tasks"] = {"type": wanted["tasks"]["mood"], "items": wanted["tasks"]["same"]}
    prepared = prepare(wanted, small_data, shared_cache, ["type", "items"])
    write(prepared, tmp_path / "model")
    assert not changed(read_model_folder(tmp_path / "model").model, snapshot(prepared.model))
    assert list(Named({"train": torch.nn.Linear(1, 1)})) == ["train"]


def test_every_dropout_has_a_place_of_its_own(prepared: Prepared) -> None:
    places = [module.place for module in prepared.model.modules() if isinstance(module, Dropout)]
    assert len(set(places)) == len(places) > 4
    assert "" not in places


def test_dropout_scales_what_it_keeps_and_rests_in_eval_mode() -> None:
    torch.manual_seed(0)
    dropout, ones = Dropout(0.25), torch.ones(40_000)
    kept = dropout(ones)
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert dropout.eval()(ones) is ones
    assert Dropout(0.0).train()(ones) is ones
    assert repr(dropout) == "Dropout(rate=0.25)"
