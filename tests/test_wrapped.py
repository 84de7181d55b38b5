"""Encoders of transformers behind the seam: six families, each made from its configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    T5Config,
)

from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn.wrapped import WrappedEncoder
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Tokens

SHAPE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LIMITED = {**SHAPE, "max_position_embeddings": 24, "initializer_range": 0.2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
CONFIGS = {
    "roberta": RobertaConfig(**LIMITED, type_vocab_size=1, pad_token_id=1),
    "deberta": DebertaV2Config(
        **LIMITED, type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"], conv_kernel_size=3
    ),
    "modernbert": ModernBertConfig(**SHAPE, **SPECIAL, initializer_range=0.2, mlp_dropout=0.1, embedding_dropout=0.1),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24, initializer_range=0.2
    ),
    "electra": ElectraConfig(**LIMITED, embedding_size=8),
    "mpnet": MPNetConfig(**LIMITED, pad_token_id=1),
}
families = pytest.mark.parametrize("family", list(CONFIGS))


def architecture(family: str) -> dict[str, Any]:
    return CONFIGS[family].to_dict()


def build(family: str, **rates: float) -> WrappedEncoder:
    torch.manual_seed(0)
    return WrappedEncoder(architecture(family), **rates)


def ragged(family: str, length: int = 9) -> Tokens:
    pad = CONFIGS[family].pad_token_id
    ids = torch.randint(5, 60, (3, length), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(length) < torch.tensor([length, 2, 6])[:, None]
    segments = (torch.arange(length) >= 4).long().expand(3, length) * mask
    return Tokens(ids.masked_fill(~mask, 0 if pad is None else pad), mask, segments)


@torch.no_grad()
def far(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    return float((found - expected)[mask].abs().max())


@families
def test_agrees_with_the_plain_model(family: str) -> None:
    encoder, tokens = build(family).eval(), ragged(family)
    model = AutoModel.from_config(CONFIGS[family]).eval()
    model.load_state_dict(encoder.hub_state(), strict=False)
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.mask.long()}
    if family == "electra":
        given["token_type_ids"] = tokens.segments
    states = encoder(tokens).states
    assert states.shape == (3, 9, encoder.width) == (3, 9, 16)
    assert encoder.depth == 2
    assert far(states, model(**given).last_hidden_state, tokens.mask) < 1e-5


@families
@pytest.mark.parametrize("layer", [0, 1])
def test_perturbation(family: str, layer: int) -> None:
    encoder, tokens = build(family).eval(), ragged(family)
    with torch.no_grad():
        clean = encoder(tokens, keep_inputs=True)
    assert [x.shape for x in clean.inputs] == [(3, 9, 16)] * 2
    zero = torch.zeros_like(clean.states, requires_grad=True)
    again = encoder(tokens, perturbation=zero, layer=layer)
    assert torch.equal(again.states, clean.states)
    assert again.inputs == ()
    weights = torch.randn(clean.states.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((again.states * weights)[tokens.mask].sum(), zero)
    assert gradient[tokens.mask].abs().min() > 0
    moved = encoder(tokens, perturbation=0.5 * weights, layer=layer, keep_inputs=True)
    assert far(moved.states, clean.states, tokens.mask) > 1e-2
    assert torch.equal(moved.inputs[layer], clean.inputs[layer] + 0.5 * weights)
    with torch.no_grad():
        assert torch.equal(encoder(tokens).states, clean.states)


@families
def test_padding_changes_nothing(family: str) -> None:
    encoder, tokens = build(family).eval(), ragged(family)
    states = encoder(tokens).states
    for row, length in enumerate(tokens.mask.sum(1).tolist()):
        assert tokens.segments is not None
        part = Tokens(*(x[row : row + 1, :length] for x in (tokens.input_ids, tokens.mask, tokens.segments)))
        assert far(encoder(part).states[0], states[row, :length], part.mask[0]) < 1e-5


@families
def test_a_pass_can_be_replayed_and_leaves_the_global_generator_alone(family: str) -> None:
    encoder, tokens = build(family), ragged(family)

    def states(name: str) -> Tensor:
        with drawing(Pass(seed=1, stage="s", step=4, name=name)), torch.no_grad():
            return encoder(tokens).states

    before = torch.get_rng_state()
    first = states("clean")
    torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(first, states("clean"))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, states("second"))


@families
def test_every_parameter_gets_a_gradient(family: str) -> None:
    encoder, tokens = build(family), ragged(family)
    encoder(tokens).states[tokens.mask].pow(3).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@families
def test_rates_override_the_configuration(family: str) -> None:
    encoder, tokens = build(family, dropout=0.0, attention_dropout=0.0), ragged(family)
    assert encoder.training
    assert far(encoder(tokens).states, encoder.eval()(tokens).states, tokens.mask) < 1e-6
    noisy = build(family, dropout=0.5)
    assert far(noisy(tokens).states, noisy.eval()(tokens).states, tokens.mask) > 1e-3
    assert encoder.architecture == architecture(family)


@families
def test_depths_and_weights(family: str) -> None:
    encoder, other = build(family), WrappedEncoder(architecture(family))
    depths = {encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    assert {0, 1, 2} <= depths <= {0, 1, 2, 3}
    assert encoder.depth_of(f"{encoder.layers_path}.1.x.weight") == 2
    prefix = encoder.model.base_model_prefix
    state = {f"{prefix}.{name}": tensor for name, tensor in encoder.hub_state().items()}
    other.load_hub_state({**state, "lm_head.bias": torch.zeros(3), f"{prefix}.pooler.dense.bias": torch.zeros(16)})
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), other.parameters(), strict=True))
    lost = sorted(state)[0]
    with pytest.raises(ModelFileError, match=f"missing: {lost.removeprefix(prefix + '.')}; use the config"):
        other.load_hub_state({name: tensor for name, tensor in state.items() if name != lost})


def test_nothing_of_a_pass_stays_behind_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, tokens = build("roberta").eval(), ragged("roberta")
    bare = encoder(tokens).states
    noise = torch.ones(3, 9, 16)
    for layer in (0, 1):
        with pytest.raises(UsageError, match=r"its shape is \(3, 8, 16\), but the input of the layer is \(3, 9, 16\)"):
            encoder(tokens, perturbation=torch.zeros(3, 8, 16), layer=layer, keep_inputs=True)
        assert not torch.equal(encoder(tokens, perturbation=noise, layer=layer, keep_inputs=True).states, bare)
        assert torch.equal(encoder(tokens).states, bare)
        with monkeypatch.context() as patched:
            patched.setattr(encoder._layers()[1], "forward", _fail)
            with pytest.raises(RuntimeError, match=r"^in the middle$"):
                encoder(tokens, perturbation=noise, layer=layer, keep_inputs=True)
        found = encoder(tokens)
        assert torch.equal(found.states, bare)
        assert not found.inputs


def _fail(*given: Any, **named: Any) -> None:
    raise RuntimeError("in the middle")


def test_limits() -> None:
    limits = {family: build(family).max_tokens for family in CONFIGS}
    assert limits == {"roberta": 22, "deberta": 24, "modernbert": None, "distilbert": 24, "electra": 24, "mpnet": 22}
    with pytest.raises(UsageError, match=r"a row of 23 tokens is longer than the 22 this checkpoint can read"):
        build("roberta")(ragged("roberta", length=23))
    assert build("roberta").eval()(ragged("roberta", length=22)).states.isfinite().all()
    with pytest.raises(UsageError, match=r"layer 2 does not exist; this encoder has layers 0 to 1"):
        build("roberta")(ragged("roberta"), layer=2)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "no-such"}, "transformers has no model_type 'no-such'"),
        ({}, "it has no model_type; add it, or set encoder.implementation"),
        (GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=60).to_dict(), "a model of model_type 'gpt2' has not"),
        (T5Config(num_layers=2, d_model=16, d_ff=16, d_kv=8, num_heads=2, vocab_size=60).to_dict(), "model_type 't5'"),
    ],
)
def test_models_that_are_no_encoders(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelFileError, match=text):
        WrappedEncoder(config)


def test_a_rate_that_does_not_exist() -> None:
    config = {"model_type": "fnet", "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
    with pytest.raises(ModelFileError, match=r"encoder\.attention_dropout: encoders of model_type 'fnet' have no such"):
        WrappedEncoder(config, attention_dropout=0.1)
