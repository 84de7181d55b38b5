"""What docs/adaptations.md shows runs as it stands, block after block, on a tiny encoder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from smoothtune.cli.main import app
from smoothtune.nn.adaptation import Adaptation, Adaptations
from smoothtune.types import Tokens
from tests.tiny import write_bert

PAGE = Path(__file__).parents[1] / "docs" / "adaptations.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a reader is in: the data of the page, and the encoder that takes the place of the bundled one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reviews = [f"a {word} film {number},{stars}" for number in range(40) for word, stars in (("good", 5), ("bad", 1))]
    (tmp_path / "reviews.csv").write_text("review,stars\n" + "\n".join(reviews) + "\n")
    pairs = [f"how do i make {number}?,how can i make {number}?,{number % 2}" for number in range(30)]
    (tmp_path / "pairs.csv").write_text("question1,question2,same\n" + "\n".join(pairs) + "\n")
    (tmp_path / "new.csv").write_text("review\na good film\n")
    write_bert(tmp_path / "encoder")
    return tmp_path


def do(language: str, text: str, names: dict[str, object]) -> None:
    if language == "toml":
        Path("my.toml").write_text(f'[encoder]\nname = "{Path("encoder").absolute()}"\nmax_length = 32\n\n{text}')
    elif language == "python":
        exec(text, names)
    else:
        for line in text.splitlines():
            answer = CliRunner().invoke(app, shlex.split(line.removeprefix("smoothtune ")))
            assert answer.exit_code == 0, f"{line}: {answer.exception or answer.stderr}"


def test_the_blocks_of_the_page_run_in_order(folder: Path) -> None:
    pytest.importorskip("peft")
    names: dict[str, object] = {}
    blocks = re.findall(r"```(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["toml", "", "python", "python", "", "python"]
    for language, text in blocks:
        do(language, text, names)
    assert [len((folder / name).read_text().splitlines()) for name in ("answers.tsv", "before.tsv")] == [2, 2]
    assert {task: len(found) for task, found in names["answers"].items()} == {"mood": 2, "same": 1}
    assert names["merged"] == names["answers"]["mood"]
    check_states(names)


@torch.no_grad()
def check_states(names: dict[str, object]) -> None:
    """The exported encoder with its LoRA gives what the model's does, and has nothing random beside it."""
    network, tokens, mask = names["model"].network.cpu(), names["tokens"], names["tokens"]["attention_mask"].bool()
    assert (list(network.lora), list(network.adapters)) == (["mood", "same"], ["same"])
    ours = network.encoder(
        Tokens(tokens["input_ids"], mask, tokens["token_type_ids"]),
        adaptations=Adaptations.of([(2, Adaptation(network.lora["mood"]))]),
    ).states
    torch.testing.assert_close(names["states"][mask], ours[mask], rtol=0, atol=1e-5)
    assert names["encoder"].get_base_model().pooler is None


def test_the_page_and_the_readme_name_what_there_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    for name in ("predict_mixed", "merged", "learning_rate.adaptations", "smoothtune export"):
        assert name in page
        assert name in readme
    assert "](docs/adaptations.md)" in readme
