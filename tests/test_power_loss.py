"""Power loss while data are prepared and a model is trained: every later run gives what it would have given, or says why not.

SMOOTHTUNE_LOSSES losses, by default 6, each at a moment of its own; SMOOTHTUNE_LOSSES_SEED draws other moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smoothtune import cache
from smoothtune.errors import SmoothtuneError
from smoothtune.workflow.check import check_experiment
from smoothtune.workflow.train import train
from tests.killing import same_run
from tests.power_loss import Disk
from tests.small_data import table
from tests.test_kills import answers, forked


def experiment(encoder: Path) -> dict[str, Any]:
    """Two stages, the first of which keeps states, and a checkpoint after every few steps."""
    stages = [{"name": "heads", "train": ["trunks", "outputs"]}, {"name": "all"}]
    wanted = table(encoder, stop={"max_epochs": 1})
    wanted["stages"] = [{**wanted["stages"][0], **stage} for stage in stages]
    wanted["runtime"] = {"threads": 1, "checkpoint_every": {"steps": 5}}
    return wanted


class Loss:
    """A place where runs lose power, and what later runs there must give."""

    def __init__(self, wanted: dict[str, Any], data: Path, folder: Path) -> None:
        self.wanted, self.data, self.folder = wanted, data, folder
        self.outcomes: Counter[str] = Counter()
        train(wanted, data_dir=data, run_dir=folder / "right")
        self.checked = self.check()
        self.calls = self.lost(random.Random(0), None)
        assert same_run(folder / "run", folder / "right")

    def check(self) -> str:
        """What `check` says."""
        return json.dumps(check_experiment(self.wanted, data_dir=self.data).to_json(), sort_keys=True)

    def train(self, name: str) -> bool:
        """Train or resume the run of that name; whether it came to what it should."""
        train(self.wanted, data_dir=self.data, run_dir=self.folder / name, resume=(self.folder / name).exists())
        return same_run(self.folder / name, self.folder / "right")

    def lost(self, draw: random.Random, at: int | None) -> int:
        """Check and train in a process that loses power before call `at`; how many calls it made, 0 where it lost power."""
        for name in ("cache", "run", "other", "spare"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "spare").mkdir()
        roots = [self.folder / "cache", self.folder / "run"]
        disk = Disk(roots, self.folder / "spare", draw, at)

        def run() -> None:
            disk.watch(lambda: os._exit(7))
            self.check()
            train(self.wanted, data_dir=self.data, run_dir=self.folder / "run")
            (self.folder / "spare" / "calls").write_text(str(disk.calls))

        _, status = os.waitpid(forked(run), 0)
        assert os.WEXITSTATUS(status) in (0, 7)
        cache._compared.clear()  # as in new processes
        calls = self.folder / "spare" / "calls"
        return int(calls.read_text()) if calls.exists() else 0

    def later_runs(self) -> None:
        """Each of them is right, or ends in one line, which only a run that lost its files may do."""
        self._take("check", lambda: self.check() == self.checked)
        self._take("resume", lambda: self.train("run"), may_say_why=True)
        self._take("train", lambda: self.train("other"))
        for name in ("run", "other"):
            if (self.folder / name / "model").is_dir():
                self._take("predict", lambda name=name: answers(self.folder / name) == answers(self.folder / "right"))

    def _take(self, command: str, right: Callable[[], bool], *, may_say_why: bool = False) -> None:
        try:
            assert right(), command
            self.outcomes[f"{command}: right"] += 1
        except SmoothtuneError as error:
            if not may_say_why or "\n" in str(error):
                raise
            self.outcomes[f"{command}: {str(error).replace(str(self.folder), '')}"] += 1


@pytest.mark.usefixtures("own_cache")
def test_every_run_after_a_power_loss_is_right_or_says_why(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    losses = int(os.environ.get("SMOOTHTUNE_LOSSES", "6"))
    seed = int(os.environ.get("SMOOTHTUNE_LOSSES_SEED", "1"))
    loss = Loss(experiment(tiny_encoder), small_data, tmp_path)
    assert loss.calls > 200
    hits, number = 0, 0
    while hits < losses:
        draw = random.Random(f"{seed} {number}")
        at = draw.randint(1, loss.calls)
        try:
            if not loss.lost(draw, at):  # runs differ by a few calls
                loss.later_runs()
                hits += 1
        except BaseException as error:
            error.add_note(f"loss {number} of seed {seed}, before call {at} of {loss.calls}")
            raise
        number += 1
    assert loss.outcomes["check: right"] == loss.outcomes["train: right"] == losses
    print("\n".join(f"{count:5} {what}" for what, count in loss.outcomes.most_common()))
