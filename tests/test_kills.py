"""Runs whose process is killed at a random moment, whatever it does, go on to the bits of one that nobody ended.

SMOOTHTUNE_KILLS runs are killed, by default 5; SMOOTHTUNE_KILLS_SEED draws other moments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import smoothtune
from smoothtune.workflow.train import train
from tests.killing import hard, same_run

pytestmark = pytest.mark.usefixtures("own_cache")


def forked(run: Any) -> int:
    """Run in a child process; its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        run()
        os._exit(0)
    finally:
        os._exit(1)


def killed(child: int, seconds: float) -> bool:
    """Kill the child after so many seconds; whether it was still at work. One that was not must have ended well."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def answers(run: Path) -> list[float]:
    """To some pairs, as numbers."""
    model = smoothtune.load(run, precision="float32")
    return [float(value) for value in model.predict("near", [("a cat", "the big dog"), ("rain", "sun and moon")])]


def test_killed_at_random_moments(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    count = int(os.environ.get("SMOOTHTUNE_KILLS", "5"))
    draw = random.Random(int(os.environ.get("SMOOTHTUNE_KILLS_SEED", "1")))
    wanted = hard(tiny_encoder, every={"steps": 2})
    began = time.perf_counter()
    train(wanted, data_dir=small_data, run_dir=tmp_path / "whole")
    length = time.perf_counter() - began
    hits, run = 0, tmp_path / "run"
    while hits < count:
        child = forked(lambda: train(wanted, data_dir=small_data, run_dir=run, resume=True))
        hit = killed(child, draw.uniform(0, 1) * length)
        train(wanted, data_dir=small_data, run_dir=run, resume=True)
        assert same_run(run, tmp_path / "whole"), f"after kill {hits + 1}"
        assert answers(run) == answers(tmp_path / "whole")
        shutil.rmtree(run)
        hits += hit
    print(f"{hits} of {hits} runs that were killed at random moments reached the bits of the one that was not")
