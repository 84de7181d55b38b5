"""Entries of the cache: whole or made again, told of in one line; and where the cache is, goes, or cannot be."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import smoothtune
from smoothtune import cache
from smoothtune.cache import SUMS, aside, fetched, opened, read_record, settle, write_record
from smoothtune.cli.main import app
from smoothtune.errors import SmoothtuneError, UsageError
from smoothtune.files import NoCacheError, WriteError, cache_folder
from smoothtune.training.stage_events import StageEpoch
from smoothtune.workflow.train import resume, train
from tests.killing import metrics, same_run, weights
from tests.small_data import table

ADVICE = "free space or choose another cache with XDG_CACHE_HOME"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing was compared, reported or swept."""
    for name, value in (("_compared", {}), ("_reports", []), ("_swept", set())):
        monkeypatch.setattr(cache, name, value)


def made(entry: Path, **files: bytes) -> Path:
    with aside(entry.parent) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        settle(folder, entry)
    return entry


def names(entry: Path) -> list[str]:
    return sorted(path.name for path in entry.iterdir())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert list(cache.reports()) == caplog.messages
    return caplog.messages


def test_a_whole_entry_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = made(tmp_path / "entry", one=b"1", two=b"")
    assert opened(entry, names) == ["one", SUMS, "two"]
    cache._compared.clear()
    assert opened(entry, names) == ["one", SUMS, "two"]
    assert opened(tmp_path / "other", names) is None
    assert lines(caplog) == []


DAMAGES = {
    b"22": "one has 2 bytes, 1 were written",
    b"": "one has 0 bytes, 1 were written",
    b"\0": "the checksum of one is not the one that was written",
}


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_entry_is_told_of_removed_and_made_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    entry = made(tmp_path / "entry", one=b"1")
    cache._compared.clear()
    (entry / "one").write_bytes(content)
    assert opened(entry, names) is None
    assert not list(tmp_path.iterdir())
    assert lines(caplog) == [f"cache: {entry} is damaged ({DAMAGES[content]}); removed, it is made again"]
    assert fetched(entry, names, lambda: made(entry, one=b"1") and None) == ["one", SUMS]


def test_one_that_is_damaged_after_it_was_read_is_met_too(tmp_path: Path) -> None:
    entry = made(tmp_path / "entry", one=b"1")
    assert opened(entry, names)
    (entry / "one").unlink()
    (entry / "one").write_bytes(b"2")
    assert opened(entry, names) is None


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"entry": "other"}, {"files": {"../one": [1, 0]}}, {"files": {"one": 1}}]
)
def test_sums_of_another_entry_or_form_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    entry = made(tmp_path / "entry", one=b"1")
    cache._compared.clear()
    sums = json.loads((entry / SUMS).read_text())
    (entry / SUMS).write_text(json.dumps({**sums, **change}))
    assert opened(entry, names) is None
    assert cache.reports() == (f"cache: {entry} is damaged ({SUMS} is of another entry); removed, it is made again",)


def test_an_entry_under_the_name_of_another_is_none(tmp_path: Path) -> None:
    made(tmp_path / "entry", one=b"1").rename(tmp_path / "other")
    assert opened(tmp_path / "other", names) is None


@pytest.mark.parametrize("name", ["pipe", "folder", "link", "absent"])
def test_what_is_no_plain_file_is_not_followed(tmp_path: Path, name: str) -> None:
    entry = made(tmp_path / "entry", one=b"1")
    (entry / "one").unlink()
    if name == "pipe":
        os.mkfifo(entry / "one")
    elif name == "folder":
        (entry / "one").mkdir()
    elif name == "link":
        (tmp_path / "same").write_bytes(b"1")
        (entry / "one").symlink_to(tmp_path / "same")
    assert opened(entry, names) is None
    assert len(cache.reports()) == 1
    assert not entry.exists()


def test_one_that_goes_after_it_was_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = made(tmp_path / "entry", one=b"1")
    assert opened(entry, names)
    shutil.rmtree(entry)
    assert fetched(entry, names, lambda: made(entry, one=b"1") and None)
    assert lines(caplog) == [f"cache: {entry} has gone since it was read; it is made again"]


