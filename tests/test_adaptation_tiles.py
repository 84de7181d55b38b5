"""LoRA and adapters in bfloat16 on the tile unit: prediction in one call for all runs, training inside the products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from smoothtune.nn import adaptation, bottlenecks, narrow
from smoothtune.nn.adaptation import Adaptation, Adaptations
from smoothtune.nn.bert import BertEncoder
from smoothtune.runtime.device import computing_in
from smoothtune.runtime.kernels import bottleneck
from smoothtune.runtime.kernels.bottleneck import Run
from smoothtune.runtime.random import Pass, drawing
from smoothtune.types import Tokens
from tests.test_adaptation import BERT, CPU, far, made, ragged, through

pytestmark = pytest.mark.skipif(
    not bottleneck.available(), reason="the processor has no bfloat16 tiles, or no C++ compiler"
)
WIDE = {**BERT, "hidden_size": 32, "intermediate_size": 64}


def wide() -> BertEncoder:
    torch.manual_seed(0)
    return BertEncoder(WIDE, dropout=0.0, attention_dropout=0.0).eval()


def runs_of(encoder: BertEncoder) -> list[tuple[int, Adaptation]]:
    return [
        (1, made(encoder, task="a", targets=("query", "value"))),
        (2, Adaptation()),
        (2, made(encoder, task="bb", targets=("key", "output", "up", "down"), size=None)),
        (1, made(encoder, task="ccc", targets=None, size=3)),
    ]


def predicted(encoder: BertEncoder, tokens: Tokens, given: Adaptations | None, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(), computing_in(dtype, CPU):
        return encoder(tokens, adaptations=given).states.float()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of runs in every call of the kernel."""
    found: list[int] = []

    def counting(x: Tensor, into: Tensor, runs: Sequence[Run]) -> None:
        found.append(len(runs))
        bottleneck.add(x, into, runs)

    monkeypatch.setattr(adaptation, "bottleneck", SimpleNamespace(add=counting))
    return found


def test_every_run_of_a_mixed_pass_is_answered_as_alone_to_the_bit(calls: list[int]) -> None:
    encoder, tokens = wide(), ragged(6)
    runs = runs_of(encoder)
    together = predicted(encoder, tokens, Adaptations.of(runs), torch.bfloat16)
    assert calls == [2 + 1, 1, 2, 1, 1, 2] * 2  # query, value and key; output; adapters; up; down; adapters: two layers
    begin = 0
    for rows, run in runs:
        part = Tokens(tokens.input_ids[begin : begin + rows], tokens.mask[begin : begin + rows])
        alone = predicted(encoder, part, Adaptations.of([(rows, run)]), torch.bfloat16)
        assert torch.equal(together[begin : begin + rows][part.mask], alone[part.mask])
        begin += rows
    exact = predicted(encoder, tokens, Adaptations.of(runs), torch.float32)
    bare = predicted(encoder, tokens, None, torch.bfloat16)
    assert far(together, exact, tokens.mask) < 0.1 < 0.5 < far(together, bare, tokens.mask)


def test_a_change_of_a_weight_is_seen(calls: list[int]) -> None:
    encoder, tokens = wide(), ragged()
    run = made(encoder, task="a")
    assert run.lora is not None
    assert run.adapters is not None
    given = through(run, tokens)
    last = predicted(encoder, tokens, given, torch.bfloat16)
    assert torch.equal(last, predicted(encoder, tokens, given, torch.bfloat16))
    part = run.lora.at(0, "query")
    assert part is not None
    adapter, dense = run.adapters.at(1, "output"), encoder.layers[1].down
    for weight in (part.a, part.b, adapter.down.weight, adapter.up.bias, dense.bias):
        with torch.no_grad():
            weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
        now = predicted(encoder, tokens, given, torch.bfloat16)
        assert far(now, last, tokens.mask) > 1e-2
        exact = predicted(encoder, tokens, given, torch.float32)
        assert far(now, exact, tokens.mask) < 0.15
        last = now
    assert calls


def test_dropout_in_a_pass_without_gradients_is_drawn(calls: list[int]) -> None:
    encoder, tokens = wide(), ragged()
    run = made(encoder, task="a", size=None, dropout=0.5)
    assert run.lora is not None
    assert bottlenecks.drops(run.lora)
    with drawing(Pass(1, "stage", 3)):
        dropped = predicted(encoder, tokens, through(run, tokens), torch.bfloat16)
    assert calls == []
    run.lora.eval()
    assert far(dropped, predicted(encoder, tokens, through(run, tokens), torch.bfloat16), tokens.mask) > 1e-2
    assert calls


@pytest.fixture
def narrow_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a changed product and an adapter were made in one."""
    found: Counter[str] = Counter()

    def counted(name: str, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counting(*given: object) -> Tensor:
            found[name] += 1
            return inner(*given)

        return counting

    for name, inner in (("changed_product", narrow.changed_product), ("adapted", narrow.adapted)):
        monkeypatch.setattr(narrow, name, counted(name, inner))
    return found


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_in_bfloat16_are_near_those_in_float32(mixed: bool, narrow_calls: Counter[str]) -> None:
    encoder, tokens = wide().requires_grad_(False), ragged()
    runs = [(1, made(encoder, task="a")), (3, made(encoder, task="bb", size=3))] if mixed else [(4, made(encoder))]
    pull = torch.randn(4, 11, 32, generator=torch.Generator().manual_seed(5)) * tokens.mask.unsqueeze(2)

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        with computing_in(dtype, CPU):
            states = encoder(tokens, adaptations=Adaptations.of(runs)).states
        (states.float() * pull).sum().backward()
        parts = [
            part for _, run in runs for module in (run.lora, run.adapters) if module for part in module.parameters()
        ]
        found = [part.grad for part in parts if part.grad is not None]
        for part in parts:
            part.grad = None
        return found

    exact = gradients(torch.float32)
    assert not narrow_calls
    near = gradients(torch.bfloat16)
    # In two layers: one product of query, key and value, and three others, of one task alone; two adapters of each task.
    assert narrow_calls == ({"adapted": 2 * 2 * 2} if mixed else {"changed_product": 2 * 4, "adapted": 2 * 2})
    assert len(exact) == len(near) == len(runs) * 2 * (6 * 2 + 2 * 4)  # layers, parts of LoRA and of adapters
    for one, two in zip(near, exact, strict=True):
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.9
