"""What reads strangers' files: each with the folders it is begun from. A new reader is one more line of `TARGETS`.

Readers return where the files could be read, and raise a `SmoothtuneError` where they were refused.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from smoothtune.errors import DataError
from tests.fuzz.files import Files, read_files
from tests.fuzz.going_on import GoingOn, one_value_changed, with_sums
from tests.fuzz.mutations import mutated
from tests.small_data import prepare, table, write_data
from tests.tiny import write_bert, write_tokenizer

TEXTS = ["the cat is not bad", "rain and sun", "a" * 300]


class Target(NamedTuple):
    """`share` of all inputs goes to this one. `seeds` makes folders of valid files, given an empty one; `read` reads one.

    `mend` puts right what only says that something was changed, such as checksums, in half of the inputs; `change` makes an
    input of one of the seeds, given all of them.
    """

    share: float
    seeds: Callable[[Path], list[Files]]
    read: Callable[[Path], None]
    mend: Callable[[Files], Files] | None = None
    change: Callable[[Files, Sequence[Files], random.Random], Files] = mutated


def experiment_seeds(work: Path) -> list[Files]:
    """Packaged experiments, and one that has a bit of everything."""
    from smoothtune.config.loading import PACKAGED, load, to_toml

    packaged = sorted(PACKAGED.rglob("*.toml"))[:8]
    seeds: list[Files] = [{"experiment.toml": path.read_bytes()} for path in packaged]
    smooth = {"kind": "smoothness", "preset": "exact", "tasks": ["mood"]}
    whole = table(write_bert(work / "encoder"), regularisers=[smooth, {"kind": "proximal"}], train=["outputs", "lora"])
    seeds.append({"experiment.toml": to_toml(load(whole).experiment).encode()})
    return seeds


def read_experiment(folder: Path) -> None:
    """The experiment, written out and read again, and where its data are."""
    from smoothtune.config.loading import load, to_toml
    from smoothtune.data.source import resolve_source

    loaded = load(folder / "experiment.toml")
    again = folder.parent / "cache" / "again.toml"
    again.parent.mkdir(exist_ok=True)
    again.write_text(to_toml(loaded.experiment), encoding="utf-8")
    assert load(again, data_dir=folder).experiment == loaded.experiment
    for task in loaded.experiment.tasks.values():
        for text in (task.train, task.dev, task.test):
            if isinstance(text, str):
                with suppress(DataError):  # most seeds name data that are not here
                    resolve_source(text, folder)


def delimited_seeds(work: Path) -> list[Files]:
    """Rows with quotes, empty lines, a byte-order mark, Windows line ends, and many of them."""
    plain = b'id\ttext\tlabel\n1\tgood "film"\t1\n2\t"two\nlines"\t0\n\n3\tb\xc3\xa9\t\n4\t  \t1\n'
    many = b"text\tlabel\n" + b"".join(b"word %d\t%d\n" % (number, number % 2) for number in range(400))
    return [
        *({"rows.tsv": content} for content in (plain, b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"), many)),
        {"rows.csv": plain.replace(b"\t", b",")},
    ]


def jsonl_seeds(work: Path) -> list[Files]:
    """Rows with numbers, nothing, escapes and keys nobody asked for."""
    rows = [
        {"text": "good", "label": 1},
        {"label": 0.0, "text": "bad\u2028", "x": {"y": [1]}},
        {"text": "é", "label": None},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    return [{"rows.jsonl": lines.encode()}, {"rows.json": f"\ufeff{lines}\r\n\r\n{lines}\n".encode()}]


def parquet_seeds(work: Path) -> list[Files]:
    """Plain and dictionary pages, compressed or not, a column of dates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.table(
        {"text": ["good", "bad", "é"] * 40, "label": [1, 0, None] * 40, "when": pa.array([7] * 120, pa.date32())}
    )
    for number, ways in enumerate(({"compression": "none", "use_dictionary": False}, {"compression": "zstd"})):
        pq.write_table(rows, work / f"{number}.parquet", **ways)
    renamed = rows.rename_columns(["body", "number", "label"]).append_column("text", rows["text"].dictionary_encode())
    pq.write_table(renamed, work / "2.parquet", row_group_size=50)
    return [{"rows.parquet": (work / f"{number}.parquet").read_bytes()} for number in range(3)]


