"""How kernels are built, found again and loaded, and what is said where they are not there."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest
import tomli_w
import torch

from smoothtune.cli.main import main
from smoothtune.errors import UsageError
from smoothtune.nn import fused
from smoothtune.runtime.kernels import adamw, building, gemm, grid
from smoothtune.workflow.run import machine
from tests.small_data import table

LOG = "smoothtune.runtime.kernels.building"
BUILDING = "building kernels for this processor (once)"
SOURCE = '#include "seven.h"\nextern "C" __attribute__((visibility("default"))) int number() { return SEVEN; }\n'
NO_COMPILER = "no C++ compiler (c++, g++ or $CXX) was found; install one"

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler"
)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """An empty cache of kernels. A call forgets what is known, as a new process would; so does the end."""

    def forget() -> None:
        building._libraries.cache_clear()

    # What other tests compute with is decided before the surroundings change.
    _ = (fused.available(), adamw.available(), gemm.available(), *map(grid.available, (torch.bfloat16, torch.float32)))
    monkeypatch.setenv(building.PLACE, str(tmp_path / "kernels"))
    monkeypatch.delenv(building.SWITCH, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield forget
    forget()


@pytest.fixture
def sources(anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with two small kernels, `one` and `two`, instead of ours."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "seven.h").write_text("#define SEVEN 7\n")
    for name in ("one", "two"):
        (folder / f"{name}.cpp").write_text(SOURCE)
    monkeypatch.setattr(building, "SOURCES", folder)
    monkeypatch.setattr(building, "NAMES", ("one", "two"))
    return folder


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert shutil.which("c++") is None


def failing(folder: Path, stderr: str) -> str:
    """A compiler that says `stderr` and fails."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "said").write_text(stderr)
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nwhile read line; do echo "$line" >&2; done < "{folder}/said"\nexit 3\n')
    path.chmod(0o755)
    return str(path)


