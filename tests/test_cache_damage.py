"""A few damages to every kind of entry of the cache; `make fuzz` makes thousands. And that they find out a cache without sums."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from smoothtune import cache
from smoothtune.data import content
from smoothtune.inference import precision
from smoothtune.runtime.kernels import building
from tests.fuzz.cache import Trial
from tests.fuzz.cache_entries import ENTRIES
from tests.fuzz.damage import DAMAGES

DAMAGES_OF_KIND = 8


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A whole cache of every kind of entry; what it changes in this process is put back."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", building.SWITCH, "TOKENIZERS_PARALLELISM"):
            patch.setenv(name, os.environ.get(name, ""))
        patch.setattr(content, "_SETTLED", content._SETTLED)
        patch.setattr(precision, "measure", precision.measure)
        yield Trial(tmp_path_factory.mktemp("place"))


def test_every_kind_of_entry_is_there(trial: Trial) -> None:
    begins = {str(path.relative_to(trial.whole)) for path in trial.whole.rglob("*") if path.is_file()}
    assert all(any(name.startswith(entry.prefix) for name in begins) for entry in ENTRIES.values())
    prefixes = tuple(entry.prefix for entry in ENTRIES.values())
    assert [name for name in begins if not name.startswith(prefixes)] == [], "a kind of entry that is not in the table"
    assert len(DAMAGES) >= 14


@pytest.mark.parametrize("kind", ENTRIES)
def test_damages_change_no_answer(kind: str, trial: Trial) -> None:
    outcome = trial.run(kind, DAMAGES_OF_KIND, seed=1)
    assert outcome.findings == []
    assert outcome.right + outcome.lines == DAMAGES_OF_KIND


@pytest.mark.parametrize("kind", ["rows", "tokens", "states"])
def test_a_cache_that_compares_no_sums_is_found_out(kind: str, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_compare", lambda entry: entry.stat())
    monkeypatch.setattr("tests.fuzz.cache._SLOW", 5)  # a pipe would keep the reader
    assert trial.run(kind, 2 * DAMAGES_OF_KIND, seed=1).findings