def test_one_that_goes_while_it_is_read_is_made_again(tmp_path: Path) -> None:
    tries: list[int] = []

    def read(entry: Path) -> list[str]:
        tries.append(1)
        if len(tries) < 3:
            shutil.rmtree(entry)
        return names(entry)

    assert fetched(tmp_path / "entry", read, lambda: made(tmp_path / "entry", one=b"1") and None) == ["one", SUMS]


def test_one_that_always_goes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"entry: has gone as soon as it was made: .*another with XDG_CACHE_HOME$"):
        fetched(tmp_path / "entry", names, lambda: None)


def test_a_damaged_entry_that_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = made(tmp_path / "entry", one=b"1")
    (entry / "one").write_bytes(b"22")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    what = "entry is damaged (one has 2 bytes, 1 were written) and cannot be written: Permission denied"
    with pytest.raises(WriteError) as caught:
        opened(entry, names)
    assert str(caught.value) == f"{tmp_path}: {what}; {ADVICE}"


def test_every_file_is_synced_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(cache, "sync", lambda path: done.append(path.name.rpartition(".")[2]))
    plain = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: done.append("rename") or plain(self, target))
    made(tmp_path / "cache" / "entry", one=b"1", two=b"2")
    assert done == ["one", "two", "json", "part", "rename", "cache"]


def test_what_killed_processes_left_is_swept_away_after_a_day(tmp_path: Path) -> None:
    old, fresh, text = tmp_path / "a.part", tmp_path / "b.part", tmp_path / "contents" / ".c.json.x.part"
    for folder in (old, fresh, text.parent):
        folder.mkdir()
    text.touch()
    (old / "file").touch()
    for path in (old / "file", old, text):
        os.utime(path, (0, 0))
    made(tmp_path / "entry", one=b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.part", "contents", "entry"]
    assert not list(text.parent.iterdir())


def test_a_record_comes_back_to_the_bit(tmp_path: Path) -> None:
    value = {"speeds": {"a": 0.1 + 0.2, "b": 1e-300}, "none": None, "text": "é"}
    write_record(tmp_path / "in" / "record.json", value)
    assert read_record(tmp_path / "in" / "record.json") == value
    assert read_record(tmp_path / "in" / "other.json") is None
    assert cache.reports() == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", None])
def test_a_damaged_record_is_told_of_and_removed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"number": 1})
    path.write_bytes(path.read_bytes().replace(b'"number": 1', b'"number": 2') if content is None else content)
    assert read_record(path) is None
    assert not path.exists()
    assert len(cache.reports()) == 1
    write_record(path, {"number": 1})
    path.rename(tmp_path / "other.json")
    assert read_record(tmp_path / "other.json") is None


def test_a_record_that_cannot_be_written_names_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(WriteError) as caught:
        write_record(tmp_path / "cache" / "record.json", 1)
    assert str(caught.value) == f"{tmp_path / 'cache'}: cannot be written: Not a directory; {ADVICE}"


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/smoothtune")
    for ignored in ("", "relative", "./relative"):  # as the specification says of relative paths
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / ".cache" / "smoothtune"


