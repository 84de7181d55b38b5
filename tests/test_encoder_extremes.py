"""The encoder at extremes: gradients beside large scores against float64, and rows without tokens, by kernels and by torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from smoothtune.nn import fused
from smoothtune.nn.bert import BertEncoder
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Tokens

SCALES = (1.0, 10.0, 100.0, 1e3, 1e4)
# In float32 alone: at large scores the rounding of states to bfloat16 decides which token has all attention.
FACTOR, ROUNDING = 3.0, 2e-6
with_kernels = pytest.mark.skipif(not fused.available(), reason="no C++ compiler: the kernels cannot be built")


def encoder(spread: float = 0.02, seed: int = 0) -> BertEncoder:
    torch.manual_seed(seed)
    return BertEncoder(
        {
            "vocab_size": 90,
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "initializer_range": spread,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "intermediate_size": 96,
        }
    )


def tokens(*lengths: int) -> Tokens:
    mask = torch.arange(max(*lengths, 3)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 90, mask.shape, generator=torch.Generator().manual_seed(3))
    return Tokens(ids * mask, mask, None)


@contextmanager
def plainly() -> Iterator[None]:
    """The plain modules inside, whatever kernels there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "available", lambda: False)
        yield


def gradients(model: BertEncoder, batch: Tokens, scale: float) -> Tensor:
    """Those of all weights, end to end, in float64, of a pass whose embeddings are moved by N(0, 1) times `scale`."""
    wide = next(model.parameters()).dtype
    model.zero_grad()
    draw = torch.Generator().manual_seed(5)
    pull, push = (torch.randn(*batch.mask.shape, model.width, generator=draw).to(wide) for _ in range(2))
    with drawing(Pass(1, "stage", 3)):
        states = model(batch, perturbation=push * scale).states
    (states.to(wide) * pull * batch.mask.unsqueeze(2)).sum().backward()
    return torch.cat([part.grad.double().flatten() for part in model.parameters() if part.grad is not None])


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def exactly(model: BertEncoder, batch: Tokens, scale: float) -> Tensor:
    twin = encoder().double().train(model.training)
    twin.load_state_dict(model.state_dict())
    return gradients(twin, batch, scale)


@with_kernels
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_gradients_beside_large_scores_are_as_near_to_float64_as_those_of_torch(spread: float, scale: float) -> None:
    errors = []
    for seed in range(3):
        model, batch = encoder(spread, seed).eval(), tokens(24, 1, 7, 16, 2, 23)
        exact = exactly(model, batch, scale)
        by_kernels = error(gradients(model, batch, scale), exact)
        with plainly():
            errors.append((by_kernels, error(gradients(model, batch, scale), exact)))
    kernels, plain = (sum(side) / len(errors) for side in zip(*errors, strict=True))
    assert kernels <= FACTOR * plain + ROUNDING


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_of_torch_alone_beside_large_scores_are_those_of_float64(scale: float) -> None:
    model, batch = encoder(0.2).eval(), tokens(24, 1, 7, 16, 2, 23)
    with plainly():
        assert error(gradients(model, batch, scale), exactly(model, batch, scale)) < 3e-4


@with_kernels
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [(6, 0, 3), (0, 1), (0, 0)])
def test_a_row_without_tokens_is_finite_and_the_same_with_and_without_kernels(
    lengths: tuple[int, ...], training: bool
) -> None:
    model, batch = encoder().train(training), tokens(*lengths)
    with drawing(Pass(1, "stage", 3)):
        states = model(batch).states
    by_kernels = gradients(model, batch, 1.0)
    with plainly():
        with drawing(Pass(1, "stage", 3)):
            plain = model(batch).states
        by_torch = gradients(model, batch, 1.0)
    assert states.isfinite().all()
    assert torch.equal(states[[length == 0 for length in lengths]], plain[[length == 0 for length in lengths]])
    torch.testing.assert_close(states, plain, rtol=1e-5, atol=1e-5)
    assert by_torch.isfinite().all()
    torch.testing.assert_close(by_kernels, by_torch, rtol=1e-4, atol=1e-5)
