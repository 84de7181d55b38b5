"""LoRA and adapters in the encoder: what they compute, on every path, and what passes and mixed batches make of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DebertaConfig, ModernBertConfig

from smoothtune.config.adaptations import AdapterOptions, LoraOptions, Target
from smoothtune.errors import UsageError
from smoothtune.nn import fused
from smoothtune.nn.adaptation import Adaptation, Adaptations
from smoothtune.nn.bert import BertEncoder
from smoothtune.nn.dropout import name_places
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.fresh import fresh_adapters, fresh_lora
from smoothtune.nn.merging import merged
from smoothtune.nn.wrapped import WrappedEncoder
from smoothtune.runtime.device import computing_in
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Tokens
from tests.test_wrapped import CONFIGS

CPU = torch.device("cpu")
TARGETS: tuple[Target, ...] = ("query", "key", "value", "output", "up", "down")
BERT = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
FAMILIES = ("plain", "kernels", "bert", "roberta", "electra", "distilbert", "deberta", "mpnet")
families = pytest.mark.parametrize("family", FAMILIES)
ours = pytest.mark.parametrize("family", ["plain", "kernels"])


def build(family: str, **rates: float) -> Encoder:
    """An encoder in training mode: our BERT, or one of transformers."""
    if family == "kernels" and not fused.available():
        pytest.skip("no C++ compiler: the kernels cannot be built")
    torch.manual_seed(0)
    if family in ("plain", "kernels"):
        return BertEncoder(BERT, **rates)
    return WrappedEncoder(BERT if family == "bert" else CONFIGS[family].to_dict(), **rates)


@contextmanager
def path_of(family: str) -> Iterator[None]:
    """Inside, our BERT takes the path that `family` names."""
    with pytest.MonkeyPatch.context() as patch:
        if family == "plain":
            patch.setattr(fused, "available", lambda: False)
        yield


def ragged(rows: int = 4, length: int = 11) -> Tokens:
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(length) < torch.tensor([length, 2, 7, 5, 9, 3])[:rows, None]
    return Tokens(ids.masked_fill(~mask, 1), mask, None)


def made(
    encoder: Encoder,
    *,
    targets: tuple[Target, ...] | None = TARGETS,
    size: int | None = 4,
    dropout: float = 0.0,
    task: str = "task",
) -> Adaptation:
    """An adaptation that is no longer fresh; without `targets`, or `size`, one part alone."""
    lora = {} if targets is None else {task: LoraOptions(rank=2, alpha=3.0, targets=targets, dropout=dropout)}
    adapters = {} if size is None else {task: AdapterOptions(size=size)}
    found = Adaptation(fresh_lora(encoder, lora, seed=1).get(task), fresh_adapters(encoder, adapters, seed=1).get(task))
    draws = torch.Generator().manual_seed(len(task))
    for part in (found.lora, found.adapters):
        if part is not None:
            name_places(part)
            for parameter in part.parameters():
                parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=draws))
    return found


def through(adaptation: Adaptation, tokens: Tokens) -> Adaptations | None:
    return Adaptations.of([(len(tokens.mask), adaptation)])


@torch.no_grad()
def far(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    return float((found - expected)[mask].abs().max())


@families
@pytest.mark.parametrize("target", TARGETS)
def test_lora_is_the_encoder_with_changed_weights(family: str, target: Target) -> None:
    encoder, tokens = build(family).eval(), ragged()
    adaptation = made(encoder, targets=(target,), size=None)
    assert adaptation.lora is not None
    with path_of(family), torch.no_grad():
        bare = encoder(tokens).states
        found = encoder(tokens, adaptations=through(adaptation, tokens)).states
        for layer in range(encoder.depth):
            part = adaptation.lora.at(layer, target)
            assert part is not None
            encoder.weight_of(layer, target).add_(part.b @ part.a * (3.0 / 2))
        expected = encoder(tokens).states
    assert far(found, expected, tokens.mask) < 2e-5
    assert far(found, bare, tokens.mask) > 1e-2


@families
@pytest.mark.parametrize("site", ["attention", "output"])
def test_adapters_read_what_a_sub_layer_adds_to_the_residual_sum(family: str, site: str) -> None:
    """An adapter that adds a constant is a bias that differs by it."""
    encoder, tokens = build(family).eval(), ragged()
    adapters = made(encoder, targets=None).adapters
    assert adapters is not None
    constant = torch.linspace(-1, 1, encoder.width)
    for layer in range(encoder.depth):
        for other in ("attention", "output"):
            adapter = adapters.at(layer, other)  # type: ignore[arg-type]
            adapter.up.weight.data.zero_()
            adapter.up.bias.data.copy_(constant if other == site else torch.zeros(encoder.width))
    with path_of(family), torch.no_grad():
        found = encoder(tokens, adaptations=through(Adaptation(None, adapters), tokens)).states
        shifted = encoder.hub_state()
        for layer in range(encoder.depth):
            shifted[f"{encoder.hub_path(layer, 'output' if site == 'attention' else 'down')}.bias"] += constant
        encoder.load_hub_state(shifted)
        expected = encoder(tokens).states
    assert far(found, expected, tokens.mask) < 2e-5


def test_an_adapter_is_a_residual_bottleneck() -> None:
    adapters = made(build("plain"), targets=None).adapters
    assert adapters is not None
    part, y = adapters.at(1, "output"), torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    hidden = F.gelu(y @ part.down.weight.T + part.down.bias)
    torch.testing.assert_close(part(y), y + hidden @ part.up.weight.T + part.up.bias)
    assert (part.down.weight.shape, part.up.weight.shape) == ((4, 16), (16, 4))


@pytest.mark.parametrize("training", [False, True])
def test_every_path_of_our_bert_computes_the_same_and_so_do_transformers(training: bool) -> None:
    """Dropout of LoRA included: its masks are those of the padded batch. Transformers draws its own, so it has none."""
    rate = 0.3 if training else 0.0
    found = {}
    for family in ("plain", "kernels", "bert"):
        encoder, tokens = build(family, dropout=0.0, attention_dropout=0.0), ragged()
        encoder.load_hub_state(build("plain").hub_state())
        adaptation = made(encoder, dropout=rate)
        found[family] = gradients(family, encoder.train(training), adaptation, tokens)
    for family in ("kernels", "bert"):
        assert found[family].keys() == found["plain"].keys()
        for name, expected in found["plain"].items():
            apart = float((found[family][name] - expected).norm() / (expected.norm() + 1e-9))
            assert apart < 1e-4, f"{family} {name}"


def gradients(family: str, encoder: Encoder, adaptation: Adaptation, tokens: Tokens) -> dict[str, Tensor]:
    """States, and the gradients of the adaptation and of a perturbation, with a frozen encoder."""
    encoder.requires_grad_(False)
    pull = torch.randn(*tokens.mask.shape, encoder.width, generator=torch.Generator().manual_seed(5))
    perturbation = torch.zeros_like(pull).requires_grad_()
    with path_of(family), drawing(Pass(1, "stage", 3)):
        given = {"perturbation": perturbation, "layer": 1, "adaptations": through(adaptation, tokens)}
        states = encoder(tokens, **given).states * tokens.mask.unsqueeze(2)
    (states * pull).sum().backward()
    assert perturbation.grad is not None
    found = {"states": states.detach(), "perturbation": perturbation.grad * tokens.mask.unsqueeze(2)}
    for part, module in (("lora", adaptation.lora), ("adapters", adaptation.adapters)):
        assert module is not None
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name
            found[f"{part}.{name}"] = parameter.grad
    return found


@ours
def test_bfloat16_stays_near_float32(family: str) -> None:
    encoder, tokens = build(family).eval(), ragged()
    given = through(made(encoder), tokens)
    with path_of(family), torch.no_grad():
        with computing_in(torch.float32, CPU):
            exact = encoder(tokens, adaptations=given).states
        with computing_in(torch.bfloat16, CPU):
            narrow = encoder(tokens, adaptations=given).states.float()
    assert 1e-4 < far(narrow, exact, tokens.mask) < 0.15


@ours
@pytest.mark.parametrize("layer", [0, 1])
def test_a_pass_that_begins_later_or_wants_some_rows_is_the_whole_pass(family: str, layer: int) -> None:
    encoder, tokens = build(family), ragged()
    given = through(made(encoder, dropout=0.3), tokens)
    change = 0.1 * torch.randn(4, 11, 16, generator=torch.Generator().manual_seed(6))
    wanted = torch.tensor([False, True, False, True])

    def states(**options: Any) -> Tensor:
        with path_of(family), drawing(Pass(1, "stage", 3)), torch.no_grad():
            found: Tensor = encoder(tokens, perturbation=change, layer=layer, adaptations=given, **options).states
        return found

    with path_of(family), drawing(Pass(1, "stage", 3)), torch.no_grad():
        start = encoder(tokens, keep_inputs=True, adaptations=given).inputs[layer]
    whole = states()
    assert far(states(start=start), whole, tokens.mask) < 1e-5
    assert far(states(start=start, rows=wanted), whole, tokens.mask & wanted[:, None]) < 1e-5


@families
def test_a_zero_perturbation_changes_no_bit_and_a_replayed_pass_is_the_same(family: str) -> None:
    encoder, tokens = build(family), ragged()
    given = through(made(encoder, dropout=0.3), tokens)

    def states(name: str, **options: Any) -> Tensor:
        with path_of(family), drawing(Pass(1, "stage", 3, name=name)), torch.no_grad():
            found: Tensor = encoder(tokens, adaptations=given, **options).states
        return found

    assert torch.equal(states("clean"), states("clean"))
    assert far(states("clean"), states("fresh"), tokens.mask) > 1e-3
    encoder.eval()
    zero = torch.zeros(4, 11, 16)
    for layer in range(2):
        assert torch.equal(states("clean", perturbation=zero, layer=layer), states("clean"))


@families
def test_fresh_lora_changes_no_bit_and_fresh_adapters_next_to_nothing(family: str) -> None:
    encoder, tokens = build(family).eval(), ragged()
    lora = fresh_lora(encoder, {"task": LoraOptions(targets=TARGETS)}, seed=1)["task"]
    adapters = fresh_adapters(encoder, {"task": AdapterOptions()}, seed=1)["task"]
    with path_of(family), torch.no_grad():
        bare = encoder(tokens).states
        low = encoder(tokens, adaptations=through(Adaptation(lora), tokens)).states
        near = encoder(tokens, adaptations=through(Adaptation(None, adapters), tokens)).states
    assert torch.equal(bare[tokens.mask], low[tokens.mask])
    assert 0 < far(near, bare, tokens.mask) < 0.1


def test_each_part_is_drawn_from_a_stream_of_its_own() -> None:
    encoder = build("plain")

    def drawn(seed: int, *tasks: str) -> dict[str, Tensor]:
        lora = fresh_lora(encoder, dict.fromkeys(tasks, LoraOptions()), seed=seed)
        adapters = fresh_adapters(encoder, dict.fromkeys(tasks, AdapterOptions(size=3)), seed=seed)
        return {
            f"{kind}.{task}.{name}": part.detach()
            for kind, every in (("lora", lora), ("adapters", adapters))
            for task, module in every.items()
            for name, part in module.named_parameters()
            if part.abs().max() > 0
        }

    alone, beside, other = drawn(1, "sts"), drawn(1, "sst", "sts"), drawn(2, "sts")
    assert len(alone) == 2 * (2 + 4)  # a of query and value; two weights at two sites
    assert all(torch.equal(part, beside[name]) for name, part in alone.items())
    assert not any(torch.equal(part, other[name]) for name, part in alone.items())
    every = [part.flatten()[:8] for part in beside.values()]
    assert len({tuple(part.tolist()) for part in every}) == len(every) == 24


@families
def test_each_run_of_rows_goes_through_its_own_adaptation(family: str) -> None:
    encoder, tokens = build(family).eval(), ragged(6)
    runs = [
        (1, made(encoder, task="a", targets=("query", "value"))),
        (2, Adaptation()),
        (2, made(encoder, task="bb", size=None)),
        (1, made(encoder, task="ccc", targets=None, size=3)),
    ]
    with path_of(family), torch.no_grad():
        together = encoder(tokens, adaptations=Adaptations.of(runs), keep_inputs=True)
        begin = 0
        for rows, adaptation in runs:
            part = Tokens(tokens.input_ids[begin : begin + rows], tokens.mask[begin : begin + rows])
            alone = encoder(part, adaptations=Adaptations.of([(rows, adaptation)]), keep_inputs=True)
            assert far(together.states[begin : begin + rows], alone.states, part.mask) < 1e-5
            assert far(together.inputs[1][begin : begin + rows], alone.inputs[1], part.mask) < 1e-5
            begin += rows
        assert far(together.states, encoder(tokens).states, tokens.mask) > 1e-2


@pytest.mark.parametrize("family", ["plain", "kernels", "bert"])
def test_gradients_of_a_mixed_pass_are_those_of_separate_ones(family: str) -> None:
    encoder, tokens = build(family, dropout=0.0, attention_dropout=0.0).requires_grad_(False), ragged()
    runs = [(1, made(encoder, task="a")), (3, made(encoder, task="bb", size=3))]
    pull = torch.randn(4, 11, 16, generator=torch.Generator().manual_seed(5)) * tokens.mask.unsqueeze(2)

    def collected() -> list[Tensor]:
        modules = [module for _, run in runs for module in (run.lora, run.adapters) if module is not None]
        found = [part.grad.clone() for module in modules for part in module.parameters() if part.grad is not None]
        for module in modules:
            module.zero_grad()
        return found

    with path_of(family):
        (encoder(tokens, adaptations=Adaptations.of(runs)).states * pull).sum().backward()
        together, begin = collected(), 0
        for rows, run in runs:
            part = Tokens(tokens.input_ids[begin : begin + rows], tokens.mask[begin : begin + rows])
            states = encoder(part, adaptations=Adaptations.of([(rows, run)])).states
            (states * pull[begin : begin + rows]).sum().backward()
            begin += rows
    apart = collected()
    assert len(together) == len(apart) == 2 * 2 * (6 * 2 + 2 * 4)  # runs, layers, parts of LoRA and of adapters
    for one, two in zip(together, apart, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_deberta_that_shares_its_keys_with_positions_reads_run_by_run() -> None:
    config = {**CONFIGS["deberta"].to_dict(), "share_att_key": True}
    torch.manual_seed(0)
    encoder, tokens = WrappedEncoder(config).eval(), ragged()
    runs = [(1, made(encoder, task="a")), (3, made(encoder, task="bb"))]
    change = 0.1 * torch.randn(4, 11, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        together = encoder(tokens, perturbation=change, layer=1, adaptations=Adaptations.of(runs), keep_inputs=True)
        part = Tokens(tokens.input_ids[1:], tokens.mask[1:])
        alone = encoder(part, perturbation=change[1:], layer=1, adaptations=Adaptations.of(runs[1:]), keep_inputs=True)
    assert far(together.states[1:], alone.states, part.mask) < 1e-5
    assert far(together.inputs[1][1:], alone.inputs[1], part.mask) < 1e-5


def test_lora_of_such_a_deberta_changes_its_positions_too() -> None:
    """As changed weights do, and as `peft` does."""
    torch.manual_seed(0)
    encoder, tokens = WrappedEncoder({**CONFIGS["deberta"].to_dict(), "share_att_key": True}).eval(), ragged()
    lora = made(encoder, targets=("query", "key"), size=None).lora
    assert lora is not None
    with torch.no_grad():
        found = encoder(tokens, adaptations=through(Adaptation(lora), tokens)).states
        assert far(found, merged(encoder, lora)(tokens).states, tokens.mask) < 2e-5


@families
def test_merged_lora_answers_alike_and_the_encoder_stays_as_it_is(family: str) -> None:
    encoder, tokens = build(family).eval(), ragged()
    lora = made(encoder, size=None).lora
    assert lora is not None
    before = copy.deepcopy(encoder.state_dict())
    with path_of(family), torch.no_grad():
        bare = encoder(tokens).states
        expected = encoder(tokens, adaptations=through(Adaptation(lora), tokens)).states
        twin = merged(encoder, lora)
        assert far(twin(tokens).states, expected, tokens.mask) < 2e-5
        own = {part.data_ptr() for part in encoder.parameters()}
        assert {name for name, part in twin.named_parameters() if part.data_ptr() not in own} == _changed(twin, encoder)
        assert all(torch.equal(part, before[name]) for name, part in encoder.state_dict().items())
        assert torch.equal(encoder(tokens).states, bare)


def _changed(twin: Encoder, encoder: Encoder) -> set[str]:
    before = dict(encoder.named_parameters())
    return {name for name, part in twin.named_parameters() if not torch.equal(part, before[name])}


@pytest.mark.parametrize(
    "config", [ModernBertConfig(**{k: v for k, v in BERT.items() if k not in ("model_type", "max_position_embeddings")},
                                pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
               DebertaConfig(**{k: v for k, v in BERT.items() if k != "model_type"})]
)  # fmt: skip
def test_encoders_of_another_layout_are_refused(config: Any) -> None:
    encoder = WrappedEncoder(config.to_dict())
    expected = (
        f"lora, adapters: smoothtune does not know where the layers of model_type {config.model_type!r} have their products "
        "for query, key, value, output, up and down; it knows BERT, RoBERTa, ELECTRA, DistilBERT, MPNet, DeBERTa v2 and v3, "
        "and what is built like them; choose such an encoder, or train neither"
    )
    for make, options in ((fresh_lora, LoraOptions()), (fresh_adapters, AdapterOptions())):
        with pytest.raises(UsageError) as caught:
            make(encoder, {"task": options}, seed=1)  # type: ignore[operator]
        assert str(caught.value) == expected
    assert fresh_adapters(encoder, {}, seed=1) == {}


def test_without_adaptations_the_pass_is_that_of_the_bare_encoder() -> None:
    assert Adaptations.of([(3, Adaptation()), (1, Adaptation())]) is None
