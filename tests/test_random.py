"""Process-wide state: streams named by numbers, passes that can be replayed, and the device and its dtype."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smoothtune.errors import UsageError
from smoothtune.runtime.device import computing_in, keep_memory_mapped, pick_device, pick_dtype, set_threads
from smoothtune.runtime.random import (
    Pass,
    current_pass,
    drawing,
    keep_mask,
    numpy_stream,
    seeded_globally,
    stream_number,
    torch_stream,
)

CPU = torch.device("cpu")
SHAPE = torch.Size((40, 50))
STEP = Pass(seed=1, stage="together", step=3)


def mask(place: str = "layer.0", rate: float = 0.1, shape: torch.Size = SHAPE) -> torch.Tensor:
    return keep_mask(place, shape, rate, CPU)


def test_a_stream_is_the_same_on_every_machine() -> None:
    assert stream_number(1, "together", "order", "sst", 0) == 3976702738779112013


@given(parts=st.lists(st.integers() | st.sampled_from(["a", "b"]), min_size=1, max_size=5))
def test_stream_numbers_are_seeds(parts: list[object]) -> None:
    assert 0 <= stream_number(*parts) < 2**63
    assert stream_number(*parts) == stream_number(*parts)
    assert stream_number(*parts) != stream_number(*parts, 0)


def test_parts_are_kept_apart() -> None:
    names: list[tuple[object, ...]] = [(1, 23), (12, 3), (123,), ("1", "2", "3"), (1, "2 3"), (3, 12)]
    assert len({stream_number(*name) for name in names}) == len(names)


def test_streams_depend_on_their_name_alone() -> None:
    assert numpy_stream(1, "a").random(5).tolist() == numpy_stream(1, "a").random(5).tolist()
    assert numpy_stream(1, "a").random() != numpy_stream(1, "b").random()
    first, again, other = (torch.rand(5, generator=torch_stream(1, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_pass_can_be_replayed() -> None:
    def masks(current: Pass) -> list[torch.Tensor]:
        with drawing(current):
            return [mask("layer.0"), mask("layer.1"), mask("layer.0")]

    first = masks(STEP)
    torch.rand(3)
    assert all(torch.equal(one, two) for one, two in zip(first, masks(STEP), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize(
    "other",
    [
        Pass(seed=2, stage="together", step=3),
        Pass(seed=1, stage="alone", step=3),
        Pass(seed=1, stage="together", step=4),
        Pass(seed=1, stage="together", step=3, rank=1),
        Pass(seed=1, stage="together", step=3, name="second"),
    ],
    ids=["seed", "stage", "step", "rank", "name"],
)
def test_each_number_of_a_pass_names_other_draws(other: Pass) -> None:
    with drawing(STEP):
        first = mask()
    with drawing(other):
        assert not torch.equal(first, mask())


def test_moving_statistics_does_not_change_the_draws() -> None:
    still = Pass(seed=1, stage="together", step=3, update_statistics=False)
    assert still.number("x") == STEP.number("x")


def test_passes_nest_and_end() -> None:
    inner = Pass(seed=1, stage="together", step=3, name="second")
    assert current_pass() is None
    with drawing(STEP):
        first = mask()
        with drawing(inner):
            assert current_pass() == inner
            mask()
        assert current_pass() == STEP
        second = mask()
    assert current_pass() is None
    with drawing(STEP):
        assert torch.equal(first, mask())
        assert torch.equal(second, mask())


def test_a_pass_ends_at_an_error() -> None:
    with pytest.raises(KeyError), drawing(STEP):
        raise KeyError
    assert current_pass() is None


def test_another_thread_is_not_in_the_pass() -> None:
    found: list[Pass | None] = []
    with drawing(STEP):
        thread = threading.Thread(target=lambda: found.append(current_pass()))
        thread.start()
        thread.join()
    assert found == [None]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.003])
@pytest.mark.parametrize("inside", [True, False], ids=["in a pass", "outside"])
def test_masks_keep_the_right_share(rate: float, inside: bool) -> None:
    shape = torch.Size((300, 1001))
    if inside:
        with drawing(STEP):
            kept = mask(rate=rate, shape=shape)
    else:
        torch.manual_seed(4)
        kept = mask(rate=rate, shape=shape)
    count = shape.numel()
    bound = 4.5 * np.sqrt(count * rate * (1 - rate)) + count / (1 << 16)
    assert abs(int(kept.sum()) - count * (1 - rate)) < bound
    assert (kept.dtype, kept.shape) == (torch.bool, shape)


def test_draws_of_a_mask_are_independent() -> None:
    with drawing(STEP):
        kept = mask(rate=0.5, shape=torch.Size((1 << 16,))).float()
    for lag in (1, 2, 3, 4, 8):
        assert abs(torch.corrcoef(torch.stack([kept[lag:], kept[:-lag]]))[0, 1]) < 4.5 / 256


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 0), (2, 3, 5)])
def test_masks_have_any_shape(shape: tuple[int, ...]) -> None:
    with drawing(STEP):
        assert mask(shape=torch.Size(shape)).shape == shape


def test_rate_zero_keeps_all_and_the_largest_keeps_none() -> None:
    with drawing(STEP):
        assert mask(rate=0.0).all()
        assert not mask(rate=1 - 1e-9).any()


def test_masks_inside_a_pass_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    with drawing(STEP):
        mask()
    assert torch.equal(before, torch.get_rng_state())


def test_the_global_generator_is_seeded_inside_and_restored_after() -> None:
    def draw() -> torch.Tensor:
        with seeded_globally("encoder", CPU):
            return torch.rand(4)

    before = torch.get_rng_state()
    with drawing(STEP):
        first, second = draw(), draw()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    with drawing(STEP):
        assert torch.equal(first, draw())
        assert torch.equal(second, draw())
    assert not torch.equal(first, second)


def test_the_global_generator_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative"), drawing(STEP), seeded_globally("encoder", CPU):
        torch.rand(-4)
    assert torch.equal(before, torch.get_rng_state())


def test_outside_a_pass_the_global_generator_goes_on() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with seeded_globally("encoder", CPU):
        first = torch.rand(1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_the_device_is_what_was_asked_for() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    found = torch.cuda.device_count()
    text = rf"^runtime\.device: got 'cuda:99', but torch finds {found} CUDA devices; use `auto` or `cpu`$"
    with pytest.raises(UsageError, match=text):
        pick_device("cuda:99")


@pytest.mark.parametrize(
    ("asked", "variable", "used"),
    [(2, "1", 2), (None, "1", 1), (None, "3", 3)],
    ids=["count", "variable", "another variable"],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, asked: int | None, variable: str, used: int) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    try:
        assert set_threads(asked) == used == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("variable", ["", "0", "many"])
def test_threads_are_the_cores_where_the_variable_says_nothing(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    try:
        assert set_threads(None) == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("fast", [True, False])
def test_dtype_is_the_one_asked_for_or_what_the_hardware_has(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr("smoothtune.runtime.device.has_bfloat16", lambda _: fast)
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)
    assert (pick_dtype("float32", CPU), pick_dtype("bfloat16", CPU)) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_computed_in_the_dtype_and_parameters_stay(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(3, 2)
    with computing_in(dtype, CPU):
        assert layer(torch.zeros(1, 3)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.zeros(1, 3)).dtype == torch.float32


def test_keeping_memory_changes_no_number() -> None:
    keep_memory_mapped()
    assert torch.ones(1000, 1000).sum() == 1_000_000
