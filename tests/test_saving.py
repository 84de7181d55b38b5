"""When a checkpoint is due. The clock is the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smoothtune.config.experiment import CheckpointEvery, RuntimeOptions
from smoothtune.training.checkpoint import Checkpoints
from smoothtune.training.loop import EpochReport, StepReport
from smoothtune.training.stage_events import StageBegin, StageEpoch
from smoothtune.workflow import saving
from smoothtune.workflow.saving import Saver


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Slow(Checkpoints):
    """Counts what is written, and takes `cost` seconds for it."""

    def __init__(self, clock: Clock, cost: float) -> None:
        super().__init__(Path("nowhere"))
        self.clock, self.cost, self.times = clock, cost, 0

    def write(self, state: Any) -> Path:
        self.times += 1
        self.clock.now += self.cost
        return self.folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(saving, "time", found)
    return found


def saver(clock: Clock, cost: float = 1.0, megabytes: int = 0, **every: Any) -> tuple[Saver, Slow]:
    slow = Slow(clock, cost)
    weight = torch.zeros(megabytes * 250_000)
    made = Saver(slow, CheckpointEvery(**every), lambda: {"weight": weight}, clock.now, clock.now)
    return made, slow


def step(number: int) -> StepReport:
    return StepReport("s", 0, number, 100, {}, 0.1, 0.0, 0)


def epoch(number: int) -> StageEpoch:
    return StageEpoch(EpochReport("s", number, 10, 0.0, {}, {}, None, 0), False, (), {})


def test_after_every_epoch_but_not_before_the_first_step(clock: Clock) -> None:
    made, slow = saver(clock, minutes=0)
    clock.now += 1000
    made.take(StageBegin("s", (), 1, {}, 1, "float32"))
    made.take(epoch(-1))
    assert slow.times == 0
    for number in range(3):
        clock.now += 1000
        made.take(step(number))
        made.take(epoch(number))
    assert slow.times == 3


def test_each_so_many_epochs_and_steps(clock: Clock) -> None:
    made, slow = saver(clock, cost=0.0, epochs=2, steps=5, minutes=0)
    clock.now += 1000
    for number in range(4):
        made.take(epoch(number))
    assert slow.times == 2
    for number in range(1, 21):
        made.take(step(number))
    assert slow.times == 2 + 4


def test_at_most_so_many_minutes_apart(clock: Clock) -> None:
    made, slow = saver(clock, epochs=0, minutes=10)
    for number in range(100):
        clock.now += 59
        made.take(step(number))
    assert slow.times == 9  # each after 11 steps of 59 seconds


def test_short_epochs_wait_until_writing_is_within_its_share(clock: Clock) -> None:
    made, slow = saver(clock, cost=2.0, minutes=0, share=0.02)
    for number in range(1000):
        clock.now += 3
        made.take(epoch(number))
    spent, whole = 2.0 * slow.times, clock.now - 1000
    assert 0.015 < spent / whole <= 0.02


def test_the_first_is_as_dear_as_a_slow_disk_makes_it(clock: Clock) -> None:
    made, slow = saver(clock, megabytes=20, minutes=0, share=0.02)  # 0.1 s at 200 MB/s: 5 seconds must have passed
    clock.now += 4.9
    made.take(epoch(0))
    assert slow.times == 0
    clock.now += 0.2
    made.take(epoch(1))
    assert slow.times == 1


def test_without_a_limit_each_epoch_counts(clock: Clock) -> None:
    made, slow = saver(clock, cost=100.0, minutes=0, share=1)
    for number in range(4):
        made.take(epoch(number))
    assert slow.times == 4


@pytest.mark.parametrize(
    ("given", "means"),
    [
        (False, {"epochs": 0, "steps": 0, "minutes": 0.0}),
        (7, {"epochs": 1, "steps": 7, "minutes": 10.0}),
        ({"steps": 3}, {"epochs": 1, "steps": 3, "minutes": 10.0}),
    ],
)
def test_short_forms(given: Any, means: dict[str, float]) -> None:
    found = RuntimeOptions(checkpoint_every=given).checkpoint_every
    assert found.model_dump(exclude={"share"}) == means
    assert found.never == (given is False)


@pytest.mark.parametrize("given", [True, "often", -1, {"share": 0}])
def test_what_is_no_interval(given: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_every"):
        RuntimeOptions(checkpoint_every=given)
