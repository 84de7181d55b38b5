"""The export for peft: what its own loader makes of the two folders, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoTokenizer,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.data.tokenising import encode
from smoothtune.errors import UsageError
from smoothtune.inference.model import Model
from smoothtune.integrations.peft import export
from smoothtune.nn.adaptation import Adaptation, Adaptations
from tests.adapted import adapted, stir, write
from tests.small_data import Prepared
from tests.tiny import WORDS

ALL = LoraOptions(rank=3, alpha=5.0, targets=("query", "key", "value", "output", "up", "down"), dropout=0.1)
LORA = {"mood": LoraOptions(), "near": ALL}
ADAPTERS = {"mood": AdapterOptions(size=4)}


def other_encoder(folder: Path, source: Path, family: str) -> Path:
    """A checkpoint of another family with the tokenizer of `source`."""
    vocabulary = len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    narrow = {"vocab_size": vocabulary, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0}
    config = {
        "roberta": lambda: RobertaConfig(**sizes),
        "electra": lambda: ElectraConfig(**sizes, embedding_size=8),
        "mpnet": lambda: MPNetConfig(**sizes),
        "distilbert": lambda: DistilBertConfig(**narrow, max_position_embeddings=64),
        "deberta": lambda: DebertaV2Config(
            **sizes, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, type_vocab_size=0
        ),
    }[family]()
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text((source / "tokenizer.json").read_text())
    return folder


@pytest.fixture(params=["native", "transformers", "roberta", "electra", "distilbert", "deberta", "mpnet"])
def prepared(
    request: pytest.FixtureRequest, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> Prepared:
    implementation, encoder = request.param, tiny_encoder
    if implementation not in ("native", "transformers"):
        encoder = other_encoder(tmp_path / "checkpoint", tiny_encoder, implementation)
        implementation = "transformers"
    made = adapted(encoder, small_data, shared_cache, implementation=implementation, lora=LORA, adapters=ADAPTERS)
    stir(made.model)
    return made


@pytest.mark.parametrize("task", ["mood", "near"])
def test_peft_loads_it_and_gives_the_same_token_states(prepared: Prepared, task: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = Model.load(write(prepared, tmp_path / "model", lora=LORA, adapters=ADAPTERS), device="cpu")
    done = export(model, task, tmp_path / "out")
    assert (done.encoder, done.lora) == (tmp_path / "out" / "encoder", tmp_path / "out" / "lora")
    assert done.without_adapters is (task == "mood")
    base = AutoModel.from_pretrained(done.encoder).eval()
    tokens = prepared.dev[task].batch(np.arange(8)).tokens
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.mask.long()}
    adaptation = Adaptation(model.network.lora[task])
    with torch.inference_mode():
        bare = base(**given).last_hidden_state
        found = peft.PeftModel.from_pretrained(base, done.lora).eval()(**given).last_hidden_state
        ours = model.network.encoder(tokens, adaptations=Adaptations.of([(len(tokens.mask), adaptation)])).states
    torch.testing.assert_close(found[tokens.mask], ours[tokens.mask], rtol=0, atol=1e-5)
    assert (found - bare)[tokens.mask].abs().max() > 1e-2


def test_the_tokenizer_gives_what_the_encoder_reads(prepared: Prepared, tmp_path: Path) -> None:
    model = Model.load(write(prepared, tmp_path / "model", lora=LORA, adapters=ADAPTERS), device="cpu")
    done = export(model, "near", tmp_path / "out")
    given = AutoTokenizer.from_pretrained(done.encoder)(["a cat", "a dog and a cat"], padding=True, return_tensors="pt")
    segments = model.network.encoder.architecture.get("type_vocab_size", 0) > 1
    assert set(given) == {"input_ids", "attention_mask", *(["token_type_ids"] if segments else [])}
    states = AutoModel.from_pretrained(done.encoder).eval()(**given).last_hidden_state
    assert states.shape == (2, 7, 16)


@pytest.fixture
def folder(tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path) -> Path:
    made = adapted(tiny_encoder, small_data, shared_cache, lora=LORA, adapters=ADAPTERS)
    return write(made, tmp_path / "model", lora=LORA, adapters=ADAPTERS)


@pytest.mark.parametrize("lowercase", [True, False])
def test_texts_become_the_ids_of_the_model_and_long_ones_are_cut(
    lowercase: bool, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    made = adapted(tiny_encoder, small_data, shared_cache, lora=LORA)
    assert made.tokenizer.count('"lowercase":true') == 1
    declared = Tokenizer.from_str(made.tokenizer.replace('"lowercase":true', f'"lowercase":{str(lowercase).lower()}'))
    declared.add_special_tokens(["[SEP]", "[PAD]"])
    made.tokenizer = declared.to_str()
    model = Model.load(write(made, tmp_path / "model", lora=LORA), device="cpu")
    theirs = AutoTokenizer.from_pretrained(export(model, "near", tmp_path / "out").encoder)
    pairs = [("The GREAT film!", "a [SEP] film"), ("the cat [PAD]", "Is it?"), (" ".join(WORDS), "A dog")]
    texts = [first for first, _ in pairs]
    (single,), (joint,) = (encode(model.tokenizer, pairs, reads, 24) for reads in ("single", "joint"))
    assert theirs(texts, truncation=True)["input_ids"] == [row.ids for row in single]
    assert theirs(*zip(*pairs, strict=True), truncation=True)["input_ids"] == [row.ids for row in joint]
    assert theirs(*zip(*pairs, strict=True), truncation=True)["token_type_ids"] == [row.type_ids for row in joint]
    assert (theirs.model_max_length, len(single[2].ids), len(joint[2].ids)) == (24, 24, 24)
    assert (theirs("The")["input_ids"] == theirs("the")["input_ids"]) is lowercase


def test_a_relative_export_is_found_from_any_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["export", str(folder), "--task", "near", "--to", "deep/out"])
    assert answer.exception is None, answer.exception
    assert (answer.exit_code, answer.stdout) == (0, "encoder\tdeep/out/encoder\nlora\tdeep/out/lora\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = peft.AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path / "deep" / "out" / "lora")
    assert [name for name, _ in found.named_parameters() if "lora_A" in name]


def test_the_files_of_an_export(folder: Path, tmp_path: Path) -> None:
    export(Model.load(folder, device="cpu"), "mood", tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "encoder/config.json",
        "encoder/model.safetensors",
        "encoder/tokenizer.json",
        "encoder/tokenizer_config.json",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "out" / "encoder" / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 24,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "split_special_tokens": True,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    config = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == ("LORA", 4, 4.0, 0.0)
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "encoder")
    assert config["target_modules"][:2] == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.value",
    ]
    state = load_file(tmp_path / "out" / "lora" / "adapter_model.safetensors")
    shapes = {tuple(part.shape) for name, part in state.items() if "lora_A" in name}
    assert (len(state), shapes) == (8, {(4, 16)})


def test_what_cannot_be_exported(folder: Path, tmp_path: Path) -> None:
    model = Model.load(folder, device="cpu")
    (tmp_path / "there").mkdir()
    for task, target, message in (
        ("same", "out", "export: task 'same' has no LoRA; tasks that have: mood, near"),
        ("moood", "out", "this model has no task 'moood'; its tasks: mood, same, near"),
        (
            "mood",
            "there",
            f"{tmp_path / 'there'}: exists already; an export never overwrites: remove it or give another folder",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            export(model, task, tmp_path / target)
        assert str(caught.value) == message
    with (
        model.merged("near"),
        pytest.raises(UsageError, match=r"^export: the LoRA of task 'near' is merged into the encoder; export outside"),
    ):
        export(model, "near", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_where_the_folders_are_and_what_is_not_in_them(folder: Path, tmp_path: Path) -> None:
    arguments = ["export", str(folder), "--task"]
    answer = CliRunner().invoke(app, [*arguments, "near", "--to", str(tmp_path / "near")])
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == f"encoder\t{tmp_path / 'near' / 'encoder'}\nlora\t{tmp_path / 'near' / 'lora'}\n"
    answer = CliRunner().invoke(app, [*arguments, "mood", "--to", str(tmp_path / "mood"), "--format", "peft"])
    assert answer.exit_code == 0
    assert answer.stderr == "the bottleneck adapters of mood are not in it: the layout of peft has no place for them\n"
    answer = CliRunner().invoke(app, [*arguments, "mood", "--to", str(tmp_path / "x"), "--format", "onnx"])
    assert isinstance(answer.exception, UsageError)
    assert str(answer.exception) == "--format: got 'onnx', expected peft"