def saved_seeds(work: Path) -> list[Files]:
    """A data set with class labels, and one with splits."""
    import datasets

    labels = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    rows = datasets.Dataset.from_dict({"text": ["good", "bad", "é"], "label": [1, 0, 1]}, features=features)
    rows.save_to_disk(str(work / "one" / "rows"))
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(str(work / "two" / "rows"))
    return [read_files(work / "one"), read_files(work / "two")]


def read_rows(folder: Path) -> None:
    """All rows through the cache, by their own name or as the split `train`; bad rows are refused, or left out."""
    from smoothtune.data.checks import RowSpec
    from smoothtune.data.rows import prepare_rows
    from smoothtune.data.source import resolve_source

    found = sorted(path.name for path in folder.iterdir() if path.name.startswith("rows"))
    name = found[0] if found else "rows.tsv"
    if (folder / name / "dataset_dict.json").exists():
        name = f"{name}:train"
    spec = RowSpec(("text",), "label", "classification", on_bad_row="leave_out")
    rows = prepare_rows(spec, resolve_source(name, folder), cache=folder.parent / "cache", name="task")
    for chunk in rows.chunks(100):
        assert all(isinstance(text, str) and text.strip() for (text,) in chunk)
    assert len(rows.labels()) == len(rows.keys()) == len(rows)
    if rows.errors:
        raise DataError("refused", rows.problems())


def model_seeds(work: Path) -> list[Files]:
    """Model folders of BERT with three kinds of trunks, and LoRA and adapters; and of a RoBERTa of transformers."""
    from tests.adapted import ADAPTERS, LORA, adapted, write

    data, cache = write_data(work / "data"), work / "rows"
    encoders = {"bert": write_bert(work / "encoder"), "roberta": write_roberta(work / "other")}
    trunks = {"lstm": {"kind": "conv_bilstm"}, "pwim": {"kind": "pwim_dcnn", "depth": 2}}
    parts = {"lora": {"mood": LORA}, "adapters": {"near": ADAPTERS}}
    found = [write(adapted(encoders["bert"], data, cache, **parts), work / "adapted", **parts)]
    found += [
        write(prepare(table(encoders["bert"], trunk=trunk), data, cache), work / name) for name, trunk in trunks.items()
    ]
    found.append(write(prepare(table(encoders["roberta"]), data, cache), work / "wrapped"))
    return [read_files(folder) for folder in found]


def write_roberta(folder: Path) -> Path:
    """A tiny RoBERTa checkpoint."""
    from transformers import RobertaConfig, RobertaModel

    write_bert(folder)
    sizes = json.loads((folder / "config.json").read_text())
    wanted = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = RobertaConfig(**{key: sizes[key] for key in wanted}, max_position_embeddings=66, pad_token_id=0)
    RobertaModel(config).save_pretrained(folder)
    return folder


def read_model(folder: Path) -> None:
    """The model, and its answers to a few texts."""
    from smoothtune.inference.model import Model

    model = Model.load(folder, device="cpu", precision="float32")
    for task in model.tasks:
        texts = TEXTS if model.text_count([task]) == 1 else [(text, TEXTS[0]) for text in TEXTS]
        assert len(model.predict(task, texts)) == len(TEXTS)


