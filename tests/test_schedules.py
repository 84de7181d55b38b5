"""Every kind of schedule against what it promises: length, coverage, frequencies, and resuming from its state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.stats import chisquare

from smoothtune.config.schedules import ScheduleName, ScheduleOptions
from smoothtune.data.schedules import Annealed, Coverage, LoopToLargest, RoundRobin, Schedule, Seen, Temperature
from smoothtune.registry import TABLE, resolve
from tests.made_examples import made_stream

CASES: list[dict[str, Any]] = [
    {"kind": "proportional"},
    {"kind": "round_robin"},
    {"kind": "round_robin", "until": "all_exhausted"},
    {"kind": "round_robin", "every_task": True},
    {"kind": "loop_to_largest"},
    {"kind": "loop_to_largest", "every_task": True},
    {"kind": "temperature"},
    {"kind": "temperature", "alpha": 0.0, "steps_per_epoch": 7},
    {"kind": "annealed"},
    {"kind": "annealed", "steps_per_epoch": 9},
]
ROWS = st.lists(st.integers(1, 30), min_size=1, max_size=4)
SIZE = st.integers(1, 8)
CASE = st.sampled_from(CASES)
some = settings(max_examples=40, deadline=None)
Item = tuple[str, list[int]]


def build(
    case: dict[str, Any], rows: list[int], size: int = 4, *, seed: int = 1, stage: str = "together", epochs: int = 3
) -> Schedule:
    """A schedule over tasks t0, t1 ... with so many rows each."""
    options: Any = TypeAdapter(ScheduleOptions).validate_python(case)
    sources = {f"t{number}": made_stream(count, size, seed=number) for number, count in enumerate(rows)}
    schedule: Schedule = resolve("schedules", options.kind)(sources, options, seed=seed, stage=stage, epochs=epochs)
    return schedule


def epoch_of(schedule: Schedule) -> list[Item]:
    """The rest of the epoch, as tasks and row numbers."""
    return [(task, batch.rows.tolist()) for task, batch in schedule]


def walk(schedule: Schedule, leave: int | None = None) -> Iterator[Item]:
    """All epochs; task t0 leaves when epoch `leave` begins."""
    while schedule.epoch < schedule.epochs:
        for task, batch in schedule:
            yield task, batch.rows.tolist()
        if schedule.epoch == leave and "t0" in schedule.active:
            schedule.finish("t0")


def seen(items: list[Item], task: str) -> Counter[int]:
    return Counter(row for name, rows in items if name == task for row in rows)


def lines(rows: int) -> list[int]:
    return [10 * row + 2 for row in range(rows)]


def test_every_kind_is_here() -> None:
    kinds = {case["kind"] for case in CASES}
    union = {options.model_fields["kind"].default for options in get_args(get_args(ScheduleOptions)[0])}
    assert kinds == union == set(get_args(ScheduleName)) == set(TABLE["schedules"])
    assert len(kinds) == 5


@some
@given(case=CASE, rows=ROWS, size=SIZE, taken=st.integers(0, 40))
def test_length_is_what_is_yielded_in_every_epoch_and_from_any_position(
    case: dict[str, Any], rows: list[int], size: int, taken: int
) -> None:
    schedule = build(case, rows, size)
    planned = schedule.epoch_batches()
    for epoch in range(schedule.epochs):
        assert (schedule.epoch, len(schedule)) == (epoch, planned[epoch])
        head = list(islice(iter(schedule), min(taken, len(schedule))))
        left = len(schedule)
        assert left == planned[epoch] - len(head)
        assert len(list(schedule)) == left


@some
@given(case=CASE, rows=ROWS, size=SIZE)
def test_coverage_is_what_counting_finds_and_each_task_goes_through_its_batches_in_order(
    case: dict[str, Any], rows: list[int], size: int
) -> None:
    schedule = build(case, rows, size)
    everything: list[Item] = []
    for _ in range(schedule.epochs):
        items = epoch_of(schedule)
        everything += items
        for number, count in enumerate(rows):
            times = seen(items, f"t{number}")
            once = sum(value == 1 for value in times.values())
            told = Seen()
            for name, batch in items:
                if name == f"t{number}":
                    told.add(np.array(batch, dtype=np.int64))
            assert told.coverage(count) == Coverage(once, len(times) - once, count - len(times))
    for number, count in enumerate(rows):
        batches = [found for name, found in everything if name == f"t{number}"]
        stream = made_stream(count, size, seed=number)
        assert batches == [stream.batch(cursor).rows.tolist() for cursor in range(len(batches))]


@some
@given(rows=ROWS, size=SIZE, until=st.sampled_from(["proportional", "all_exhausted"]))
def test_every_row_of_every_task_once_an_epoch(rows: list[int], size: int, until: str) -> None:
    proportional = until == "proportional"
    case = {"kind": "proportional"} if proportional else {"kind": "round_robin", "until": until}
    schedule = build(case, rows, size)
    for _ in range(schedule.epochs):
        items = epoch_of(schedule)
        for number, count in enumerate(rows):
            assert seen(items, f"t{number}") == Counter(lines(count))


@some
@given(rows=ROWS, size=SIZE)
def test_round_robin_ends_with_the_first_task_that_is_through(rows: list[int], size: int) -> None:
    schedule = build({"kind": "round_robin"}, rows, size)
    smallest = -(-min(rows) // size)
    for _ in range(schedule.epochs):
        items = epoch_of(schedule)
        assert [task for task, _ in items] == [f"t{number}" for number in range(len(rows))] * smallest
        for number, count in enumerate(rows):
            if -(-count // size) == smallest:
                assert seen(items, f"t{number}") == Counter(lines(count))


def test_round_robin_drops_tasks_that_are_through_one_by_one() -> None:
    schedule = build({"kind": "round_robin", "until": "all_exhausted"}, [5, 12, 8])
    turns = [task for task, _ in epoch_of(schedule)]
    assert turns == ["t0", "t1", "t2", "t0", "t1", "t2", "t1"]


@some
@given(rows=ROWS, size=SIZE)
def test_loop_to_largest_sees_the_largest_once_and_the_others_evenly(rows: list[int], size: int) -> None:
    schedule = build({"kind": "loop_to_largest"}, rows, size)
    largest = -(-max(rows) // size)
    everything: list[Item] = []
    for _ in range(schedule.epochs):
        items = epoch_of(schedule)
        everything += items
        assert [task for task, _ in items] == [f"t{number}" for number in range(len(rows))] * largest
        for number, count in enumerate(rows):
            if count == max(rows):
                assert seen(items, f"t{number}") == Counter(lines(count))
            times = seen(everything, f"t{number}")
            counts = [times[line] for line in lines(count)]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_temperature_draws_tasks_by_their_size_to_the_power_of_alpha(alpha: float) -> None:
    rows = [400, 100, 25]
    case = {"kind": "temperature", "alpha": alpha, "steps_per_epoch": 6000}
    assert_frequencies(build(case, rows, 64), rows, alpha)


def test_annealed_goes_from_one_alpha_to_the_other() -> None:
    rows = [400, 100, 25]
    schedule = build({"kind": "annealed", "start": 1.0, "end": 0.0, "steps_per_epoch": 6000}, rows, 64, epochs=5)
    assert isinstance(schedule, Annealed)
    assert [schedule.alpha(epoch) for epoch in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    for epoch, alpha in ((0, 1.0), (2, 0.5), (4, 0.0)):
        schedule.epoch = epoch
        assert_frequencies(schedule, rows, alpha)


def assert_frequencies(schedule: Schedule, rows: list[int], alpha: float) -> None:
    batches = np.array([stream.batches for stream in schedule.sources.values()])
    order = schedule.order(batches, np.array(rows, dtype=np.float64), schedule.epoch, np.random.default_rng(5))
    weights = np.array(rows) ** alpha
    counts = np.bincount(order, minlength=len(rows))
    assert len(order) == 6000
    assert chisquare(counts, 6000 * weights / weights.sum()).pvalue > 0.001


def test_annealed_of_one_epoch_starts_at_the_start() -> None:
    schedule = build({"kind": "annealed", "start": 0.9}, [9, 9], epochs=1)
    assert isinstance(schedule, Annealed)
    assert schedule.alpha(0) == 0.9


def test_temperature_takes_as_many_steps_as_see_every_row_once_unless_told() -> None:
    assert len(build({"kind": "temperature"}, [9, 30])) == 3 + 8
    assert len(build({"kind": "temperature", "steps_per_epoch": 5}, [9, 30])) == 5


@some
@given(case=CASE, rows=ROWS, size=SIZE, share=st.floats(0, 1), leave=st.sampled_from([None, 1, 2]))
def test_a_fresh_schedule_goes_on_from_a_state(
    case: dict[str, Any], rows: list[int], size: int, share: float, leave: int | None
) -> None:
    leave = leave if len(rows) > 1 else None
    expected = list(walk(build(case, rows, size), leave))
    taken = round(share * len(expected))
    stopped = build(case, rows, size)
    assert list(islice(walk(stopped, leave), taken)) == expected[:taken]
    state = json.loads(json.dumps(stopped.state_dict()))
    fresh = build(case, rows, size)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    assert (len(fresh), fresh.active) == (len(stopped), stopped.active)
    assert list(walk(fresh, leave)) == expected[taken:]


def test_a_state_of_other_tasks_is_refused() -> None:
    state = build({"kind": "proportional"}, [5]).state_dict()
    with pytest.raises(ValueError, match=r"^cursors: got tasks \['t0'\], expected \['t0', 't1'\]$"):
        build({"kind": "proportional"}, [5, 6]).load_state_dict(state)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_finished_task_does_not_come_again(case: dict[str, Any]) -> None:
    schedule = build(case, [5, 12, 8])
    epoch_of(schedule)
    schedule.finish("t1")
    assert schedule.active == ("t0", "t2")
    assert {task for task, _ in epoch_of(schedule)} <= {"t0", "t2"}
    schedule.finish("t0")
    schedule.finish("t2")
    assert (len(schedule), schedule.active) == (0, ())


def test_a_task_leaves_only_between_epochs() -> None:
    schedule = build({"kind": "proportional"}, [5, 12])
    next(iter(schedule))
    with pytest.raises(ValueError, match=r"^task 't0' can leave the schedule only between epochs; 4 batches are left$"):
        schedule.finish("t0")
    with pytest.raises(ValueError, match=r"^task 'x' is not in the schedule; its tasks are: t0, t1$"):
        schedule.finish("x")
    assert schedule.active == ("t0", "t1")


def test_after_its_last_batch_an_epoch_is_over_even_if_nobody_asked_for_more() -> None:
    schedule = build({"kind": "proportional"}, [5, 12])
    batches = iter(schedule)
    list(islice(batches, len(schedule)))
    schedule.finish("t0")
    assert (schedule.epoch, len(schedule)) == (1, 3)
    assert list(batches) == []
    assert (schedule.epoch, len(schedule)) == (1, 3)
    assert seen(epoch_of(schedule), "t1") == Counter(lines(12))


@pytest.mark.parametrize("kind", [RoundRobin, LoopToLargest])
def test_every_task_groups_one_batch_of_each_task_still_there(kind: type[Schedule]) -> None:
    case = {"kind": "round_robin" if kind is RoundRobin else "loop_to_largest"}
    schedule = build({**case, "every_task": True}, [5, 12, 8])
    assert isinstance(schedule, kind)
    assert (schedule.group, build(case, [5, 12, 8]).group) == (3, 1)
    for tasks in (["t0", "t1", "t2"], ["t0", "t2"]):
        assert schedule.group == len(tasks)
        turns = [task for task, _ in epoch_of(schedule)]
        assert [turns[start : start + len(tasks)] for start in range(0, len(turns), len(tasks))] == [tasks] * (
            len(turns) // len(tasks)
        )
        if "t1" in schedule.active:
            schedule.finish("t1")


@pytest.mark.parametrize("kind", ["proportional", "temperature", "annealed"])
def test_drawn_orders_differ_between_epochs_seeds_and_stages_and_are_equal_for_equal_names(kind: str) -> None:
    case: dict[str, Any] = {"kind": kind}

    def turns(schedule: Schedule) -> tuple[str, ...]:
        return tuple(task for task, _ in epoch_of(schedule))

    schedule = build(case, [60, 60], epochs=3)
    orders = [turns(schedule) for _ in range(3)]
    assert len(set(orders)) == 3
    assert turns(build(case, [60, 60])) == orders[0]
    assert turns(build(case, [60, 60], seed=2)) != orders[0]
    assert turns(build(case, [60, 60], stage="other")) != orders[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_come_in_another_order_in_the_next_epoch(case: dict[str, Any]) -> None:
    schedule = build(case, [60, 60])
    assert epoch_of(schedule) != epoch_of(schedule)


def test_group_is_one_where_it_is_not_an_option() -> None:
    assert build({"kind": "proportional"}, [5, 6]).group == 1
    assert isinstance(build({"kind": "annealed"}, [5, 6]), Temperature)
