"""A model whose tasks have LoRA and adapters: the house test, regularisers' passes, mixed batches, merging, the folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.inference.answering import answer_examples, answer_tasks
from smoothtune.inference.mixed import answer_mixed
from smoothtune.inference.model import Model
from smoothtune.nn import fused
from smoothtune.nn.folder import read_model_folder
from smoothtune.nn.mixing import mixed
from smoothtune.objective.look import Look, Regulariser
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.runtime.random import Pass
from smoothtune.training.loop import put_frozen_to_rest
from smoothtune.training.step import StepModule, StepName
from tests.adapted import KINDS, LORA, MIXED_ADAPTERS, MIXED_LORA, adapted, stir, write
from tests.small_data import TASKS, Always, Prepared, changed, first_rows, snapshot, steps
from tests.test_house import padded

ENCODERS = ("plain", "kernels", "transformers")
STEPS = 8
SMOOTH = {"none": [], "smoothness": [{"kind": "smoothness", "preset": "exact", "weight": 0.1}]}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture(params=ENCODERS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the encoder is made of; our BERT with and without kernels."""
    if request.param == "kernels" and not fused.available():
        pytest.skip("no C++ compiler: the kernels cannot be built")
    if request.param == "plain":
        monkeypatch.setattr(fused, "available", lambda: False)
    return "transformers" if request.param == "transformers" else "native"


def house(encoder: Path, data: Path, cache: Path, kind: str, implementation: str) -> Prepared:
    """All three tasks, 16 rows in one batch each; adaptations and outputs train, everything else is frozen."""
    parts = list(KINDS[kind])
    rates = {"encoder": 1e-3, "trunks": 1e-3, "outputs": 5e-3, "adaptations": 1e-2}
    return adapted(
        encoder, data, cache, implementation=implementation, **KINDS[kind], train=[*parts, "outputs"],
        batch_size=16, warmup=0.0, learning_rate=rates, stop={"max_epochs": STEPS},
    )  # fmt: skip


def regularisers(name: str) -> tuple[Regulariser, ...]:
    chosen = [TypeAdapter(RegulariserOptions).validate_python(row) for row in SMOOTH[name]]
    return build_regularisers(chosen, depth=2)


@every_kind
@pytest.mark.parametrize("smooth", list(SMOOTH))
def test_the_loss_falls_what_trains_learns_and_the_rest_does_not_move_by_a_bit(
    kind: str, smooth: str, implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = house(tiny_encoder, small_data, shared_cache, kind, implementation)
    before = snapshot(prepared.model)
    events = list(prepared.run(rows=16, regularisers=regularisers(smooth)).events())
    for task in TASKS:
        losses = [step.losses[task]["unweighted"] for step in steps(events) if task in step.losses]
        assert len(losses) == STEPS
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] < losses[0]
        if smooth != "none":
            terms = [step.losses[task]["smoothness"] for step in steps(events) if task in step.losses]
            assert all(term > 0 for term in terms)
    moved = changed(prepared.model, before)
    trained = {name for name in before if name.partition(".")[0] in (*KINDS[kind], "outputs")}
    assert moved == trained
    assert len({name for name in moved if name.startswith(tuple(KINDS[kind]))}) == _count(kind)


def _count(kind: str) -> int:
    """Tensors of three tasks in two layers: a and b of query and value; four of each of two bottlenecks."""
    return 3 * 2 * sum({"lora": 2 * 2, "adapters": 2 * 4}[part] for part in KINDS[kind])


