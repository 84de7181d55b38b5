"""Model folders and checkpoints of strangers: every defect is named, nothing is run, and no memory is asked for first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from smoothtune.bounded import UnreadableError, check_plain, parse_json, parse_toml, read_text
from smoothtune.config.encoder import EncoderOptions
from smoothtune.data.tokenising import encode, flattened, load_tokenizer
from smoothtune.errors import ModelFileError
from smoothtune.inference.model import Model
from smoothtune.nn.pretrained import build_encoder, find_checkpoint, load_encoder, read_architecture
from tests.adapted import write
from tests.fuzz.watch import fresh_peak, peak
from tests.small_data import prepare, table
from tests.tiny import write_bert

HUGE = 10**12


@pytest.fixture(scope="module")
def whole(tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(prepare(table(tiny_encoder), small_data, shared_cache), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def sets(name: str, **values: Any) -> Callable[[Path], object]:
    """Other values in a JSON file."""

    def harm(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")

    return harm


def replaces(name: str, old: str, new: str) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return harm


def holds(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def links(name: str, to: str) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return harm


def piped(name: str) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return harm


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return harm


def cast(state: dict[str, torch.Tensor]) -> None:
    state["outputs.mood.linear.bias"] = state["outputs.mood.linear.bias"].to(torch.int64)


def poison(state: dict[str, torch.Tensor]) -> None:
    state["outputs.mood.linear.bias"][0] = float("nan")


LABELS = {"mood": [str(number) for number in range(1_200_000)]}
LINK = "is a link that leads out of its folder; copy the file itself there"
PIPE = "is a pipe, a device or a folder; put a plain file there"
ROOM = "a model of these sizes is larger than the weights that are there for it"

# What is done to the folder, which file is named, and what is said of it.
HARM: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "deep JSON": (holds("labels.json", b"[" * 100_000), "labels.json", "is nested more than 64 levels deep"),
    "deeper than 64": (
        holds("encoder.json", b'{"a":' * 65 + b"1" + b"}" * 65),
        "encoder.json",
        "is nested more than 64 levels deep",
    ),
    "deep TOML": (holds("config.toml", b"a = " + b"[" * 100_000), "config.toml", "is nested more than 64 levels deep"),
    "endless key": (
        holds("config.toml", b"a." * 9_999 + b"b = 1"),
        "config.toml",
        "line 1 has more than 200 full stops",
    ),
    "endless number": (
        replaces("config.toml", "max_length = 24", "max_length = 0x" + "f" * 5000),
        "config.toml",
        "holds a whole number of more than 64 bits",
    ),
    "digits": (holds("labels.json", b'{"a": ' + b"9" * 5000 + b"}"), "labels.json", "cannot be read as JSON: "),
    "NaN": (sets("encoder.json", layer_norm_eps=float("nan")), "encoder.json", "NaN is no JSON number"),
    "key twice": (
        holds("labels.json", b'{"mood": ["a", "b"], "mood": ["c", "d"]}'),
        "labels.json",
        "the key 'mood' stands twice in one table; remove one",
    ),
    "half a character": (
        holds("labels.json", rb'{"mood": ["\ud800", "b", "c"]}'),
        "labels.json",
        "holds half of a surrogate pair; write whole characters",
    ),
    "not UTF-8": (holds("labels.json", b'{"a": "\xff"}'), "labels.json", "cannot be read as JSON: 'utf-8' codec"),
    "large file": (holds("labels.json", b" " * ((1 << 24) + 1)), "labels.json", "is larger than 16 MiB"),
    "linked labels": (links("labels.json", "/etc/hostname"), "labels.json", LINK),
    "linked weights": (links("model.safetensors", "../model.safetensors"), "model.safetensors", LINK),
    "linked tokenizer": (links("tokenizer.json", "../../tokenizer.json"), "tokenizer.json", LINK),
    "linked device": (links("provenance.json", "/dev/zero"), "provenance.json", LINK),
    "link in a circle": (links("labels.json", "labels.json"), "labels.json", "Too many levels of symbolic links"),
    "pipe of labels": (piped("labels.json"), "labels.json", PIPE),
    "pipe of weights": (piped("model.safetensors"), "model.safetensors", PIPE),
    "pipe of tokens": (piped("tokenizer.json"), "tokenizer.json", PIPE),
    "vocabulary": (
        sets("encoder.json", vocab_size=HUGE),
        "encoder.json",
        f"vocab_size is {HUGE}, expected a whole number",
    ),
    "large vocabulary": (sets("encoder.json", vocab_size=1 << 24), "encoder.json", ROOM),
    "width": (sets("encoder.json", hidden_size=1 << 16), "encoder.json", ROOM),
    "inner width": (sets("encoder.json", intermediate_size=1 << 20), "encoder.json", ROOM),
    "layers": (
        sets("encoder.json", num_hidden_layers=10**9),
        "encoder.json",
        "num_hidden_layers is 1000000000, expected",
    ),
    "more layers": (sets("encoder.json", num_hidden_layers=900), "encoder.json", ROOM),
    "no heads": (sets("encoder.json", num_attention_heads=0), "encoder.json", "num_attention_heads is 0, expected"),
    "true heads": (
        sets("encoder.json", num_attention_heads=True),
        "encoder.json",
        "num_attention_heads is True, expected",
    ),
    "rate": (
        sets("encoder.json", hidden_dropout_prob=7),
        "encoder.json",
        "hidden_dropout_prob is 7, expected a number",
    ),
    "padding": (sets("encoder.json", pad_token_id="x"), "encoder.json", "pad_token_id is 'x', expected a token id"),
    "activation": (sets("encoder.json", hidden_act=["gelu"]), "encoder.json", "no encoder can be built from it"),
    "foreign sizes": (
        sets("encoder.json", model_type="roberta", max_position_embeddings=HUGE),
        "encoder.json",
        f"max_position_embeddings is {HUGE}, more than any encoder has; take another checkpoint",
    ),
    "foreign layers": (
        sets("encoder.json", model_type="roberta", num_hidden_layers=10**6),
        "encoder.json",
        "num_hidden_layers is 1000000, more than any encoder has; take another checkpoint",
    ),
    "foreign width": (sets("encoder.json", model_type="roberta", hidden_size=1 << 20), "encoder.json", ROOM),
    "foreign types": (sets("encoder.json", model_type="roberta", hidden_size="wide"), "encoder.json", "hidden_size"),
    "model type": (
        sets("encoder.json", model_type=["bert"]),
        "encoder.json",
        "transformers has no model_type ['bert']",
    ),
    "quantised": (
        sets("encoder.json", model_type="roberta", quantization_config={"quant_method": "gptq"}),
        "encoder.json",
        "quantization_config describes another model or a quantised one; choose an encoder that stands alone",
    ),
    "labels without end": (sets("labels.json", **LABELS), "config.toml", "no model can be built from it: " + ROOM),
    "rank": (
        replaces("config.toml", "[trunks.pair]", "[lora.mood]\nrank = 2000\n[trunks.pair]"),
        "config.toml",
        "lora.mood.rank: input should be less than or equal to 1024, got 2000",
    ),
    "one text too few": (
        replaces("config.toml", '"first",\n    "second",\n', '"first",\n'),
        "config.toml",
        "task same has 1 texts, but its trunk is for separate input",
    ),
    "no task": (
        holds("config.toml", b"format = 1\n[encoder]\n[tasks]\n[trunks]\n"),
        "config.toml",
        "has no tasks; copy the folder again",
    ),
    "cast": (weights(cast), "model.safetensors", "outputs.mood.linear.bias is torch.int64, expected torch.float32"),
    "poison": (
        weights(poison),
        "model.safetensors",
        "holds numbers that are not finite, in 'outputs.mood.linear.bias'",
    ),
    "header without end": (
        holds("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
        "model.safetensors",
        "is not a whole safetensors file",
    ),
    "header beyond the file": (
        holds(
            "model.safetensors",
            (62).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[99999],"data_offsets":[0,399996]}}',
        ),
        "model.safetensors",
        "is not a whole safetensors file",
    ),
    "deep tokenizer": (
        holds("tokenizer.json", b"[" * 9_999),
        "tokenizer.json",
        "is not a tokenizer file (",
    ),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_what_strangers_do_to_a_model_folder_is_named(folder: Path, harm: tuple[Any, str, str]) -> None:
    change, name, text = harm
    change(folder)
    fresh_peak()
    before = peak()
    with pytest.raises(ModelFileError) as caught:
        Model.load(folder, device="cpu")
    assert str(caught.value).startswith(f"{folder / name}: ")
    assert text in str(caught.value)
    assert len(str(caught.value)) < 1_500
    assert peak() - before < 600  # MiB; most are texts of some megabytes as Python values


def test_links_inside_the_folder_and_of_the_hubs_cache_are_followed(whole: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in whole.iterdir():
        shutil.copy(file, blobs / f"of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/of-{file.name}")
    assert Model.load(snapshot, device="cpu").tasks == ("mood", "same", "near")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "real").write_text("text")
    (tmp_path / "a" / "other").symlink_to("real")
    assert read_text(tmp_path / "a" / "other", inside=tmp_path / "a") == "text"
    with pytest.raises(UnreadableError, match="is a link that leads out of its folder"):
        check_plain(snapshot / "config.toml", inside=tmp_path / "a")


def test_a_file_may_be_as_large_as_is_said_and_a_byte_more_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_text(tmp_path / "a", most=5) == "12345"
    with pytest.raises(UnreadableError, match=r"is larger than .* MiB, the most that is read"):
        read_text(tmp_path / "a", most=4)


def test_what_is_well_formed_is_read_as_it_stands() -> None:
    assert parse_json('{"a": [NaN, 1e5, -9223372036854775808, "é", true]}')["a"][1:] == [1e5, -(1 << 63), "é", True]
    nested = "[" * 64 + "]" * 64
    assert parse_json(nested) == json.loads(nested)
    assert parse_toml("# " + "." * 999 + "\na.b = [1.5, 'x']") == {"a": {"b": [1.5, "x"]}}
    with pytest.raises(UnreadableError, match="Infinity is no JSON number"):
        parse_json("[Infinity]", finite=True)


TOKENIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "panic at loading": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "is not a tokenizer file (Precompiled",
    ),
    "bad expression": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}},
        "is not a tokenizer file (Oniguruma error: end pattern with unmatched parenthesis",
    ),
    "growing": (
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 20}] * 6,
            }
        },
        "its normalizer makes texts more than 100 times as long",
    ),
    "growing from nothing": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 200}},
        "its normalizer makes texts more than 100 times as long",
    ),
    "long words": (
        {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": HUGE}},
        "reads words of up to 1,000,000,000,000 characters, expected at most 1,000; lower max_input_chars_per_word",
    ),
}  # fmt: skip


def tokenizer_with(folder: Path, **parts: Any) -> Path:
    sets("tokenizer.json", **parts)(folder)
    return folder


@pytest.mark.parametrize("case", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_that_fail_or_never_end_are_refused(folder: Path, case: tuple[dict[str, Any], str]) -> None:
    parts, text = case
    with pytest.raises(ModelFileError) as caught:
        load_tokenizer(tokenizer_with(folder, **parts))
    assert str(caught.value).startswith(f"{folder / 'tokenizer.json'}: ")
    assert text in str(caught.value)


def test_a_tokenizer_that_replaces_as_published_ones_do_is_read(folder: Path) -> None:
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    parts = [
        spaces,
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    found = load_tokenizer(tokenizer_with(folder, normalizer={"type": "Sequence", "normalizers": parts}))
    assert found.normalizer.normalize_str("a   b") == "\u2581a\u2581b"


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "backtracking": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        "tokenizer: fails at these texts (Onig: Regex search error: retry-limit-in-match over); save it again",
    ),
    "no unknown": (
        {"model": {"type": "WordPiece", "vocab": {"x": 0}, "unk_token": "?", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100}},
        "tokenizer: fails at these texts (WordPiece error: Missing [UNK] token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING.values(), ids=FAILING)
def test_tokenizers_that_fail_at_a_text_are_told(folder: Path, case: tuple[dict[str, Any], str]) -> None:
    tokenizer = load_tokenizer(tokenizer_with(folder, post_processor=None, **case[0]))
    with pytest.raises(ModelFileError) as caught:
        encode(tokenizer, [("a" * 3000 + "b",)], "single", 24)
    assert str(caught.value).startswith(case[1])


def test_a_token_that_the_encoder_does_not_know_is_told(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    highest = len(vocabulary) + 3
    added = {"id": highest, "content": "star", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}  # fmt: skip
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["vocab"] = {
        ("star" if word == "star" else word): (highest if word == "star" else at) for word, at in vocabulary.items()
    }
    found = Model.load(tokenizer_with(folder, model=model, added_tokens=[added]), device="cpu", precision="float32")
    assert len(found.predict("mood", ["the cat"])) == 1
    with pytest.raises(ModelFileError) as caught:
        found.predict("mood", ["the cat", "a star"])
    assert str(caught.value) == (
        f"tokenizer: gives the token id {highest:,}, but the encoder knows {len(vocabulary):,} tokens; "
        "take the tokenizer.json that was saved with the model"
    )


def test_a_token_id_beyond_its_vocabulary_does_not_become_another_one() -> None:
    class Encoding:
        ids = (1, 4_294_967_295)

        def __len__(self) -> int:
            return 2

    with pytest.raises(
        ModelFileError, match=r"gives the token id 4,294,967,295, expected at most 65,535 by its vocabulary"
    ):
        flattened([Encoding()], np.uint16, joint=False)


CHECKPOINT: dict[str, tuple[dict[str, Any], str]] = {
    "sizes": ({"vocab_size": 1 << 23}, ROOM),
    "layers": (
        {"num_hidden_layers": 10**9},
        "num_hidden_layers is 1000000000, expected a whole number from 1 to 1,000",
    ),
    "heads": ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number"),
    "foreign": ({"model_type": "roberta", "num_attention_heads": 0}, "its values make no encoder ("),
    "foreign sizes": ({"model_type": "roberta", "vocab_size": 1 << 23}, ROOM),
}


@pytest.mark.parametrize("case", CHECKPOINT.values(), ids=CHECKPOINT)
def test_checkpoints_are_bounded_by_their_weights(tmp_path: Path, case: tuple[dict[str, Any], str]) -> None:
    folder = write_bert(tmp_path / "tiny")
    sets("config.json", **case[0])(folder)
    with pytest.raises(ModelFileError) as caught:
        load_encoder(folder, EncoderOptions())
    assert str(caught.value).startswith(f"{folder}: ")
    assert case[1] in str(caught.value)


def test_an_encoder_that_is_only_looked_at_ends_too(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "tiny")
    architecture = {**read_architecture(folder), "model_type": "roberta", "vocab_size": 1 << 24, "hidden_size": 1 << 24}
    with torch.device("meta"), pytest.raises(ModelFileError, match=ROOM):
        build_encoder(architecture, EncoderOptions())


def test_code_of_the_hub_is_not_asked_for(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "tiny")
    sets(
        "config.json",
        model_type="roberta",
        attn_implementation="kernels-community/anything",
        _attn_implementation="kernels-community/anything",
        auto_map={"AutoModel": "evil.Model"},
        num_labels=10**7,
    )(folder)
    encoder = build_encoder(read_architecture(folder), EncoderOptions())
    config = encoder.model.config
    assert config._attn_implementation in ("sdpa", "eager")
    assert config.num_labels == 2
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize("name", ["~nobody-at-all/x", "./a\0b", "a" * 5000])
def test_names_that_are_no_paths(name: str) -> None:
    with pytest.raises(ModelFileError, match=r"^encoder\.name: .* is not a folder; give a folder with config\.json"):
        find_checkpoint(EncoderOptions(name=name))


@pytest.mark.parametrize("to", ["/etc/passwd", "../config.json"])
def test_shards_are_files_of_the_folder(tmp_path: Path, to: str) -> None:
    folder = write_bert(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    (folder / "model-1.safetensors").symlink_to(to)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with pytest.raises(ModelFileError, match=r"index\.json: 'model-1\.safetensors' is not in the same folder"):
        load_encoder(folder, EncoderOptions())