@pytest.mark.parametrize("home", [None, "relative"])
def test_without_a_home_folder_it_is_said_what_to_set(
    no_home: None, home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(
        NoCacheError, match=r"^no home folder, .*: set XDG_CACHE_HOME to the absolute path of a folder$"
    ):
        cache_folder()


@pytest.fixture(scope="module")
def trained(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        train(experiment(tiny_encoder), data_dir=small_data, run_dir=folder)
    return folder


def experiment(encoder: Path) -> dict[str, Any]:
    """Two stages, the first of which keeps states; a checkpoint after each epoch."""
    stages = [{"name": "heads", "train": ["trunks", "outputs"]}, {"name": "all"}]
    wanted = table(encoder, stop={"max_epochs": 2})
    wanted["stages"] = [{**wanted["stages"][0], **stage} for stage in stages]
    wanted["runtime"] = {"threads": 1, "checkpoint_every": {"share": 1}}
    return wanted


@pytest.mark.parametrize("command", ["check", "train", "evaluate"])
def test_commands_without_a_home_folder_end_in_one_line(
    command: str, trained: Path, no_home: None, tmp_path: Path
) -> None:
    arguments = {
        "check": [str(trained / "experiment.toml")],
        "train": [str(trained / "experiment.toml"), "--run-dir", str(tmp_path / "run")],
        "evaluate": [str(trained)],
    }
    answer = CliRunner().invoke(app, [command, *arguments[command]])
    assert isinstance(answer.exception, NoCacheError)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["no home", "a file", "nowhere"])
def test_predictions_need_no_cache(
    place: str, trained: Path, no_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = smoothtune.load(trained).predict("mood", ["the cat", "rain and sun"])
    if place == "a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    if place == "nowhere":
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert smoothtune.load(trained).predict("mood", ["the cat", "rain and sun"]) == expected


@pytest.mark.parametrize("home", ["~/data", "~nobody-of-this-name/data"])
def test_a_path_below_a_home_that_is_not_there_is_refused(
    home: str, no_home: None, tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="cannot be the path of a folder"):
        train(experiment(tiny_encoder), data_dir=home, run_dir=tmp_path / "run")
    wanted = experiment(tiny_encoder)
    wanted["tasks"]["mood"]["train"] = f"{home}/mood.tsv"
    with pytest.raises(UsageError, match="cannot be read"):
        train(wanted, data_dir=small_data, run_dir=tmp_path / "run")


class After:
    """A listener that does something after epoch number `epoch` of the run, counted from 0."""

    def __init__(self, epoch: int, what: Any) -> None:
        self.left, self.what = epoch, what

    def __call__(self, event: Any) -> None:
        if isinstance(event, StageEpoch):
            self.left -= 1
            if self.left == -1:
                self.what()


@pytest.mark.parametrize("epoch", range(4))
def test_a_cache_that_goes_during_a_run_is_made_again(
    epoch: int, trained: Path, tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    train(
        experiment(tiny_encoder),
        data_dir=small_data,
        run_dir=tmp_path / "run",
        listen=After(epoch, lambda: shutil.rmtree(own_cache)),
    )
    assert same_run(tmp_path / "run", trained)
    told = json.loads((tmp_path / "run" / "run.json").read_text())["cache"]
    assert told
    assert all(line.endswith("has gone since it was read; it is made again") for line in told)
    assert json.loads((trained / "run.json").read_text())["cache"] == []


@pytest.mark.parametrize("name", ["0.ids", "0.offsets"])
def test_an_entry_that_is_changed_in_place_during_a_run_leaves_no_model(
    tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path, name: str
) -> None:
    def zero() -> None:
        paths = list(own_cache.rglob(f"tokens-*/{name}"))
        assert paths
        for path in paths:
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))

    run, wanted = tmp_path / "run", table(tiny_encoder, stop={"max_epochs": 3})
    with pytest.raises(SmoothtuneError, match=r"tokens-\w+: was changed on disk while the run read it"):
        train(wanted, data_dir=small_data, run_dir=run, listen=After(1, zero))
    assert not (run / "model").exists()


def test_a_cache_that_goes_and_cannot_be_made_again_ends_in_a_line_and_the_run_can_be_resumed(
    trained: Path, tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    def take_away() -> None:
        shutil.rmtree(own_cache)
        own_cache.touch()

    run = tmp_path / "run"
    with pytest.raises(WriteError) as caught:
        train(experiment(tiny_encoder), data_dir=small_data, run_dir=run, listen=After(3, take_away))
    failure, _, advice = str(caught.value).partition("; the last checkpoint is ")
    assert failure == f"{own_cache / 'smoothtune'}: cannot be written: Not a directory; {ADVICE}"
    assert advice.endswith(f"go on with: smoothtune resume {run}")
    assert json.loads((run / "run.json").read_text())["failure"] == failure
    own_cache.unlink()
    resume(run)
    assert same_run(run, trained)
    assert json.loads((run / "run.json").read_text())["failure"] is None


def test_the_command_says_in_one_line_what_was_damaged(
    trained: Path, tiny_encoder: Path, small_data: Path, own_cache: Path, tmp_path: Path
) -> None:
    arguments = ["check", str(trained / "experiment.toml")]
    first = CliRunner().invoke(app, arguments)
    for ids in own_cache.rglob("0.ids"):
        size = ids.stat().st_size
        ids.unlink()
        ids.write_bytes(bytes(size))
    log = logging.getLogger("smoothtune")
    log.addHandler(handler := _Lines())
    again = CliRunner().invoke(app, arguments)
    log.removeHandler(handler)
    assert again.stdout == first.stdout
    assert len(handler.lines) == len(set(handler.lines)) == 6
    assert all("is damaged (the checksum of 0.ids is not" in line for line in handler.lines)
    assert weights(trained)
    assert metrics(trained)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