@every_kind
@pytest.mark.parametrize("smooth", list(SMOOTH))
def test_gradients_reach_all_of_the_task_that_trains_and_nothing_else(
    kind: str, smooth: str, implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = house(tiny_encoder, small_data, shared_cache, kind, implementation)
    stir(prepared.model)
    for name, part in prepared.model.named_parameters():
        part.requires_grad_(name.startswith(("lora.", "adapters.", "outputs.")))
    module = step_module(prepared, regularisers(smooth))
    put_frozen_to_rest(module)
    assert not prepared.model.encoder.training
    assert all(part.training for part in (prepared.model.lora, prepared.model.adapters) if list(part.parameters()))
    for task, examples in prepared.train.items():
        prepared.model.zero_grad(set_to_none=True)
        parts = module(examples.batch(np.arange(16)), StepName(0, "s", 0, 0, 0.0))
        sum(value for name, value in parts.items() if name != "unweighted").backward()
        reached = {name for name, part in prepared.model.named_parameters() if part.grad is not None}
        own = tuple(f"{part}.{task}." for part in (*KINDS[kind], "outputs"))
        assert reached == {name for name, _ in prepared.model.named_parameters() if name.startswith(own)}
        moved = {name for name, part in prepared.model.named_parameters() if part.grad is not None and part.grad.any()}
        assert moved == reached


def step_module(prepared: Prepared, chosen: tuple[Regulariser, ...] = ()) -> StepModule:
    weighting = WeightingProduct(("none",), {name: TaskFacts(40, 1.0) for name in TASKS})
    return StepModule(prepared.model.train(), weighting, dtype=torch.float32, regularisers=chosen)


@every_kind
def test_save_load_and_same_predictions_to_the_bit(
    kind: str, implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    prepared = house(tiny_encoder, small_data, shared_cache, kind, implementation)
    bare = {task: logits(prepared, task) for task in TASKS}
    stir(prepared.model)
    loaded = read_model_folder(write(prepared, tmp_path / "model", **KINDS[kind]))
    assert not changed(loaded.model, snapshot(prepared.model))
    assert (loaded.config.lora, loaded.config.adapters) == (
        KINDS[kind].get("lora", {}), KINDS[kind].get("adapters", {})
    )  # fmt: skip
    for task, examples in prepared.dev.items():
        found = answer_examples(loaded.model, examples, dtype=torch.float32, batch_size=8)
        assert np.array_equal(found, logits(prepared, task)), task
        assert np.abs(found - bare[task]).max() > 1e-3, task


def logits(prepared: Prepared, task: str) -> np.ndarray:
    return answer_examples(prepared.model, prepared.dev[task], dtype=torch.float32, batch_size=8)


@every_kind
def test_one_example_is_its_row_in_a_batch_and_padding_changes_nothing(
    kind: str, implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = house(tiny_encoder, small_data, shared_cache, kind, implementation)
    stir(prepared.model)
    model = prepared.model.eval()
    for examples in prepared.dev.values():
        batch = examples.batch(np.arange(8))
        together = model(batch).logits
        alone = torch.cat([model(examples.batch(np.array([row]))).logits for row in range(8)])
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(padded(batch, 7)).logits, together, rtol=1e-5, atol=1e-5)


def four_steps(prepared: Prepared, again: bool) -> dict[str, Tensor]:
    """All weights after four plain steps; `again`: after the first they go through a saved copy."""
    chosen = regularisers("smoothness")
    module = step_module(prepared, chosen)
    for number in range(4):
        if number == 1 and again:
            saved = snapshot(prepared.model)
            stir(prepared.model)
            prepared.model.load_state_dict(saved)
        parts = module(prepared.train["same"].batch(np.arange(8)), StepName(0, "s", number, 0, number / 4))
        prepared.model.zero_grad(set_to_none=True)
        (parts["task"] + parts["smoothness"]).backward()
        with torch.no_grad():
            for part in prepared.model.parameters():
                if part.grad is not None:
                    part.sub_(0.01 * part.grad)
    return snapshot(prepared.model)


def test_stopped_after_step_1_and_resumed_is_never_stopped(
    implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    lora = dict.fromkeys(TASKS, LORA.model_copy(update={"dropout": 0.2}))
    ends = [
        four_steps(
            adapted(tiny_encoder, small_data, shared_cache, implementation=implementation, lora=lora, dropout=0.1),
            again,
        )
        for again in (False, True)
    ]
    assert all(torch.equal(part, ends[1][name]) for name, part in ends[0].items())


class Seen(Always):
    """Keeps its Look."""

    name = "seen"
    layers = (0, 1)

    def __call__(self, look: Look) -> tuple[Tensor, dict[str, float]]:
        raise AssertionError("nothing calls it")


def looked(prepared: Prepared, task: str) -> Look:
    batch = prepared.train[task].batch(np.arange(6))
    return step_module(prepared).looked(batch, Pass(1, "s", 0), Seen(), 0.0)


@pytest.fixture
def with_dropout(implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    """LoRA with dropout and adapters, in an encoder with dropout, some time after the start."""
    lora = dict.fromkeys(TASKS, LORA.model_copy(update={"dropout": 0.3}))
    prepared = adapted(
        tiny_encoder, small_data, shared_cache,
        implementation=implementation, lora=lora, adapters=KINDS["both"]["adapters"], dropout=0.1,
    )  # fmt: skip
    stir(prepared.model)
    return prepared


@pytest.mark.parametrize("task", TASKS)
def test_passes_of_a_regulariser_go_through_the_adaptations_of_the_task(with_dropout: Prepared, task: str) -> None:
    look = looked(with_dropout, task)
    zero = torch.zeros_like(look.states_at(1))
    for layer in (0, 1):
        torch.testing.assert_close(look.logits_of(zero, layer=layer), look.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(look.logits_of(), look.logits, rtol=0, atol=0)
    assert (look.logits_of(dropout="fresh") - look.logits).abs().max() > 1e-4
    off = look.logits_of(dropout="off")
    torch.testing.assert_close(off, look.logits_of(dropout="off"), rtol=0, atol=0)
    assert (off - look.logits).abs().max() > 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_narrowed_looks_keep_the_masks_of_lora(with_dropout: Prepared, task: str) -> None:
    look, chosen = looked(with_dropout, task), torch.tensor([4, 1])
    change = 0.1 * torch.randn(look.states_at(0).shape, generator=torch.Generator().manual_seed(1))
    for layer in (0, 1):
        whole = look.logits_of(change, layer=layer)[chosen]
        torch.testing.assert_close(look.narrowed(chosen).logits_of(change, layer=layer), whole, rtol=1e-4, atol=1e-5)


def test_other_weights_of_an_adaptation_answer_as_if_they_were_its_own(with_dropout: Prepared) -> None:
    model, look = with_dropout.model, looked(with_dropout, "mood")
    names = [name for name, _ in model.named_parameters() if name.startswith(("lora.mood.", "adapters.mood."))]
    before = snapshot(model)
    weights = {name: 0.5 * before[name] for name in names}
    other = look.logits_of(weights=weights, dropout="off").detach()
    assert not changed(model, before)
    assert (other - look.logits_of(dropout="off")).abs().max() > 1e-4
    model.load_state_dict({**before, **weights})
    torch.testing.assert_close(looked(with_dropout, "mood").logits_of(dropout="off"), other, rtol=1e-5, atol=1e-6)
    assert set(names) <= set(look.weights())


def test_without_learning_no_gradient_reaches_an_adaptation(with_dropout: Prepared) -> None:
    look = looked(with_dropout, "same")
    change = torch.zeros_like(look.states_at(0)).requires_grad_()
    with_dropout.model.zero_grad(set_to_none=True)
    look.logits_of(change, learn=False).sum().backward()
    assert change.grad is not None
    assert change.grad.abs().max() > 0
    assert [name for name, part in with_dropout.model.named_parameters() if part.grad is not None] == []


@pytest.fixture
def three(implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Prepared:
    """mood with LoRA and adapters, same with LoRA alone, near with adapters alone."""
    prepared = adapted(
        tiny_encoder, small_data, shared_cache,
        implementation=implementation, lora=MIXED_LORA, adapters=MIXED_ADAPTERS,
    )  # fmt: skip
    stir(prepared.model)
    return prepared


def counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every pass of the encoder from now on."""
    rows: list[int] = []
    forward = model.encoder.forward

    def counting(tokens: Any, **options: Any) -> Any:
        rows.append(len(tokens.mask))
        return forward(tokens, **options)

    monkeypatch.setattr(model.encoder, "forward", counting)
    return rows


def test_a_mixed_batch_goes_through_one_pass_and_answers_as_each_task_alone(
    three: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = three.model.eval()
    batches = [three.dev[task].batch(np.arange(size)) for task, size in (("near", 3), ("mood", 7), ("same", 5))]
    with torch.inference_mode():
        expected = {batch.task: model(batch).logits for batch in batches}
        passes = counted(model, monkeypatch)
        found = model.mixed_answers(mixed(batches).to(torch.device("cpu")))
    assert passes == [2 * 3 + 7 + 2 * 5]
    assert list(found) == ["near", "mood", "same"]
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, rtol=1e-5, atol=1e-5)


def test_texts_of_several_tasks_are_answered_in_their_order(three: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {task: logits(three, task) for task in TASKS}
    passes = counted(three.model, monkeypatch)
    found = answer_mixed(three.model, three.dev, dtype=torch.float32)
    assert len(passes) == 1
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], rtol=1e-5, atol=1e-5)
    small = answer_mixed(three.model, three.dev, dtype=torch.float32, batch_size=7)
    assert len(passes) == 1 + math.ceil(sum(map(len, three.dev.values())) / 7)
    for task in TASKS:
        np.testing.assert_allclose(small[task], expected[task], rtol=1e-5, atol=1e-5)
    one = {"mood": three.dev["mood"], "near": first_rows(three.dev["near"], 0)}
    assert {task: len(part) for task, part in answer_mixed(three.model, one, dtype=torch.float32).items()} == {
        "mood": 20,
        "near": 0,
    }


def test_tasks_of_the_same_texts_share_a_pass_and_those_of_the_bare_encoder_its_rows(
    implementation: str, tiny_encoder: Path, small_data: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = adapted(tiny_encoder, small_data, shared_cache, implementation=implementation)
    assert prepared.model.sharing(("near", "same")) == [("near", "same")]
    passes = counted(prepared.model, monkeypatch)
    answer_tasks(prepared.model, prepared.dev["same"], ("near", "same"), dtype=torch.float32)
    assert passes == [2 * 20]


def test_tasks_of_the_same_texts_with_their_own_adaptations_have_rows_of_their_own(
    three: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert three.model.sharing(("near", "same")) == [("near",), ("same",)]
    examples = three.dev["same"]
    expected = logits(three, "same")
    passes = counted(three.model, monkeypatch)
    found = answer_tasks(three.model, examples, ("near", "same"), dtype=torch.float32)
    assert passes == [2 * 2 * 20]
    np.testing.assert_allclose(found["same"], expected, rtol=1e-5, atol=1e-5)


TEXTS: Mapping[str, Any] = {
    "mood": ["the very small cat", "rain"],
    "near": [("one two three", "two three four"), ("the sun", "a moon")],
    "same": [("slow fast", "slow fast")],
}


def test_the_model_of_a_folder_answers_mixed_texts(three: Prepared, tmp_path: Path) -> None:
    model = Model.load(write(three, tmp_path / "model", lora=MIXED_LORA, adapters=MIXED_ADAPTERS), device="cpu")
    found = model.predict_mixed(TEXTS)
    assert list(found) == list(TEXTS)
    assert found["mood"] == model.predict("mood", TEXTS["mood"])
    assert found["same"] == model.predict("same", TEXTS["same"])
    np.testing.assert_allclose(found["near"], model.predict("near", TEXTS["near"]), rtol=1e-5, atol=1e-5)
    assert model.predict_mixed({"mood": [], "near": []}) == {"mood": [], "near": []}
    assert model.predict_mixed({"mood": [], "same": TEXTS["same"]})["same"] == found["same"]


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["mood"], None, "texts: got list, expected texts by task: {task: texts, ...}"),
        ({}, None, "tasks: got (), expected a list of names among mood, same, near"),
        ({"moood": ["a"]}, None, "this model has no task 'moood'; its tasks: mood, same, near"),
        ({"mood": ["a", " "]}, None, "task 'mood', text 1: is empty, got ' '; give a text or leave it out"),
        ({"mood": 5}, None, "task 'mood': expected a list of texts, got int"),
        ({"same": ["a"]}, None, "task 'same', text 0: expected two strings, got 'a'"),
        ({"mood": ["a"]}, 0, "batch_size: got 0, expected at least 1"),
    ],
)
def test_mixed_texts_that_cannot_be_answered(
    texts: Any, size: int | None, message: str, three: Prepared, tmp_path: Path
) -> None:
    model = Model.load(write(three, tmp_path / "model", lora=MIXED_LORA, adapters=MIXED_ADAPTERS), device="cpu")
    with pytest.raises(UsageError) as caught:
        model.predict_mixed(texts, batch_size=size)
    assert str(caught.value) == message


def test_a_merged_model_answers_alike_and_leaves_its_origin_as_it_is(three: Prepared, tmp_path: Path) -> None:
    before, expected = snapshot(three.model), logits(three, "mood")
    origin, three.model = three.model, three.model.merge("mood")
    assert three.model.merged == "mood"
    assert {name.partition(".")[0] for name in changed(three.model, before)} == {"encoder"}
    np.testing.assert_allclose(logits(three, "mood"), expected, rtol=1e-5, atol=1e-5)
    for wrong, message in (
        (
            lambda: logits(three, "near"),
            "task 'near': the LoRA of 'mood' is merged; no other task answers inside `merged`",
        ),
        (lambda: three.model.merge("same"), "merge: the LoRA of 'mood' is merged already; leave that `merged` first"),
        (
            lambda: write(three, tmp_path / "model", lora=MIXED_LORA, adapters=MIXED_ADAPTERS),
            f"{tmp_path / 'model'}: the LoRA of task 'mood' is merged into the encoder; write outside `merged`",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert str(caught.value) == message
    three.model = origin
    assert three.model.merged is None
    assert not changed(three.model, before)
    assert np.array_equal(logits(three, "mood"), expected)
    with pytest.raises(UsageError, match=r"^merge: task 'near' has no LoRA; tasks that have: mood, same$"):
        three.model.merge("near")


def test_a_model_is_merged_for_a_while_and_left_as_it_was(three: Prepared, tmp_path: Path) -> None:
    model = Model.load(write(three, tmp_path / "model", lora=MIXED_LORA, adapters=MIXED_ADAPTERS), device="cpu")
    before, expected = snapshot(model.network), model.predict_probabilities("mood", TEXTS["mood"])
    with model.merged("mood") as same:
        assert same is model
        assert changed(model.network, before)
        np.testing.assert_allclose(model.predict_probabilities("mood", TEXTS["mood"]), expected, rtol=1e-5, atol=1e-5)
    assert not changed(model.network, before)
    assert np.array_equal(model.predict_probabilities("mood", TEXTS["mood"]), expected)
    for wrong, inside, message in (
        ("moood", "mood", "this model has no task 'moood'; its tasks: mood, same, near"),
        ("near", "mood", "merge: task 'near' has no LoRA; tasks that have: mood, same"),
        ("mood", "same", "task 'same': the LoRA of 'mood' is merged; no other task answers inside `merged`"),
    ):
        with pytest.raises(UsageError) as caught, model.merged(wrong):
            model.predict(inside, TEXTS[inside])
        assert str(caught.value) == message
        assert not changed(model.network, before)


def test_a_folder_without_adaptations_says_nothing_of_them(
    tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    prepared = adapted(tiny_encoder, small_data, shared_cache)
    folder = write(prepared, tmp_path / "model")
    text = (folder / "config.toml").read_text()
    assert "lora" not in text
    assert "adapters" not in text
    assert not read_model_folder(folder).config.lora
    with pytest.raises(UsageError, match=r"^merge: task 'near' has no LoRA; tasks that have: none$"):
        prepared.model.merge("near")


@pytest.mark.parametrize("part", ["lora", "adapters"])
def test_a_folder_with_adaptations_of_no_task_is_refused(
    part: str, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    folder = write(adapted(tiny_encoder, small_data, shared_cache), tmp_path / "model")
    config = folder / "config.toml"
    config.write_text(config.read_text() + f"\n[{part}.moood]\n")
    with pytest.raises(ModelFileError) as caught:
        read_model_folder(folder)
    assert str(caught.value) == f"{config}: {part} names 'moood', which is none of its tasks (mood, same, near)"
