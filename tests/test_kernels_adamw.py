"""Our AdamW against torch's: dense and row-sparse steps, clipping, state, and the tensors it takes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from smoothtune.runtime.kernels import adamw as kernels
from smoothtune.training.adamw import KernelAdamW, clip_gradients, fits

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler: the kernels cannot be built")
SHAPES = [(7,), (64, 300), (3, 5, 7), (200, 257)]


def leaves(seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source).requires_grad_() for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=source) * 0.1 for shape in SHAPES]


def groups(parts: list[Tensor]) -> list[dict[str, object]]:
    return [
        {"params": parts[:2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": parts[2:], "lr": 3e-3, "weight_decay": 0.0},
    ]


def test_dense_steps_are_those_of_torch() -> None:
    ours, theirs = leaves(), leaves()
    mine, reference = KernelAdamW(groups(ours)), torch.optim.AdamW(groups(theirs))
    for step in range(20):
        for one, two, gradient in zip(ours, theirs, gradients(step), strict=True):
            one.grad, two.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=2e-6)
        assert mine.state[one]["step"] == int(reference.state[two]["step"]) == 20
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(mine.state[one][key], reference.state[two][key], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rows_without_a_gradient_move_as_in_the_dense_step(decay: float) -> None:
    source = torch.Generator().manual_seed(1)
    start = torch.randn(50, 24, generator=source)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    mine = KernelAdamW([{"params": [ours], "lr": 1e-2, "weight_decay": decay}])
    reference = KernelAdamW([{"params": [theirs], "lr": 1e-2, "weight_decay": decay}])
    for _ in range(12):
        index = torch.randperm(20, generator=source)[:6].unsqueeze(0)
        ours.grad = torch.sparse_coo_tensor(
            index, torch.randn(6, 24, generator=source), (50, 24), check_invariants=True
        ).coalesce()
        theirs.grad = ours.grad.to_dense()
        mine.step()
        reference.step()
    assert torch.equal(ours, theirs)
    assert (mine.state[ours]["exp_avg_sq"] != 0).any(dim=1).sum() <= 20
    assert torch.equal(ours[20:], start[20:]) == (decay == 0.0)


def test_a_sparse_gradient_added_up_over_passes_is_coalesced() -> None:
    table = torch.ones(5, 4, requires_grad=True)
    piece = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.ones(2, 4), (5, 4), check_invariants=True)
    table.grad = piece + piece
    optimiser = KernelAdamW([{"params": [table], "lr": 0.1, "weight_decay": 0.0}])
    assert clip_gradients(optimiser, None) == pytest.approx((8 * 4.0) ** 0.5)
    optimiser.step()
    assert (table[[1, 3]] < 1).all()
    assert (table[[0, 2, 4]] == 1).all()


@pytest.mark.parametrize("limit", [0.01, 1e6, None])
def test_clipping_is_that_of_torch(limit: float | None) -> None:
    ours, theirs = leaves(), leaves()
    mine, reference = KernelAdamW(groups(ours)), torch.optim.AdamW(groups(theirs))
    for step in range(3):
        for one, two, gradient in zip(ours, theirs, gradients(step), strict=True):
            one.grad, two.grad = gradient.clone(), gradient.clone()
        norm = clip_gradients(mine, limit)
        assert norm == pytest.approx(float(clip_gradients(reference, limit)), rel=1e-5)
        mine.step()
        reference.step()
        assert mine.scale == 1.0
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=2e-6)


def test_a_norm_that_is_not_finite_is_told_and_leaves_no_trace() -> None:
    part = torch.ones(40, requires_grad=True)
    optimiser = KernelAdamW([{"params": [part], "lr": 0.1, "weight_decay": 0.0}])
    part.grad = torch.full((40,), torch.nan)
    assert clip_gradients(optimiser, 1.0) != clip_gradients(optimiser, 1.0)
    part.grad = torch.full((40,), 1e-3)
    clip_gradients(optimiser, 1.0)
    assert optimiser.scale == 1.0


def test_state_goes_through_a_state_dict_to_the_bit() -> None:
    ours, again = leaves(), leaves()
    first, second = KernelAdamW(groups(ours)), KernelAdamW(groups(again))
    for step in range(4):
        for one, gradient in zip(ours, gradients(step), strict=True):
            one.grad = gradient.clone()
        first.step()
    with torch.no_grad():
        for one, two in zip(ours, again, strict=True):
            two.copy_(one)
    second.load_state_dict(deepcopy(first.state_dict()))
    for one, two, gradient in zip(ours, again, gradients(9), strict=True):
        one.grad, two.grad = gradient.clone(), gradient.clone()
    first.step()
    second.step()
    assert all(torch.equal(one, two) for one, two in zip(ours, again, strict=True))


def test_row_sparse_steps_go_on_from_a_state_dict_to_the_bit() -> None:
    source = torch.Generator().manual_seed(2)
    ours = torch.randn(40, 8, generator=source).requires_grad_()
    again = ours.detach().clone().requires_grad_()
    steps = []
    for _ in range(8):
        index = torch.randperm(40, generator=source)[:5].unsqueeze(0)
        values = torch.randn(5, 8, generator=source)
        steps.append(torch.sparse_coo_tensor(index, values, (40, 8), check_invariants=True).coalesce())
    first = KernelAdamW([{"params": [ours], "lr": 1e-2}])
    second = KernelAdamW([{"params": [again], "lr": 1e-2}])
    for number, gradient in enumerate(steps):
        ours.grad = gradient
        first.step()
        if number == 3:
            with torch.no_grad():
                again.copy_(ours)
            second.load_state_dict(deepcopy(first.state_dict()))
        if number > 3:
            again.grad = gradient
            second.step()
    assert torch.equal(ours, again)


def test_what_it_takes() -> None:
    assert fits([torch.zeros(3), torch.zeros(2, 2)])
    assert not fits([torch.zeros(3, dtype=torch.float64)])
    assert not fits([torch.zeros(4, 5).t()])


def test_autograd_notices_that_parameters_have_changed() -> None:
    part = torch.ones(3, 3, requires_grad=True)
    optimiser = KernelAdamW([{"params": [part], "lr": 0.1}])
    loss = (part * part).sum()
    part.grad = torch.ones(3, 3)
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
