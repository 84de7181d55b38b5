"""A disk that is full, or can only be read, at every write of a run: told, nothing lost, and the run goes on to the same bits.

Needs to mount a small file system in memory; where that is not allowed, these tests are skipped. With SMOOTHTUNE_FULL every
write fails in turn, otherwise each fifth.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smoothtune import files
from smoothtune.files import WriteError
from smoothtune.nn import folder as model_folder
from smoothtune.training import checkpoint
from smoothtune.workflow import run as run_files
from smoothtune.workflow.train import resume, train
from tests.killing import hard, same_run

SIZE = 96 << 20
SPARE = (0, 6000)  # bytes that are left: none, and too few for a checkpoint or model

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class Writes:
    """Counts the writes of a run, and fills the disk before one of them; `full` is what it was told then."""

    def __init__(self, patch: pytest.MonkeyPatch, disk: Path, at: int | None = None, spare: int = 0) -> None:
        self.disk, self.at, self.spare = disk, at, spare
        self.count = 0
        self.kinds: list[str] = []
        for place, name in (
            (files, "write_text"),
            (run_files, "write_text"),
            (checkpoint, "folder_aside"),
            (model_folder, "folder_aside"),
        ):
            patch.setattr(place, name, self._counted(getattr(place, name), name))
        patch.setattr(run_files.RunFiles, "add_metrics", self._counted(run_files.RunFiles.add_metrics, "add_metrics"))

    def _counted(self, write: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*given: Any, **options: Any) -> Any:
            self.count += 1
            self.kinds.append(name)
            if self.count == self.at:
                fill(self.disk, self.spare)
            return write(*given, **options)

        return counted


def fill(disk: Path, spare: int) -> None:
    """Leave `spare` bytes."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - spare))


def short(encoder: Path) -> dict[str, Any]:
    """The hard run, cut to a few checkpoints."""
    wanted = hard(encoder, every={"share": 1})
    wanted["stages"][0]["stop"] |= {"max_epochs": 2}
    wanted["stages"][1]["stop"] |= {"max_epochs": 1}
    return wanted


@pytest.fixture(scope="module")
def whole(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        train(short(tiny_encoder), data_dir=small_data, run_dir=folder)
    return folder


def test_full_at_every_write(whole: Path, disk: Path, tiny_encoder: Path, small_data: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        writes = Writes(patch, disk)
        train(short(tiny_encoder), data_dir=small_data, run_dir=disk / "counted")
    shutil.rmtree(disk / "counted")
    assert writes.kinds.count("folder_aside") >= 5
    assert writes.kinds.count("add_metrics") >= 3
    failed, every = 0, 1 if os.environ.get("SMOOTHTUNE_FULL") else 5
    for at in range(1, writes.count + 1, every):
        for spare in SPARE if writes.kinds[at - 1] == "folder_aside" else SPARE[:1]:
            run = disk / "run"
            with pytest.MonkeyPatch.context() as patch:
                Writes(patch, disk, at, spare)
                with pytest.raises(WriteError, match=rf"cannot be written: No space.*smoothtune resume {run}$"):
                    train(short(tiny_encoder), data_dir=small_data, run_dir=run)
            (disk / "ballast").unlink()
            assert not list(run.glob("*/.*.part")), "what is half written is taken away at once"
            resume_or_begin(run, tiny_encoder, small_data)
            assert same_run(run, whole), (at, spare)
            shutil.rmtree(run)
            failed += 1
    print(f"{failed} of {failed} failed writes told, and the run went on to the same bits")


def resume_or_begin(run: Path, encoder: Path, data: Path) -> None:
    train(short(encoder), data_dir=data, run_dir=run, resume=True)


def test_a_folder_that_can_only_be_read(disk: Path, tiny_encoder: Path, small_data: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(WriteError, match=r"run: cannot be created: Read-only file system"):
        train(short(tiny_encoder), data_dir=small_data, run_dir=disk / "run")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(WriteError, match=r"\.lock: cannot be written: Read-only file system"):
        resume(disk / "run")
