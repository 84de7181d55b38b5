"""The encoder on packed tokens with kernels against the plain modules: states, gradients, masks, prepared weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smoothtune.errors import UsageError
from smoothtune.nn import fused
from smoothtune.nn.bert import BertEncoder
from smoothtune.nn.packing import Packing
from smoothtune.nn.products import prepared, product
from smoothtune.runtime.device import computing_in
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Tokens

pytestmark = pytest.mark.skipif(not fused.available(), reason="no C++ compiler: the kernels cannot be built")
CPU = torch.device("cpu")
SHAPE = {"vocab_size": 90, "num_hidden_layers": 3, "max_position_embeddings": 40, "initializer_range": 0.2}
SIZES = [(16, 2, 24), (64, 2, 96), (96, 4, 128)]


def build(width: int, heads: int, inner: int, **changes: object) -> BertEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
    return BertEncoder({**SHAPE, **sizes, **changes})


def ragged(segments: bool = True) -> Tokens:
    source = torch.Generator().manual_seed(3)
    lengths = torch.tensor([24, 1, 7, 16, 2, 23])
    mask = torch.arange(24) < lengths[:, None]
    ids = torch.randint(5, 90, mask.shape, generator=source) * mask
    return Tokens(ids, mask, (torch.arange(24) >= 9).long().expand_as(ids) * mask if segments else None)


@contextmanager
def plainly() -> Iterator[None]:
    """The plain modules inside, whatever kernels there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "available", lambda: False)
        yield


def gradients(encoder: BertEncoder, tokens: Tokens, dtype: torch.dtype) -> dict[str, Tensor]:
    """States, the perturbation's gradient and those of all parameters, of one named pass."""
    encoder.zero_grad()
    pull = torch.randn(*tokens.mask.shape, encoder.width, generator=torch.Generator().manual_seed(5))
    perturbation = torch.zeros_like(pull).requires_grad_()
    with drawing(Pass(1, "stage", 3)), computing_in(dtype, CPU):
        states = encoder(tokens, perturbation=perturbation, layer=1).states
    states = states.float() * tokens.mask.unsqueeze(2)
    (states * pull).sum().backward()
    assert perturbation.grad is not None
    found = {"states": states.detach(), "perturbation": perturbation.grad * tokens.mask.unsqueeze(2)}
    return found | {name: part.grad.clone() for name, part in encoder.named_parameters() if part.grad is not None}


