"""One target and a number of inputs: what came of each, counted. Findings are kept as folders that can be read again."""

from __future__ import annotations

import json
import os
import random
import shutil
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from smoothtune.errors import SmoothtuneError
from tests.fuzz.files import Files, write_files
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.watch import TooLongError, Watch, in_time

_ALLOCATION = ("allocate memory", "not enough memory", "MemoryError", "malloc", "realloc", "std::bad_alloc")


@dataclass(slots=True)
class Outcome:
    """Of the inputs of one target: how many were `read` and `refused`, and what else happened."""

    target: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)


def run_target(name: str, inputs: int, seed: int, root: Path, watch: Watch) -> Outcome:
    """Try `inputs` inputs of a target in `root`, which holds nothing else. The same seed gives the same inputs."""
    target, found = TARGETS[name], Outcome(name)
    (root / "outside").mkdir()
    (root / "outside" / "secret").write_text("text\tlabel\nsecret\t1\n")
    (root / "seeds").mkdir()
    seeds = target.seeds(root / "seeds")
    assert seeds, f"{name} has no seeds"
    for files in seeds:  # each must be read, or its changes show nothing
        write_files(files, root / "case")
        target.read(root / "case")
    for number in range(inputs):
        files = _input(target, seeds, random.Random(f"{name} {seed} {number}"))
        what = _tried(target, files, root, watch)
        found.inputs += 1
        found.read += what == "read"
        found.refused += what == "refused"
        if what not in ("read", "refused"):
            found.findings.append(what)
            _keep(root, f"{name}-{seed}-{number}", what)
    return found


def _input(target: Target, seeds: list[Files], draw: random.Random) -> Files:
    files = target.change(draw.choice(seeds), seeds, draw)
    return target.mend(files) if target.mend is not None and draw.random() < 0.5 else files


def _tried(target: Target, files: Files, root: Path, watch: Watch) -> str:
    case = root / "case"
    write_files(files, case)
    before = _names(root)
    with watch.one() as seen:
        what = _outcome(target, case)
    if what in ("read", "refused") and _names(root) != before:
        what = f"names changed: {sorted(_names(root) ^ before)[:5]}"
    return f"{what}\n{seen}" if seen else what


def _outcome(target: Target, case: Path) -> str:
    try:
        in_time(target.read, case)
    except SmoothtuneError as error:
        return _refusal(error)
    except (Exception, TooLongError):  # noqa: BLE001 - any other is what is looked for
        return traceback.format_exc()
    except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return traceback.format_exc()
    return "read"


def _refusal(error: SmoothtuneError) -> str:
    """ "refused", if in time: before memory was asked for that is not there; and with a text that can be read."""
    text, cause = str(error), error.__context__
    told = [text]
    while cause is not None:
        told.append(f"{type(cause).__name__} {cause}")
        cause = cause.__context__
    if any(word in one for word in _ALLOCATION for one in told):
        return f"refused only when memory could not be had: {told}"
    return "refused" if text and len(text) < 20_000 else f"an error of {len(text):,} characters: {text[:500]!r}"


def _names(root: Path) -> set[str]:
    """What stands in the folder, of the case all, of other folders the first level; caches are filled by design."""
    inside = {str(path) for path in (root / "case").rglob("*")}
    beside = {entry.path for entry in os.scandir(root)} - {str(root / "cache")}
    return inside | beside | {entry.path for name in ("home", "outside") for entry in os.scandir(root / name)}


def _keep(root: Path, name: str, what: str) -> None:
    kept = root / "findings" / name
    shutil.copytree(root / "case", kept, symlinks=True, ignore=lambda folder, names: _pipes(Path(folder), names))
    (root / "findings" / f"{name}.txt").write_text(what, encoding="utf-8", errors="backslashreplace")


def _pipes(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if (folder / name).is_fifo()]


def line_of(outcome: Outcome) -> str:
    """One line of JSON."""
    kinds = Counter(finding.strip().splitlines()[-1][:200] for finding in outcome.findings)
    shown = {"target": outcome.target, "inputs": outcome.inputs, "read": outcome.read, "refused": outcome.refused}
    return json.dumps({**shown, "findings": dict(kinds)})
