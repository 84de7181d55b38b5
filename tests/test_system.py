"""Systems that lack what Linux has are imitated by taking it away: things work, or one line says why not before any work."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w

from smoothtune import files, system
from smoothtune.errors import UsageError
from smoothtune.files import WriteError
from smoothtune.runtime.device import set_threads
from smoothtune.workflow.run import machine
from smoothtune.workflow.run_lock import LOCK, RunLock
from tests.small_data import table

_LINUX = (
    "sched_getaffinity", "posix_fallocate", "register_at_fork", "pread", "pwrite", "fork", "O_NOFOLLOW", "O_NONBLOCK",
    "O_CLOEXEC", "O_DIRECTORY",
)  # fmt: skip
_WITHOUT = """
import os, sys, types, fcntl
import torch, transformers, datasets, accelerate, safetensors, typer, rich  # those look for what is there on their own
for name in {names!r}:
    if hasattr(os, name):
        delattr(os, name)
locking = lambda number, mode, count: fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB, count)
sys.modules["fcntl"] = None
if {windows}:
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
sys.argv = ["smoothtune", *sys.argv[1:]]
from smoothtune.__main__ import main
main()
"""


def run_without(folder: Path, *arguments: str, windows: bool) -> subprocess.CompletedProcess[str]:
    script = _WITHOUT.format(names=_LINUX, windows=windows)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.fixture
def experiment(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> Path:
    """An experiment whose second stage reads kept states."""
    wanted = table(tiny_encoder, stop={"max_epochs": 1})
    wanted["stages"].append({**wanted["stages"][0], "name": "heads", "train": ["outputs"]})
    wanted["runtime"] = {"threads": 1}
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(wanted))
    return path


def test_a_system_without_what_linux_has_trains_evaluates_and_predicts(
    experiment: Path, small_data: Path, tmp_path: Path
) -> None:
    done = run_without(
        tmp_path, "train", str(experiment), "--data-dir", str(small_data), "--run-dir", "run", windows=True
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "its states of" in done.stderr
    done = run_without(tmp_path, "evaluate", "run", windows=True)
    assert done.returncode == 0, done.stderr
    done = run_without(tmp_path, "predict", "run", "--task", "mood", str(small_data / "mood.dev.tsv"), windows=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 21), done.stderr


def test_a_system_without_locks_is_refused_in_one_line_before_any_work(
    experiment: Path, small_data: Path, tmp_path: Path
) -> None:
    done = run_without(
        tmp_path, "train", str(experiment), "--data-dir", str(small_data), "--run-dir", "run", windows=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "smoothtune: this system has no file locks (neither fcntl nor msvcrt), so that two processes could write one run; "
        "train on Linux, macOS or Windows\n"
    )
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "fcntl", None)
        with pytest.raises(UsageError, match=r"^this system has no file locks"), RunLock(tmp_path):
            pass


def test_cores_are_all_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        assert set_threads(None) == 3
    finally:
        torch.set_num_threads(before)
    assert machine("cpu")["cores"] == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.cores() == 1


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 19) + 3])
def test_space_is_reserved_by_writing_where_nothing_else_does(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with tempfile.TemporaryFile() as file:
        system.reserve(file, size)
        found = os.fstat(file.fileno())
        assert found.st_size == size
        assert found.st_blocks * 512 >= size
        assert file.tell() == 0
        assert file.read() == bytes(size)


def test_a_full_disk_is_an_error_where_space_is_reserved_by_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(OSError, match="No space left"):
        system.reserve(Full(), 5)


def test_files_and_folders_are_synced_where_folders_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []
    opened: dict[int, tuple[str, int]] = {}
    open_ = os.open

    def opening(path: str, flags: int) -> int:
        number = open_(path, flags)
        opened[number] = (Path(path).name, flags & os.O_ACCMODE)
        return number

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(opened[number]))
    (tmp_path / "a").write_text("")
    system.sync(tmp_path / "a")
    system.sync(tmp_path)
    assert synced == [("a", os.O_RDONLY), (tmp_path.name, os.O_RDONLY)]
    synced.clear()
    monkeypatch.delattr(os, "O_DIRECTORY")
    system.sync(tmp_path / "a")
    system.sync(tmp_path)
    assert synced == [("a", os.O_RDWR)]


def test_a_run_is_locked_by_msvcrt_where_there_is_no_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[int, int]] = []

    def locking(number: int, mode: int, count: int) -> None:
        place = (os.fstat(number).st_ino, os.lseek(number, 0, os.SEEK_CUR))
        if place in places:
            raise OSError(errno.EACCES, "Permission denied")
        places.append(place)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    with RunLock(tmp_path):
        assert places[0][1] > 1 << 20  # behind what other processes read
        assert (tmp_path / LOCK).stat().st_size < 1 << 10
        with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* is at work on this run"), RunLock(tmp_path):
            pass
    places.clear()
    with RunLock(tmp_path):
        pass


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(number: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(system, "_lock", none)
    with (
        pytest.raises(WriteError, match=r"cannot be locked: No locks available; free space, or choose"),
        RunLock(tmp_path),
    ):
        pass


@pytest.mark.parametrize("told", [True, False], ids=["told", "asked"])
def test_threads_that_write_at_once_leave_the_umask_alone(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    if told:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changed"))
    else:
        monkeypatch.setattr(files.Path, "read_text", lambda *given, **named: (_ for _ in ()).throw(OSError()))
    interval, gate = sys.getswitchinterval(), threading.Barrier(8)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            masks = list(pool.map(lambda _: (gate.wait(60), [files.umask() for _ in range(200)])[1], range(8)))
        monkeypatch.undo()
        assert {mask for part in masks for mask in part} == {0o027}
        assert files.umask() == 0o027
    finally:
        sys.setswitchinterval(interval)
        monkeypatch.undo()
        os.umask(before)