def encoder_seeds(work: Path) -> list[Files]:
    """A BERT in one file and in two with an index, and a RoBERTa that transformers computes."""
    from safetensors.torch import load_file, save_file

    found = [read_files(write_bert(work / "bert")), read_files(write_roberta(work / "roberta"))]
    sharded = write_bert(work / "sharded")
    state = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    halves = {f"model-{number}.safetensors": sorted(state)[number::2] for number in range(2)}
    for name, inside in halves.items():
        save_file({key: state[key] for key in inside}, sharded / name)
    weight_map = {key: name for name, inside in halves.items() for key in inside}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return [*found, read_files(sharded)]


def read_encoder(folder: Path) -> None:
    """The encoder and the tokenizer of a checkpoint."""
    from smoothtune.config.encoder import EncoderOptions
    from smoothtune.data.tokenising import encode, load_tokenizer
    from smoothtune.nn.pretrained import find_checkpoint, load_encoder

    options = EncoderOptions(name=str(folder))
    load_encoder(find_checkpoint(options), options)
    encode(load_tokenizer(folder), [(text,) for text in TEXTS], "single", 24)


def tokenizer_seeds(work: Path) -> list[Files]:
    """WordPiece as BERT has it, byte-level BPE, Unigram with replacements, and two older forms, which are converted."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    write_tokenizer(work)
    bpe = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "\u0120": 3}, [("a", "b")], unk_token="a"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.post_processor = processors.RobertaProcessing(("b", 1), ("a", 0))
    bpe.enable_truncation(7)
    bpe.enable_padding(length=9)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581", -1.0), ("a", -2.0), ("the", -3.0)], unk_id=0))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.add_special_tokens(["<s>"])
    made = [Tokenizer.from_file(str(work / "tokenizer.json")), bpe, unigram]
    found: list[Files] = [{"tokenizer.json": tokenizer.to_str(pretty=True).encode()} for tokenizer in made]
    words = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\na\n##a\n"
    told = b'{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
    found.append({"vocab.txt": words, "config.json": b'{"model_type": "bert"}', "tokenizer_config.json": told})
    pieces = b'{"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "a": 5, "b": 6, "ab": 7}'
    found.append(
        {"vocab.json": pieces, "merges.txt": b"#version: 0.2\na b\n", "config.json": b'{"model_type": "roberta"}'}
    )
    return found


def read_tokens(folder: Path) -> None:
    """The tokenizer, and the token ids of a few texts in every form."""
    from smoothtune.data.tokenising import encode, in_memory, load_tokenizer

    tokenizer = load_tokenizer(folder)
    for reads in ("single", "separate", "joint"):
        rows = [(text,) if reads == "single" else (text, TEXTS[0]) for text in TEXTS]
        in_memory(encode(tokenizer, rows, reads, 24))


def checkpoint_seeds(work: Path) -> list[Files]:
    """A state with numbers, texts, lists and tensors."""
    import torch

    from smoothtune.training.checkpoint import Checkpoints

    state = {"stage": 1, "best": 0.5, "names": ["a", "é"], "moments": {"w": torch.ones(2, 3), "n": torch.zeros(1)}}
    return [read_files(Checkpoints(work / "checkpoints").write(state))]


def read_state(folder: Path) -> None:
    """The state of a training."""
    from smoothtune.training.checkpoint import read_checkpoint

    read_checkpoint(folder)


GOING_ON = GoingOn()

TARGETS: dict[str, Target] = {
    "experiment": Target(0.16, experiment_seeds, read_experiment),
    "delimited": Target(0.12, delimited_seeds, read_rows),
    "jsonl": Target(0.08, jsonl_seeds, read_rows),
    "parquet": Target(0.08, parquet_seeds, read_rows),
    "saved": Target(0.08, saved_seeds, read_rows),
    "model": Target(0.16, model_seeds, read_model),
    "encoder": Target(0.08, encoder_seeds, read_encoder),
    "tokenizer": Target(0.08, tokenizer_seeds, read_tokens),
    "checkpoint": Target(0.06, checkpoint_seeds, read_state, with_sums),
    "resumed": Target(0.1, GOING_ON.seeds, GOING_ON.read, change=one_value_changed),
}
