"""Damages entries of the cache and asks what is read from them: `python -m tests.fuzz.cache` (a part of `make fuzz`).

Each damage meets a fresh copy of a whole cache, in a process of its own; the answer must be that of the whole cache, or one
clear line. Some damages are made while two processes ask at once, or while another removes entries.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from smoothtune import cache
from smoothtune.errors import SmoothtuneError
from tests.fuzz.cache_entries import ENTRIES, Entry, Place, made_place
from tests.fuzz.damage import damaged

Question = Callable[[Place], str]
_SLOW = 60  # seconds; a question takes one or two
_MEANWHILE = 0.1  # of the damages: while another process does something


@dataclass(slots=True)
class Outcome:
    """What came of damages to one kind of entry: right answers, clear lines, and everything that is neither."""

    damages: int = 0
    right: int = 0
    lines: int = 0
    findings: list[str] = field(default_factory=list)


class Trial:
    """A whole cache, the right answers, and damages to copies of it."""

    def __init__(self, root: Path) -> None:
        self.place = made_place(root)
        self.right: dict[Question, str] = {}
        for question in {question for entry in ENTRIES.values() for question in entry.questions}:
            self.right[question] = answer(question, self.place)
        shutil.copytree(self.place.entries, root / "whole", symlinks=True)
        self.whole = root / "whole"

    def files(self, entry: Entry) -> list[Path]:
        """All files of a kind of entry in the copy."""
        paths = (path for path in self.place.entries.rglob("*") if path.is_file())
        return sorted(path for path in paths if str(path.relative_to(self.place.entries)).startswith(entry.prefix))

    def run(self, kind: str, damages: int, seed: int) -> Outcome:
        """Damage entries of a kind. The same seed gives the same damages."""
        entry, outcome = ENTRIES[kind], Outcome()
        for number in range(damages):
            draw = random.Random(f"{kind} {seed} {number}")
            shutil.rmtree(self.place.entries)
            shutil.copytree(self.whole, self.place.entries, symlinks=True)
            files = self.files(entry)
            file = draw.choice(files)
            what = f"{kind} {seed} {number}: {file.name} {damaged(file, files, draw)}"
            (question,) = draw.choices(list(entry.questions), list(entry.questions.values()))
            self._ask(question, what, draw, outcome)
            outcome.damages += 1
        return outcome

    def _ask(self, question: Question, what: str, draw: random.Random, outcome: Outcome) -> None:
        asked = [begun(question, self.place)]
        way = draw.choice(("two", "remove")) if draw.random() < _MEANWHILE else ""
        if way == "two":
            asked.append(begun(question, self.place))
        if way == "remove":
            remove_some(self.place, draw)
        answers = [ended(*child) for child in asked]
        for given in answers:
            if given != self.right[question] and not given.startswith("line: "):
                outcome.findings.append(f"{what} {way}: {given}")
                return
        if answers[0].startswith("line: "):
            outcome.lines += 1
        else:
            outcome.right += 1


def remove_some(place: Place, draw: random.Random) -> None:
    """Remove entries at some moments of the next tenths of a second."""
    for _ in range(draw.randint(1, 6)):
        time.sleep(draw.random() / 20)
        entries = [path for path in place.entries.iterdir() if not path.name.endswith(".part")]
        if entries:
            shutil.rmtree(draw.choice(entries), ignore_errors=True)


def answer(question: Question, place: Place) -> str:
    """The answer of a new process. Raises `AssertionError` where it is an error."""
    given = ended(*begun(question, place))
    assert not given.startswith(("line: ", "traceback: ", "signal: ")), given
    return given


def begun(question: Question, place: Place) -> tuple[int, int]:
    """A new process that answers: its number, and the pipe that it answers through."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        os.close(read)
        signal.alarm(_SLOW)
        logging.getLogger("smoothtune").addHandler(logging.NullHandler())
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.write(write, _given(question, place).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _given(question: Question, place: Place) -> str:
    try:
        first = question(place)
        before = len(cache.reports())
        cache._compared.clear()
        again = question(place) if question.__name__ != "run" else first
        if again != first or len(cache.reports()) > before:
            return f"not healed: {cache.reports()[before:]}, {first[:200]} and then {again[:200]}"
        return first
    except SmoothtuneError as error:
        return f"line: {error}" if str(error).count("\n") < 2 else f"lines: {error}"
    except BaseException:  # noqa: BLE001 - it is what is looked for
        return f"traceback: {traceback.format_exc()}"


def ended(child: int, pipe: int) -> str:
    """The answer of a process, or how it ended."""
    with os.fdopen(pipe, "rb") as file:
        given = file.read().decode()
    _, status = os.waitpid(child, 0)
    return f"signal: {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else given


def main() -> int:
    """Parse, run, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.cache", description="Damaged entries of the cache.")
    parser.add_argument("--damages", type=int, default=2_400, help="in all, over the kinds of entries")
    parser.add_argument("--seed", type=int, default=1, help="another number gives other damages")
    parser.add_argument("--kind", action="append", choices=list(ENTRIES), help="only this one; may be repeated")
    options = parser.parse_args()
    kinds = options.kind or list(ENTRIES)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="smoothtune-cache-") as name:
        trial = Trial(Path(name))
        for kind in kinds:
            outcome = trial.run(kind, -(-options.damages // len(kinds)), options.seed)
            print(
                f"{kind:10} {outcome.damages:6,} damages: {outcome.right:6,} right, {outcome.lines:4,} one clear line"
            )
            for finding, count in Counter(outcome.findings).items():
                print(f"{'':10} {count} x {finding}")
            wrong += len(outcome.findings)
            sys.stdout.flush()
    print(json.dumps({"findings": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
