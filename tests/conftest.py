"""Fixtures of the small experiment: a tiny encoder, its data, and a cache of its own."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from smoothtune.files import cache_folder
from smoothtune.runtime.kernels.building import PLACE
from tests.small_data import write_data
from tests.tiny import write_bert

settings.register_profile("no_clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no_clock")
os.environ.setdefault(PLACE, str(cache_folder()))  # kernels are built once, whatever cache a test gives itself


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint folder: 2 layers, width 16."""
    return write_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small data; read only."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests may share, since its entries are named by content."""
    return tmp_path_factory.mktemp("cache") / "smoothtune"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$XDG_CACHE_HOME` in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor the system knows a home folder, as for a user of a container that has a number alone."""

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT, and every process they start too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
