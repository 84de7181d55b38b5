"""A share of `make fuzz`: some hundreds of damaged files, and that the harness sees what it looks for."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smoothtune.errors import UsageError
from tests.fuzz.__main__ import split
from tests.fuzz.files import Files, Link, Pipe, read_files, write_files
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import _refusal

INPUTS = 300


def test_no_damaged_file_is_more_than_refused(capsys: pytest.CaptureFixture[str]) -> None:
    call = [sys.executable, "-m", "tests.fuzz", "--together", "--inputs", str(INPUTS), "--seed", "7"]
    ended = subprocess.run(call, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    with capsys.disabled():
        print(f"\n{ended.stdout.strip()}")
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr[-2000:]}"
    assert f"{INPUTS} inputs to {len(TARGETS)} targets, findings: 0" in ended.stdout
    counted = re.findall(r"(\d+) inputs: +(\d+) read, +(\d+) refused", ended.stdout)
    assert [int(inputs) for inputs, _, _ in counted] == list(split(INPUTS, list(TARGETS)).values())
    assert all(int(read) > 0 and int(refused) > 0 for _, read, refused in counted)


def test_the_same_number_gives_the_same_input_and_inputs_differ() -> None:
    seed: Files = {"a.json": b'{"a": [1, 2], "b": "x"}', "b.toml": b"a = 1\n[b]\nc = 2\n", "c.tsv": b"a\tb\n1\t2\n"}
    made = [mutated(seed, [seed], random.Random(number)) for number in range(300)]
    assert made == [mutated(seed, [seed], random.Random(number)) for number in range(300)]
    different = {repr(files) for files in made}
    assert len(different) > 250
    assert any(isinstance(entry, Pipe) for files in made for entry in files.values())


def test_all_inputs_are_given_out() -> None:
    assert sum(split(20_000, list(TARGETS)).values()) == 20_000
    assert sum(target.share for target in TARGETS.values()) == pytest.approx(1)


def test_files_are_written_as_they_are(tmp_path: Path) -> None:
    write_files({"a/b": b"1", "l": Link("a/b"), "p": Pipe()}, tmp_path / "x")
    assert (tmp_path / "x" / "p").is_fifo()
    assert read_files(tmp_path / "x") == {"a/b": b"1", "l": b"1"}


WATCHED = """
import os, subprocess, sys, time
from pathlib import Path
from tests.fuzz import watch
watch.SECONDS = 1.5
root = Path(sys.argv[1])
eye = watch.Watch(root / "cache")
def tried(work):
    with eye.one() as seen:
        try:
            watch.in_time(lambda _: work(), root)
        except watch.TooLongError as error:
            seen.append(str(error))
    print(work.__name__, [text.split()[0] for text in seen])
def inside(): (root / "cache").mkdir(); (root / "cache" / "a").write_text("")
def outside(): (root / "b").write_text("")
def removed(): (root / "b").unlink()
def started(): subprocess.run(["true"])
def slept(): time.sleep(5)
def filled(): bytes(b'x' * (700 << 20))
for work in (inside, outside, removed, started, slept, filled): tried(work)
"""


def test_the_watch_sees_what_reading_must_not_do(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    call = [sys.executable, "-c", WATCHED, str(tmp_path)]
    shown = subprocess.run(call, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    assert shown[0] == "inside []"
    assert shown[1:3] == ["outside ['open']", "removed ['os.remove']"]
    assert "subprocess.Popen" in shown[3]
    assert shown[4:] == ["slept ['longer']", "filled ['memory']"]


def test_a_refusal_that_came_too_late_is_a_finding() -> None:
    def refused(cause: Exception | None, text: str = "wrong") -> str:
        try:
            try:
                if cause is not None:
                    raise cause
            finally:
                raise UsageError(text) from None
        except UsageError as error:
            return _refusal(error)

    assert refused(None) == refused(ValueError("x")) == "refused"
    assert refused(MemoryError()).startswith("refused only when memory could not be had")
    assert refused(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith("refused only when")
    assert refused(None, "x" * 30_000).startswith("an error of 30,000 characters")
