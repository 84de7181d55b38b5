"""Our BERT: agreement with transformers, the perturbation seam, replay, weights under transformers' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

from smoothtune.config.encoder import EncoderOptions
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn.bert import BertEncoder
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.pretrained import find_checkpoint, load_encoder
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Tokens

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}
SENTENCES = [
    "A good film.",
    "How do I learn to cook rice without burning the pot every single time?",
    "The plane is taking off.",
    "Words like 'antidisestablishmentarianism' & naïve café prices (3.50) break into pieces.",
]


def ragged(rows: int = 4, length: int = 11, vocabulary: int = 60, segments: bool = True) -> Tokens:
    source = torch.Generator().manual_seed(3)
    ids = torch.randint(5, vocabulary, (rows, length), generator=source)
    mask = torch.arange(length) < torch.tensor([length, 2, 7, 5])[:rows, None]
    kinds = (torch.arange(length) >= 4).long().expand(rows, length) * mask if segments else None
    return Tokens(ids * mask, mask, kinds)


def build(**changes: object) -> BertEncoder:
    torch.manual_seed(0)
    return BertEncoder({**SHAPE, **changes})


def reference(architecture: dict[str, object], encoder: Encoder) -> BertModel:
    model = BertModel(BertConfig(**architecture), add_pooling_layer=False).eval()
    model.load_state_dict(encoder.hub_state())
    return model


@torch.no_grad()
def far(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    return float((found - expected)[mask].abs().max())


@torch.no_grad()
def plain(model: torch.nn.Module, tokens: Tokens) -> Tensor:
    answer = model(tokens.input_ids, attention_mask=tokens.mask.long(), token_type_ids=tokens.segments)
    return answer.last_hidden_state


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_agrees_with_transformers(activation: str, segments: bool) -> None:
    encoder = build(hidden_act=activation, initializer_range=0.3).eval()
    tokens = ragged(segments=segments)
    expected = plain(reference(encoder.architecture, encoder), tokens)
    assert far(encoder(tokens).states, expected, tokens.mask) < 1e-5
    without_dropout = BertEncoder({**encoder.architecture}, dropout=0.0, attention_dropout=0.0)
    without_dropout.load_state_dict(encoder.state_dict())
    assert without_dropout.training
    assert far(without_dropout(tokens).states, expected, tokens.mask) < 1e-5


def test_bundled_encoder_agrees_with_transformers_on_sentences() -> None:
    folder = find_checkpoint(EncoderOptions())
    encoder = load_encoder(folder, EncoderOptions()).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    texts = tokenizer.encode_batch(SENTENCES)
    tokens = Tokens(torch.tensor([t.ids for t in texts]), torch.tensor([t.attention_mask for t in texts]).bool())
    expected = plain(BertModel.from_pretrained(folder).eval(), tokens)
    assert isinstance(encoder, BertEncoder)
    assert (encoder.width, encoder.depth, encoder.max_tokens) == (384, 6, 512)
    assert sum(p.numel() for p in encoder.parameters()) == 22_565_376
    assert far(encoder(tokens).states, expected, tokens.mask) < 1e-5


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_perturbation(layer: int) -> None:
    encoder, tokens = build(initializer_range=0.2).eval(), ragged()
    with torch.no_grad():
        clean = encoder(tokens, keep_inputs=True)
    assert len(clean.inputs) == encoder.depth
    zero = torch.zeros_like(clean.states, requires_grad=True)
    again = encoder(tokens, perturbation=zero, layer=layer, keep_inputs=True)
    assert torch.equal(again.states, clean.states)
    weights = torch.randn(clean.states.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((again.states * weights).sum(), zero)
    assert gradient[tokens.mask].abs().min() > 0
    moved = encoder(tokens, perturbation=torch.full_like(zero, 0.5) * weights, layer=layer, keep_inputs=True)
    assert far(moved.states, clean.states, tokens.mask) > 1e-2
    assert torch.equal(moved.inputs[layer], clean.inputs[layer] + 0.5 * weights)
    assert all(torch.equal(moved.inputs[k], clean.inputs[k]) for k in range(layer))
    assert encoder(tokens).inputs == ()


def test_layer_zero_is_what_the_embeddings_give() -> None:
    encoder, tokens = build().eval(), ragged()
    assert torch.equal(encoder(tokens, keep_inputs=True).inputs[0], encoder.embeddings(tokens))


def test_impossible_passes_are_refused() -> None:
    encoder, tokens = build(), ragged()
    with pytest.raises(UsageError, match=r"layer 3 does not exist; this encoder has layers 0 to 2"):
        encoder(tokens, layer=3)
    with pytest.raises(UsageError, match=r"layer -1 does not exist"):
        encoder(tokens, layer=-1)
    with pytest.raises(UsageError, match=r"its shape is \(1, 16\), but the input of the layer is \(4, 11, 16\)"):
        encoder(tokens, perturbation=torch.zeros(1, 16))
    long = Tokens(torch.ones(1, 21, dtype=torch.long), torch.ones(1, 21, dtype=torch.bool))
    with pytest.raises(UsageError, match=r"a row of 21 tokens is longer than the 20 .* set encoder\.max_length to 20"):
        encoder(long)


def test_padding_and_neighbours_change_nothing() -> None:
    encoder, tokens = build(initializer_range=0.2).eval(), ragged()
    states = encoder(tokens).states
    for row, length in enumerate(tokens.mask.sum(1).tolist()):
        assert tokens.segments is not None
        part = Tokens(*(x[row : row + 1, :length] for x in (tokens.input_ids, tokens.mask, tokens.segments)))
        assert far(encoder(part).states[0], states[row, :length], part.mask[0]) < 1e-5


def test_one_segment_in_the_checkpoint() -> None:
    encoder = build(type_vocab_size=1).eval()
    assert torch.equal(encoder(ragged()).states, encoder(ragged(segments=False)).states)


def test_a_pass_can_be_replayed() -> None:
    encoder, tokens = build(), ragged()

    def states(name: str) -> Tensor:
        with drawing(Pass(seed=1, stage="s", step=4, name=name)), torch.no_grad():
            return encoder(tokens).states

    assert torch.equal(states("clean"), states("clean"))
    assert not torch.equal(states("clean"), states("second"))


def test_every_parameter_gets_a_gradient() -> None:
    encoder, tokens = build(), ragged()
    with drawing(Pass(seed=1, stage="s", step=0)):
        encoder(tokens).states[tokens.mask].pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16(training: bool) -> None:
    encoder, tokens = build().train(training), ragged()
    with torch.autocast("cpu", torch.bfloat16), drawing(Pass(seed=1, stage="s", step=0)):
        states = encoder(tokens, perturbation=torch.zeros(4, 11, 16)).states
    states[tokens.mask].float().pow(2).sum().backward()
    assert states[tokens.mask].isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    full = encoder.eval()(tokens).states
    with torch.autocast("cpu", torch.bfloat16):
        assert far(encoder(tokens).states.float(), full, tokens.mask) < 0.1


def test_dropout_rates() -> None:
    encoder = BertEncoder(SHAPE, dropout=0.25, attention_dropout=0.0)
    layer = encoder.layers[0]
    assert (encoder.embeddings.dropout.rate, layer.output_drop.rate, layer.attention.dropout.rate) == (0.25, 0.25, 0.0)
    assert layer.attention.dropout.place == "layers.0.attention.dropout"
    assert build(hidden_dropout_prob=0.3).embeddings.dropout.rate == 0.3


def test_depth_of() -> None:
    encoder = build()
    depths = {name: encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    assert depths["embeddings.word.weight"] == depths["embeddings.norm.bias"] == 0
    assert depths["layers.0.attention.qkv.weight"] == 1
    assert depths["layers.2.output_norm.bias"] == 3
    assert set(depths.values()) == {0, 1, 2, 3}
    assert encoder.depth_of("head.weight") == 4


def test_weights_survive_the_way_through_the_names_of_transformers() -> None:
    encoder, other = build(), BertEncoder(SHAPE)
    state = encoder.hub_state()
    assert set(state) == set(BertModel(BertConfig(**SHAPE), add_pooling_layer=False).state_dict())
    other.load_hub_state(state)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), other.parameters(), strict=True))
    next(encoder.parameters()).data.zero_()
    assert state["embeddings.word_embeddings.weight"].abs().sum() > 0


def test_weights_of_an_old_checkpoint_with_a_head() -> None:
    encoder, other = build(), BertEncoder(SHAPE)
    state = {f"bert.{name}": tensor.half() for name, tensor in encoder.hub_state().items()}
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in state.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in old.items()}
    for ignored in ("bert.pooler.dense.weight", "cls.predictions.bias", "bert.embeddings.position_ids"):
        old[ignored] = torch.zeros(1)
    other.load_hub_state(old)
    assert torch.equal(other.layers[1].attention.qkv.weight, encoder.layers[1].attention.qkv.weight.half().float())
    assert torch.equal(other.embeddings.norm.bias, encoder.embeddings.norm.bias)


def test_weights_that_do_not_fit_are_named() -> None:
    state = build().hub_state()
    del state["encoder.layer.0.attention.self.key.bias"]
    state["embeddings.word_embeddings.weight"] = torch.zeros(7, 16)
    state["encoder.layer.3.output.dense.bias"] = torch.zeros(16)
    with pytest.raises(ModelFileError) as caught:
        build().load_hub_state(state)
    assert str(caught.value) == (
        "the weights do not fit config.json; missing: encoder.layer.0.attention.self.key.bias; "
        "misshaped: embeddings.word_embeddings.weight is (7, 16), expected (60, 16); "
        "not of this encoder: encoder.layer.3.output.dense.bias; "
        "use the config.json and the weights of one and the same checkpoint"
    )
    with pytest.raises(ModelFileError, match=r"missing: embeddings\.LayerNorm\.bias, .* and 49 more"):
        build().load_hub_state({})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_act": "swish"}, "hidden_act is 'swish', not one of gelu, gelu_new, relu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', not 'absolute'"),
        ({"model_type": "roberta"}, "model_type is 'roberta', not 'bert'"),
        ({"is_decoder": True}, "is_decoder is true, but an encoder reads in both directions"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
    ],
)
def test_architectures_that_are_not_ours(change: dict[str, object], text: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        build(**change)
    assert str(caught.value) == f'config.json: {text}; set encoder.implementation = "transformers" for this one'


def test_tiny_checkpoint_folder(tmp_path: Path) -> None:
    from tests.tiny import write_bert

    folder = write_bert(tmp_path / "tiny")
    encoder, tokens = load_encoder(folder, EncoderOptions()).eval(), ragged()
    expected = plain(BertModel.from_pretrained(folder).eval(), tokens)
    assert far(encoder(tokens).states, expected, tokens.mask) < 1e-5
