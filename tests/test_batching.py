"""Batches: every row once a pass, little padding, and tokens, labels and lines that are those of the source rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothtune.data.batching import PAD_MULTIPLE, BatchStream, Plan, pad, plan_pass
from tests.made_examples import made_column, made_examples, made_stream

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=150)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def all_batches(plan: Plan) -> list[list[int]]:
    return [plan.rows(number).tolist() for number in range(len(plan))]


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_pass_has_every_row_in_one_batch_and_one_batch_smaller(lengths: list[int], size: int, seed: int) -> None:
    batches = all_batches(plan_pass(np.array(lengths), size, stream(seed)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    smaller = [len(batch) for batch in batches if len(batch) != size]
    assert smaller == ([len(lengths) % size] if len(lengths) % size else [])


def test_every_row_stands_in_one_batch_when_there_are_several_windows() -> None:
    lengths = stream().integers(1, 100, 3 * 64 * 4 + 5)
    batches = all_batches(plan_pass(lengths, 4, stream(1)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sorted({len(batch) for batch in batches}) == [1, 4]


def test_lengths_differ_less_inside_batches_than_in_random_ones() -> None:
    lengths = stream().integers(3, 128, 3000)

    def spread(rows: np.ndarray) -> float:
        parts = [lengths[rows[start : start + 16]] for start in range(0, len(rows), 16)]
        return float(np.mean([part.max() - part.min() for part in parts]))

    plan = plan_pass(lengths, 16, stream(2))
    bucketed = float(np.mean([np.ptp(lengths[plan.rows(number)]) for number in range(len(plan))]))
    assert bucketed < spread(stream(3).permutation(3000)) / 10


def test_batches_do_not_come_in_order_of_length() -> None:
    lengths = stream().integers(3, 128, 1024)
    plan = plan_pass(lengths, 16, stream(2))
    means = [lengths[plan.rows(number)].mean() for number in range(len(plan))]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), joint=st.booleans(), limit=st.integers(40, 60))
def test_padded_tokens_are_those_of_the_source_rows(lengths: list[int], joint: bool, limit: int) -> None:
    column = made_column(lengths)
    rows = np.arange(len(lengths))[::-1]
    tokens = pad([(column, rows)], joint, 0, limit)
    assert tokens.input_ids.dtype == torch.int64
    assert tokens.mask.dtype == torch.bool
    width = tokens.input_ids.shape[1]
    assert width == min(limit, -(-max(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE)
    for number, row in enumerate(rows):
        length = lengths[row]
        source = column.ids[column.offsets[row] : column.offsets[row + 1]]
        assert tokens.input_ids[number].tolist() == [*source.tolist(), *[0] * (width - length)]
        assert tokens.mask[number].tolist() == [True] * length + [False] * (width - length)
        if tokens.segments is not None:
            second = length // 2
            expected = [0] * second + [1] * (length - second) + [0] * (width - length)
            assert tokens.segments[number].tolist() == expected
    assert (tokens.segments is not None) == joint


def test_padding_uses_the_given_id_and_never_cuts() -> None:
    column = made_column([3, 12])
    tokens = pad([(column, np.array([0, 1]))], False, 7, 10)
    assert tokens.input_ids.shape == (2, 12)
    assert tokens.input_ids[0, 3:].tolist() == [7] * 9


def test_separate_input_stacks_the_first_texts_and_then_the_second() -> None:
    first, second = made_column([3, 5, 9], seed=1), made_column([11, 2, 4], seed=2)
    examples = made_examples([first, second], reads="separate")
    batch = examples.batch(np.array([2, 0]))
    assert (len(batch), batch.tokens.input_ids.shape) == (2, (4, 16))
    assert batch.tokens.segments is None
    assert batch.tokens.mask.sum(1).tolist() == [9, 3, 4, 11]
    for row, (column, source) in enumerate([(first, 2), (first, 0), (second, 2), (second, 0)]):
        ids = column.ids[column.offsets[source] : column.offsets[source + 1]]
        assert batch.tokens.input_ids[row, : len(ids)].tolist() == ids.tolist()
    assert examples.lengths().tolist() == [11, 5, 9]


def test_joint_input_has_segments() -> None:
    batch = made_examples([made_column([6, 4])], reads="joint").batch(np.array([0, 1]))
    assert batch.tokens.segments is not None
    assert batch.tokens.segments.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]]


def test_labels_and_lines_are_those_of_the_chosen_rows() -> None:
    examples = made_examples([made_column([2, 3, 4, 5, 6, 7, 8])], chosen=[6, 1, 4])
    assert (len(examples), examples.lengths().tolist()) == (3, [8, 3, 6])
    batch = examples.batch(np.array([1, 2]))
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 4]
    assert batch.rows.tolist() == [12, 42]
    assert batch.tokens.mask.sum(1).tolist() == [3, 6]
    assert (batch.task, batch.input) == ("made", "single")


def test_the_stream_goes_through_all_rows_before_it_begins_anew() -> None:
    made = made_stream(23, 5)
    assert (made.rows, made.batches) == (23, 5)
    passes = [[made.positions(5 * number + within).tolist() for within in range(5)] for number in range(3)]
    for batches in passes:
        assert sorted(row for batch in batches for row in batch) == list(range(23))
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("cursor", [0, 7, 3, 12])
def test_a_batch_depends_on_its_cursor_alone(cursor: int) -> None:
    walked = made_stream(23, 5)
    sequence = [walked.batch(number).rows.tolist() for number in range(15)]
    assert made_stream(23, 5).batch(cursor).rows.tolist() == sequence[cursor]
    assert walked.batch(cursor).rows.tolist() == sequence[cursor]


def test_order_has_a_stream_of_its_own_for_each_seed_stage_and_task() -> None:
    examples = made_examples([made_column([4] * 50)])

    def order(seed: int, stage: str) -> list[int]:
        return BatchStream(examples, 50, seed=seed, stage=stage).positions(0).tolist()

    assert order(1, "a") == order(1, "a")
    assert len({tuple(order(seed, stage)) for seed, stage in ((1, "a"), (2, "a"), (1, "b"))}) == 3
