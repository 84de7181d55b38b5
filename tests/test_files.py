"""Files and folders are written whole or not at all, and say why when they cannot be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import smoothtune.files
from smoothtune.files import WriteError, folder_aside, write_text


class _Stopped(BaseException):
    """Stands for Ctrl-C, or for a process that ends in the middle."""


def _fill_half(target: Path, error: BaseException) -> None:
    with folder_aside(target) as aside:
        (aside / "half.txt").write_text("half")
        raise error


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_text_is_written_in_utf_8_with_its_folders_and_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["a.txt", "deep", "er"]


def test_a_written_file_has_the_permissions_that_the_process_gives_new_files(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    write_text(tmp_path / "ours.txt", "")
    assert stat.S_IMODE((tmp_path / "ours.txt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_text(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smoothtune.files.os, step, no_space)
    with pytest.raises(WriteError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"{path}: cannot be written: No space left on device; free space or choose another folder"
    )
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_an_interruption_while_writing_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stop(*_: object) -> None:
        raise _Stopped

    monkeypatch.setattr(smoothtune.files.os, "replace", stop)
    with pytest.raises(_Stopped):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    path = tmp_path / "file" / "sub" / "a.txt"
    expected = f"{path}: cannot be written: Not a directory; free space or choose another folder"
    with pytest.raises(WriteError) as caught:
        write_text(path, "new")
    assert str(caught.value) == expected
    with pytest.raises(WriteError) as caught, folder_aside(path):
        pytest.fail("there is no folder to fill")
    assert str(caught.value) == expected
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match=r"a.txt: cannot be written: Permission denied; free space or choose"):
            write_text(tmp_path / "a.txt", "new")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    for text in ("old", "new"):
        with folder_aside(target) as aside:
            assert target.exists() == (text == "new")
            (aside / "sub").mkdir()
            (aside / "sub" / f"{text}.txt").write_text(text)
    assert _names(tmp_path) == ["model", "new.txt", "runs", "sub"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), _Stopped()])
def test_an_error_while_filling_leaves_the_old_folder_and_is_passed_on(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "model"
    with folder_aside(target) as aside:
        (aside / "old.txt").write_text("old")
    with pytest.raises(type(error)):
        _fill_half(target, error)
    assert _names(tmp_path) == ["model", "old.txt"]


def test_a_full_disk_while_filling_leaves_the_old_folder_and_names_it(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with folder_aside(target) as aside:
        (aside / "old.txt").write_text("old")
    with pytest.raises(WriteError) as caught:
        _fill_half(target, OSError(28, "No space left on device"))
    assert str(caught.value).startswith(f"{target}: cannot be written: No space left on device; ")
    assert _names(tmp_path) == ["model", "old.txt"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    with folder_aside(target) as aside:
        (aside / "old.txt").write_text("old")
    rename = Path.rename

    def fail_for_the_new(path: Path, other: Path) -> Path:
        if path.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(WriteError, match="Input/output error"), folder_aside(target) as aside:
        (aside / "new.txt").write_text("new")
    assert _names(tmp_path) == ["model", "old.txt"]