@torch.no_grad()
def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / (two.norm() + 1e-9))


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative distance; a key's bias has no gradient but rounding noise, so its thirds are left out."""
    assert found.keys() == expected.keys()
    return max(apart(found[name], expected[name]) for name in found if not name.endswith("qkv.bias"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize(("width", "heads", "inner"), SIZES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_float32_agrees_with_the_plain_modules_dropout_included(
    width: int, heads: int, inner: int, activation: str, segments: bool, training: bool
) -> None:
    encoder = build(width, heads, inner, hidden_act=activation).train(training)
    found = gradients(encoder, ragged(segments), torch.float32)
    with plainly():
        expected = gradients(encoder, ragged(segments), torch.float32)
    assert worst(found, expected) < 2e-5


@pytest.mark.parametrize(("width", "heads", "inner"), SIZES)
def test_bfloat16_is_no_farther_from_float32_than_autocast_is(width: int, heads: int, inner: int) -> None:
    encoder = build(width, heads, inner)
    found = gradients(encoder, ragged(), torch.bfloat16)
    with plainly():
        exact, autocast = (gradients(encoder, ragged(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert worst(found, exact) < 2.5 * worst(autocast, exact)
    assert worst(found, exact) > 1e-4  # it did compute in bfloat16


def test_the_same_pass_gives_the_same_bits_and_another_other_masks() -> None:
    encoder = build(64, 2, 96)
    first, again = (gradients(encoder, ragged(), torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with drawing(Pass(1, "stage", 4)):
        other = encoder(ragged()).states
    assert apart(other * ragged().mask.unsqueeze(2), first["states"]) > 1e-2


def test_layer_inputs_and_a_perturbation_of_zero() -> None:
    encoder = build(64, 2, 96).eval()
    tokens = ragged()
    kept = encoder(tokens, keep_inputs=True)
    with plainly():
        expected = encoder(tokens, keep_inputs=True)
    assert len(kept.inputs) == encoder.depth
    for one, two in zip(kept.inputs, expected.inputs, strict=True):
        assert apart(one * tokens.mask.unsqueeze(2), two * tokens.mask.unsqueeze(2)) < 1e-5
    for layer in range(encoder.depth):
        moved = encoder(tokens, perturbation=torch.zeros(6, 24, 64), layer=layer)
        assert torch.equal(moved.states, kept.states)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_word_table_may_have_a_sparse_gradient(sparse: bool) -> None:
    encoder = build(16, 2, 24)
    encoder.give_sparse_gradients(sparse)
    found = gradients(encoder, ragged(), torch.float32)["embeddings.word.weight"]
    encoder.give_sparse_gradients(False)
    dense = gradients(encoder, ragged(), torch.float32)["embeddings.word.weight"]
    assert found.is_sparse == sparse
    assert torch.equal(found.to_dense(), dense)


def test_frozen_parameters_get_no_gradient_and_the_rest_does() -> None:
    encoder = build(64, 2, 96)
    for name, part in encoder.named_parameters():
        part.requires_grad_(name.startswith("layers.2"))
    states = encoder(ragged()).states
    states.square().sum().backward()
    assert all((part.grad is not None) == name.startswith("layers.2") for name, part in encoder.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepared_weight_is_made_once_per_change(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 32, requires_grad=True)
    first = prepared(weight, dtype)
    assert prepared(weight, dtype) is first
    x = torch.randn(40, 32).to(dtype)
    before = product(x, weight)
    with torch.no_grad():
        weight.mul_(2)
    assert prepared(weight, dtype) is not first
    assert torch.equal(product(x, weight), before * 2)


def test_weights_of_two_dtypes_and_of_any_layout_are_kept_side_by_side() -> None:
    weight = torch.randn(32, 64).t()
    x = torch.randn(10, 32)
    assert apart(product(x, weight), x @ weight.t()) < 1e-6
    assert apart(product(x.bfloat16(), weight).float(), x @ weight.t()) < 1e-2
    first = [prepared(weight, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert first == [prepared(weight, dtype) for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("table", ["token id 90", "segment 2"])
def test_ids_that_no_table_has_are_refused(table: str) -> None:
    encoder, tokens = build(16, 2, 24), ragged()
    ids, segments = tokens.input_ids.clone(), tokens.segments
    assert segments is not None
    if table.startswith("token"):
        ids[0, 3] = 90
    else:
        segments = segments * 2
    with pytest.raises(UsageError, match=f"encoder: {table} is not in its table of"):
        encoder(Tokens(ids, tokens.mask, segments))


def test_a_replaced_or_hooked_part_is_called() -> None:
    encoder = build(64, 2, 96).eval()
    expected = encoder(ragged()).states
    seen: list[int] = []
    handle = encoder.layers[1].up.register_forward_hook(lambda *_: seen.append(1))
    assert apart(encoder(ragged()).states * ragged().mask.unsqueeze(2), expected) < 1e-5
    assert seen
    handle.remove()
    encoder.layers[0].down = torch.nn.Sequential(encoder.layers[0].down, torch.nn.Tanh())
    assert apart(encoder(ragged()).states * ragged().mask.unsqueeze(2), expected) > 1e-3


def test_packing_goes_there_and_back() -> None:
    tokens = ragged()
    packing = Packing.of(tokens.mask)
    states = torch.randn(6, 24, 8)
    packed = packing.pack(states)
    assert packed.shape == (int(tokens.mask.sum()), 8)
    assert packing.starts.tolist() == [0, 24, 25, 32, 48, 50, 73]
    assert packing.within[:25].tolist() == [*range(24), 0]
    assert torch.equal(packing.unpack(packed), states * tokens.mask.unsqueeze(2))


def stand_in(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *_: object) -> Tensor:
    """What torch's attention over rows of any length computes, row by row."""
    out = torch.empty_like(value)
    for begin, end in pairwise(starts.tolist()):
        q, k, v = (part[begin:end].transpose(0, 1) for part in (query, key, value))
        out[begin:end] = F.scaled_dot_product_attention(q, k, v).transpose(0, 1)
    return out


def test_the_gpu_path_on_packed_tokens_agrees_with_the_plain_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(64, 2, 96, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    with plainly():
        expected = gradients(encoder, ragged(), torch.float32)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
        monkeypatch.setattr(BertEncoder, "_reads_ragged", lambda self: True)
        found = gradients(encoder, ragged(), torch.float32)
    assert worst(found, expected) < 2e-5