def built(folder: Path) -> dict[str, int]:
    """The files of the cache, and what names each version of them."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_the_names_are_those_of_the_sources_and_the_package_has_every_file_they_need() -> None:
    packaged = {item.name: item.read_text() for item in files("smoothtune.runtime.kernels").iterdir() if item.is_file()}
    sources = {name for name in packaged if name.endswith((".cpp", ".h"))}
    assert tuple(sorted(name.removesuffix(".cpp") for name in sources if name.endswith(".cpp"))) == building.NAMES
    included = {header for name in sources for header in re.findall(r'^#include "(.+)"', packaged[name], re.MULTILINE)}
    assert len(included) >= 8
    assert included <= sources


@needs_compiler
def test_kernels_are_built_at_their_first_use_and_found_by_the_next_process(
    sources: Path, anew: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOG)
    found = building.kernels("one")
    assert found is not None
    assert found.number() == 7
    assert [record.message for record in caplog.records] == [BUILDING]
    kept = built(tmp_path / "kernels")
    assert sorted(name.split("-")[1] for name in kept) == ["one", "two"]
    anew()
    assert building.told() == "on"
    assert building.notes("cpu") == ()
    assert built(tmp_path / "kernels") == kept
    assert len(caplog.records) == 1


@needs_compiler
def test_a_library_that_is_there_needs_no_compiler_and_a_changed_header_does(
    sources: Path, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert building.told() == "on"
    without_compiler(monkeypatch)
    anew()
    assert building.told() == "on"
    (sources / "seven.h").write_text("#define SEVEN 8\n")
    anew()
    assert building.told() == f"off: {NO_COMPILER}"


@needs_compiler
def test_several_may_build_the_same_library_at_once(sources: Path, tmp_path: Path) -> None:
    threads = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    entry, compiler = tmp_path / "kernels" / "kernels-one", shutil.which("c++") or "g++"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: building._compiled("one", entry, compiler, threads), range(4)))
    assert [kernels.loaded.number() for kernels in found if kernels.loaded is not None] == [7] * 4
    assert [path.name for path in entry.parent.iterdir()] == ["kernels-one"]


@needs_compiler
def test_one_that_cannot_be_built_is_named_with_the_compilers_first_error(sources: Path, tmp_path: Path) -> None:
    (sources / "two.cpp").write_text('#warning "nothing to worry about"\nint number() { return eight; }\n')
    assert building.kernels("one") is not None
    assert building.kernels("two") is None
    told = building.told()
    assert told.startswith(
        f"on, but not two: {shutil.which('c++') or shutil.which('g++')} could not build into {tmp_path}"
    )
    assert "two.cpp:2:" in told
    assert told.endswith("; mend that or set CXX to another compiler")
    assert building.notes("cpu") == (
        f"note: kernels are {told}; torch computes in their stead, more slowly (SMOOTHTUNE_KERNELS=plain asks for torch "
        "alone, without this line)",
    )


@needs_compiler
@pytest.mark.parametrize("damage", [b"not a library", b""])
def test_a_damaged_library_is_built_again(
    damage: bytes, sources: Path, anew: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert building.told() == "on"
    (path,) = (tmp_path / "kernels").glob("kernels-one-*/kernels.so")
    path.unlink()  # it is mapped: what is written into it would end this process
    path.write_bytes(damage)
    anew()
    assert building.told() == "on"
    flaw = f"kernels.so has {len(damage)} bytes, {path.stat().st_size:,} were written"
    assert [line for line in caplog.messages if "damaged" in line] == [
        f"cache: {path.parent} is damaged ({flaw}); removed, it is made again"
    ]


@needs_compiler
def test_a_library_that_is_whole_and_cannot_be_loaded_is_named(
    sources: Path, anew: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> ctypes.CDLL:
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", refused)
    (why,) = {reason for reason in (building.build("one").reason, building.build("two").reason) if "one" in reason}
    assert why.endswith(
        "cannot be loaded (failed to map segment from shared object); choose a folder that may hold programs with "
        "SMOOTHTUNE_KERNELS_CACHE"
    )


def test_plain_leaves_all_out_without_a_word(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOG)
    monkeypatch.setenv(building.SWITCH, "plain")
    assert building.kernels("one") is None
    assert building.told() == "off: SMOOTHTUNE_KERNELS=plain"
    assert building.notes("cpu") == ()
    assert not (tmp_path / "kernels").exists()
    assert caplog.records == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_another_value_of_the_switch_is_refused(
    device: str, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(building.SWITCH, "palin")
    text = (
        "^the environment's SMOOTHTUNE_KERNELS: got 'palin', expected auto \\(kernels where they can be built\\) "
        "or plain \\(torch alone\\)$"
    )
    for ask in (building.told, building.notes):
        with pytest.raises(UsageError, match=text):
            ask(device)
    with pytest.raises(UsageError, match=text):
        building.build("layers")


def test_without_a_compiler_torch_alone_computes_and_it_is_said_why(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOG)
    without_compiler(monkeypatch)
    assert building.kernels("one") is None
    assert building.told() == f"off: {NO_COMPILER}"
    (note,) = building.notes("cpu")
    assert note.startswith(f"note: kernels are off: {NO_COMPILER}; ")
    assert caplog.records == []
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize(
    ("stderr", "why"),
    [
        ("", "exit status 3"),
        ("\n  \n", "exit status 3"),
        ("cannot execute\nat all\n", "cannot execute"),
        ("In file included from a.h\na.h:3:1: error: what is this\n", "a.h:3:1: error: what is this"),
    ],
)
def test_a_compiler_that_fails_is_quoted(
    stderr: str, why: str, sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", compiler := failing(tmp_path / "bin", stderr))
    assert building.told() == (
        f"off: {compiler} could not build into {tmp_path / 'kernels'} ({why}); mend that or set CXX to another compiler"
    )
    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_compiler_that_is_not_there_or_does_not_end(
    sources: Path, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    assert "([Errno 2] No such file or directory: '/no/compiler')" in building.told()

    def endless(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired(["c++"], 300, stderr=b"working")

    monkeypatch.setattr(subprocess, "run", endless)
    anew()
    assert "/no/compiler could not build into" in building.told()
    assert "(no end after 300 s)" in building.told()


def test_a_cache_that_cannot_be_written_is_named(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(building.PLACE, str(tmp_path / "file"))
    monkeypatch.setenv("CXX", "/bin/false")
    advice = "free space or choose another cache with XDG_CACHE_HOME or SMOOTHTUNE_KERNELS_CACHE"
    assert building.told() == f"off: {tmp_path / 'file'}: cannot be written: Not a directory; {advice}"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_no_fault_of_the_compiler(
    error: int, sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    what = os.strerror(error)
    monkeypatch.setenv("CXX", failing(tmp_path / "bin", f"as: error writing to one.o: {what}\n"))
    assert building.told().startswith(f"off: {tmp_path / 'kernels'}: cannot be written: {what}; free space or choose")


@needs_compiler
def test_without_a_home_folder_kernels_are_off_and_it_is_said_why(
    sources: Path, no_home: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(building.PLACE)
    assert building.told().startswith("off: no home folder, so there is no place for the cache: set XDG_CACHE_HOME")
    monkeypatch.setenv(building.PLACE, str(tmp_path / "kernels"))
    building._libraries.cache_clear()
    assert building.told() == "on"


def test_on_a_gpu_nothing_is_built_to_say_so(
    sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOG)
    assert building.told("cuda") == "not used: cuda"
    assert building.notes("cuda") == ()
    assert machine("cuda")["kernels"] == "not used: cuda"
    assert caplog.records == []
    monkeypatch.setenv("CXX", "/bin/false")
    assert machine("cpu")["kernels"].startswith("off: /bin/false could not build")


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines on stderr of the program, which must succeed."""
    monkeypatch.setattr("sys.argv", ["smoothtune", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().err.splitlines()


def test_the_program_says_that_kernels_are_built_or_why_they_are_not_there(
    sources: Path,
    anew: Callable[[], None],
    tiny_encoder: Path,
    small_data: Path,
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # `main` sets it for good where it is not set
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "small.toml").write_text(tomli_w.dumps(table(tiny_encoder, stop={"max_epochs": 1})), encoding="utf-8")
    (tmp_path / "texts.tsv").write_text("text\nthe cat\n")
    data = ("--data-dir", str(small_data), "--set", "runtime.device=cpu")
    run, texts = str(tmp_path / "run"), str(tmp_path / "texts.tsv")
    monkeypatch.setenv("CXX", "/bin/false")
    note = "note: kernels are off: /bin/false could not build into"
    lines = said(monkeypatch, capsys, "train", str(tmp_path / "small.toml"), *data, "--run-dir", run)
    assert lines.index(BUILDING) < lines.index(f"run folder: {run}")
    assert [line.startswith(note) for line in lines].count(True) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["kernels"].startswith("off: /bin/false")
    for command in (("predict", run, "--task", "mood", texts), ("evaluate", run)):
        anew()
        lines = said(monkeypatch, capsys, *command)
        assert BUILDING in lines
        assert [line.startswith(note) for line in lines].count(True) == 1
    anew()
    monkeypatch.setenv(building.SWITCH, "plain")
    assert not [
        line for line in said(monkeypatch, capsys, "predict", run, "--task", "mood", texts) if "kernels" in line
    ]
    assert logging.getLogger("smoothtune").handlers == []


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="not a processor of this family")
@pytest.mark.parametrize(("processor", "float32"), [("haswell", False), ("knl", False), ("skylake-avx512", True)])
def test_older_processors_have_the_grid_kernels_that_they_can_run(
    anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch, processor: str, float32: bool
) -> None:
    """Built for them; what is asked runs on any."""
    flags = [f"-march={processor}" if flag == "-march=native" else flag for flag in building.FLAGS]
    monkeypatch.setattr(building, "FLAGS", flags)
    monkeypatch.setattr(building, "NAMES", ("grid", "grid_convolution", "grid_float"))
    anew()
    assert processor == "knl" or building.build("grid").loaded is not None  # recent compilers know it no more
    assert not grid.available.__wrapped__(torch.bfloat16)
    assert grid.available.__wrapped__(torch.float32) == float32
    assert not grid.available.__wrapped__(torch.float16)
