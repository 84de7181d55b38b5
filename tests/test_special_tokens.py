"""Special tokens that a text spells are text, for every kind of tokenizer, in training, evaluation and prediction."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from smoothtune.config.loading import load
from smoothtune.data.special_tokens import special_ids, unknown_id
from smoothtune.data.tokenising import encode, load_tokenizer, tokenise, windows
from smoothtune.errors import ModelFileError
from smoothtune.inference.model import Model
from smoothtune.nn.bundled import BUNDLED_FILES
from smoothtune.types import Input
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.train import resume, train
from tests.killing import KillAt, same_run, until_killed
from tests.small_data import table
from tests.tiny import write_bert

NAMES = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
PIECES = ("a", "e", "f", "g", "d", "o", "l", "m", "i", "s", "p", "k", "n", "u", "<", ">", "/", "[", "]")
READS: tuple[Input, ...] = ("single", "separate", "joint")


def finished(model: Any, split: Any, *, unknown: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in NAMES if unknown or name != "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [*((name, 0.0) for name in NAMES), *((piece, -3.0) for piece in ("▁", *PIECES))]
    return finished(models.Unigram(pieces, unk_id=3), pre_tokenizers.Metaspace())


def words(*, unknown: bool = True) -> Tokenizer:
    vocabulary = {name: number for number, name in enumerate((*NAMES, "a", "good", "film"))}
    model = models.WordLevel(vocabulary, unk_token="<unk>" if unknown else "nothing")
    return finished(model, pre_tokenizers.WhitespaceSplit())


def byte_pairs() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate((*NAMES, *alphabet))}
    return finished(models.BPE(vocabulary, []), pre_tokenizers.ByteLevel())


def word_pieces() -> Tokenizer:
    letters = [piece for letter in PIECES for piece in (letter, f"##{letter}")]
    vocabulary = {name: number for number, name in enumerate((*NAMES, *letters))}
    return finished(models.WordPiece(vocabulary, unk_token="<unk>"), pre_tokenizers.BertPreTokenizer())


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "unigram": unigram,
    "words": words,
    "byte pairs": byte_pairs,
    "word pieces": word_pieces,
}
SPELT = ["good </s> <pad> film", "<s>", "a<pad>film", "<mask> a </s>", "<pad> <pad> <pad>", "good \uff1cs\uff1e"]


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_no_text_has_a_special_token_inside(kind: str, reads: Input, tmp_path: Path) -> None:
    folder = saved(KINDS[kind](), tmp_path)
    tokenizer, obeying = load_tokenizer(folder), load_tokenizer(folder, "tokens")
    special = special_ids(tokenizer) - {unknown_id(tokenizer)}
    assert special >= {0, 1, 2, 4}
    rows = [(text, "a film") for text in SPELT]
    plain = encode(tokenizer, [("a film", "a film")], reads, 60)[0][0]
    added = sum(number in special for number in plain.ids)
    for column in encode(tokenizer, rows, reads, 60):
        assert [sum(number in special for number in row.ids) for row in column] == [added] * len(rows)
    obeyed = encode(obeying, rows, reads, 60)[0]
    assert all(sum(number in special for number in row.ids) > added for row in obeyed[:5])
    untouched = [("a good film", "a film"), ("a > b </ s >", "film")]
    assert [row.ids for row in encode(tokenizer, untouched, reads, 60)[0]] == [
        row.ids for row in encode(obeying, untouched, reads, 60)[0]
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_sees_the_ids_of_prediction(kind: str, tmp_path: Path) -> None:
    class Rows:
        content_key = "rows"

        def __len__(self) -> int:
            return len(SPELT)

        def chunks(self, size: int) -> Any:
            return windows([(text, "a </s> film") for text in SPELT], size)

    folder = saved(KINDS[kind](), tmp_path)
    for special in ("text", "tokens"):
        tokenizer = load_tokenizer(folder, special)  # type: ignore[arg-type]
        for length in (6, 60):
            (column,) = tokenise(Rows(), tokenizer, reads="joint", max_length=length, cache=tmp_path / "cache")
            rows = encode(tokenizer, [(text, "a </s> film") for text in SPELT], "joint", length)[0]
            assert column.ids.tolist() == [number for row in rows for number in row.ids]
            assert column.second.tolist() == [row.type_ids.count(0) for row in rows]
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 4


def test_entries_of_tokens_from_before_are_still_those_of_models_from_before(tmp_path: Path) -> None:
    from smoothtune.data import tokenising

    folder = saved(words(), tmp_path)
    obeying = load_tokenizer(folder, "tokens")

    class Rows:
        content_key = "rows"

        def __len__(self) -> int:
            return 1

        def chunks(self, size: int) -> Any:
            return windows([("a",)], size)

    tokenise(Rows(), obeying, reads="single", max_length=9, cache=tmp_path / "cache")
    import hashlib

    identity = json.dumps([tokenising._FORMAT, "rows", obeying.to_str(), 9, "single"])
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"tokens-{key}"]


def test_without_an_unknown_token_the_text_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(words(unknown=False), tmp_path))
    assert unknown_id(tokenizer) is None
    assert len(encode(tokenizer, [("a film",)], "single", 9)[0][0].ids) == 4
    with pytest.raises(ModelFileError, match=r"takes '</s>' in a text for its special token and has no unknown token"):
        encode(tokenizer, [("a </s>",)], "single", 9)


def test_the_bundled_encoder_reads_them_as_text() -> None:
    from importlib.util import find_spec

    files = BUNDLED_FILES["minilm"]
    spec = find_spec(files.package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / files.folder
    plain, obeying = load_tokenizer(folder), load_tokenizer(folder, "tokens")
    text = [("good [SEP] [PAD] film",)]
    assert encode(obeying, text, "single", 16)[0][0].ids[1:-1] == [2204, 102, 0, 2143]
    assert not {101, 102, 0, 103} & set(encode(plain, text, "single", 16)[0][0].ids[1:-1])


# runs and models


@pytest.fixture(scope="module")
def special_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose tokenizer declares its special tokens, as those of checkpoints do."""
    folder = write_bert(tmp_path_factory.mktemp("encoder") / "tiny")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def spelling_data(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data with a [SEP] in every text."""
    folder = shutil.copytree(small_data, tmp_path_factory.mktemp("data") / "spelt")
    for path in folder.iterdir():
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(row.replace("\t", " [SEP] the\t", 1) for row in rows)]) + "\n")
    return folder


TEXTS = ["the [SEP] cat [PAD] dog", "[CLS] two moon", "rain"]
PLAIN = ["the [ SEP ] cat [ PAD ] dog", "[ CLS ] two moon", "rain"]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_a_run_reads_special_tokens_as_text(
    special_encoder: Path, spelling_data: Path, tmp_path: Path, implementation: str
) -> None:
    wanted = table(special_encoder, stop={"max_epochs": 1})
    wanted["encoder"]["implementation"] = implementation
    run = train(wanted, data_dir=spelling_data, run_dir=tmp_path / "run")
    model = run.model()
    assert model.config.encoder.special_tokens == "text"
    np.testing.assert_array_equal(
        model.predict_probabilities("mood", TEXTS), model.predict_probabilities("mood", PLAIN)
    )
    assert evaluate_run(run.folder).to_json() == run.evaluation
    obeyed = train({**wanted, "encoder": {**wanted["encoder"], "special_tokens": "tokens"}}, data_dir=spelling_data,
                   run_dir=tmp_path / "obeyed")  # fmt: skip
    assert obeyed.evaluation != run.evaluation
    given, plain = (obeyed.model().predict_probabilities("mood", texts) for texts in (TEXTS, PLAIN))
    assert abs(given - plain).max() > 1e-4


def from_before(run: Path) -> None:
    """Make `run` one that is older than the key; its checkpoints are already so."""
    for path in (run / "experiment.toml", *run.rglob("config.toml")):
        path.write_text(path.read_text().replace('special_tokens = "tokens"\n', ""))
    told = [path for path in run.rglob("*") if path.suffix in (".toml", ".json") and path.name != "tokenizer.json"]
    assert not [path for path in told if "special_tokens" in path.read_text()]


@pytest.mark.usefixtures("own_cache")
def test_runs_and_models_from_before_keep_their_ids(special_encoder: Path, spelling_data: Path, tmp_path: Path) -> None:
    wanted = {**table(special_encoder, stop={"max_epochs": 2}), "runtime": {"checkpoint_every": 1}}
    wanted["encoder"]["special_tokens"] = "tokens"
    whole = train(wanted, data_dir=spelling_data, run_dir=tmp_path / "whole")
    answers = whole.model().predict_probabilities("mood", TEXTS)
    for name in ("cut", "same"):
        assert until_killed(
            lambda name=name: train(wanted, data_dir=spelling_data, run_dir=tmp_path / name, listen=KillAt(9))
        )
        from_before(tmp_path / name)
    assert resume(tmp_path / "cut").experiment.encoder.special_tokens == "tokens"
    del wanted["encoder"]["special_tokens"]  # what a scheduler gives again
    given = load(wanted).experiment
    train(given, data_dir=spelling_data, run_dir=tmp_path / "same", resume=True)
    for name in ("cut", "same"):
        assert same_run(tmp_path / name, tmp_path / "whole")
    from_before(tmp_path / "whole")
    assert evaluate_run(tmp_path / "whole").to_json() == whole.evaluation
    for folder in (tmp_path / "whole", tmp_path / "whole" / "model"):
        np.testing.assert_array_equal(Model.load(folder, device="cpu").predict_probabilities("mood", TEXTS), answers)
