"""What the README shows runs as it stands, on a tiny encoder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from smoothtune.config.loading import load, packaged_names
from tests.tiny import write_bert

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reviews = [
        f'"a {word} film, {number}",{stars}' for number in range(12) for word, stars in (("good", 5), ("bad", 1))
    ]
    (tmp_path / "reviews.csv").write_text("review,stars\n" + "\n".join(reviews) + "\n")
    pairs = [f"how do i make {number}?,how can i make {number}?,{number % 2}" for number in range(30)]
    (tmp_path / "pairs.csv").write_text("question1,question2,same\n" + "\n".join(pairs) + "\n")
    encoder = write_bert(tmp_path / "encoder")
    (tmp_path / "my.toml").write_text(f'[encoder]\nname = "{encoder}"\nmax_length = 32\n\n{block("toml")}')
    return tmp_path


def test_the_python_example_runs(folder):
    names: dict[str, object] = {}
    exec(block("python"), names)
    assert (folder / "runs" / "first" / "model" / "model.safetensors").is_file()
    model = names["model"]
    assert model.predict("mood", ["It broke on the first day."])[0] in ("1", "5")
    assert model.predict("same", [("a", "b")])[0] in ("0", "1")


def test_the_stages_that_are_shown_load_and_say_what_they_begin_with(folder):
    (shown,) = [text for text in re.findall(r"```\w*\n(.*?)```", README, flags=re.DOTALL) if text.startswith("[lora]")]
    experiment = load({**tomllib.loads((folder / "my.toml").read_text()), **tomllib.loads(shown)}).experiment
    assert [experiment.before(number) for number in range(3)] == [(), (0,), (0, 1)]
    assert (list(experiment.lora_after(2)), list(experiment.adapters_after(2))) == (["mood", "same"],) * 2


def test_the_readme_names_every_room_and_kind():
    source = Path(__file__).parents[1] / "src" / "smoothtune"
    rooms = [path.name for path in source.iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) >= 10
    assert [room for room in rooms if f"  {room}/" not in README] == []
    families = {name.split("/")[0] for name in packaged_names()}
    assert [name for name in families if name not in README] == []
