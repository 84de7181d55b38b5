"""Threads share a model: every public method of `Model`, from 8 threads at once, answers as one thread alone does.

`SMOOTHTUNE_THREAD_CALLS` is the number of calls of each model (`make test-faults` makes many).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smoothtune import load
from smoothtune.errors import UsageError
from smoothtune.inference import model as module
from smoothtune.inference.model import Model
from smoothtune.inference.precision import Precision
from smoothtune.integrations.peft import export
from smoothtune.nn import fused
from smoothtune.nn.at_rest import at_rest
from smoothtune.workflow.train import train
from tests.adapted import KINDS, MIXED_ADAPTERS, MIXED_LORA, adapted, stir, write
from tests.small_data import TASKS, table
from tests.tiny import WORDS

CALLS = int(os.environ.get("SMOOTHTUNE_THREAD_CALLS", "160"))
THREADS = 8
TEXTS_EACH = 5  # sets of texts for each method
LAYERS = {"kind": "mean", "dropout": 0.0, "layers": [0, 2]}
MIXED = {"lora": MIXED_LORA, "adapters": MIXED_ADAPTERS}
# The adaptations of a model's tasks, and what else it has.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bare": ({}, {}),
    "layers": (KINDS["both"], {"trunk": LAYERS}),
    **{name: (kind, {}) for name, kind in KINDS.items()},
    "mixed": (MIXED, {}),
}
SHORT = ("layers", "mixed")  # without SMOOTHTUNE_THREAD_CALLS


def single(draw: random.Random) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 9))]


def pairs(draw: random.Random) -> list[tuple[str, str]]:
    return list(zip(single(draw) * 9, single(draw), strict=False))


def texts(task: str, draw: random.Random) -> Any:
    return single(draw) if task == "mood" else pairs(draw)


def window(part: dict[str, Any]) -> list[Any]:
    return [answers.probabilities if answers.labels else answers.values for answers in part.values()]


def predicted(model: Model, draw: random.Random) -> Any:
    task = draw.choice(TASKS)
    return model.predict(task, texts(task, draw))


def probable(model: Model, draw: random.Random) -> Any:
    task = draw.choice(TASKS[:2])
    return model.predict_probabilities(task, texts(task, draw))


def mixed(model: Model, draw: random.Random) -> Any:
    return list(model.predict_mixed({task: texts(task, draw) for task in TASKS}).values())


def merged(model: Model, draw: random.Random) -> Any:
    task = draw.choice(TASKS[:2])
    if task not in model.network.lora:
        with pytest.raises(UsageError, match="has no LoRA"), model.merged(task):
            pass
        return 0
    asked = texts(task, draw)
    with model.merged(task):
        return model.predict_probabilities(task, asked)


# By the name of every public part of `Model`: a call of it with drawn texts, and what it answers.
CASES: dict[str, Callable[[Model, random.Random], Any]] = {
    "answer_rows": lambda model, draw: [
        window(answers) for _, answers in model.answer_rows(("same", "near"), pairs(draw), batch_size=draw.randint(1, 4))
    ],
    "columns": lambda model, draw: model.columns(draw.choice(TASKS)),
    "kind": lambda model, draw: model.kind(draw.choice(TASKS)),
    "load": lambda model, draw: 0,  # see test_models_are_loaded_side_by_side
    "merged": merged,
    "network": lambda model, draw: model.network.merged or "",
    "pad_id": lambda model, draw: model.pad_id,
    "precision_of": lambda model, draw: str(model.precision_of((draw.choice(TASKS),))),
    "predict": predicted,
    "predict_many": lambda model, draw: list(model.predict_many(("same", "near"), pairs(draw)).values()),
    "predict_mixed": mixed,
    "predict_probabilities": probable,
    "predict_windows": lambda model, draw: [window(part) for part in model.predict_windows(("mood",), single(draw))],
    "tasks": lambda model, draw: model.tasks,
    "text_count": lambda model, draw: model.text_count(("same", "near")),
}  # fmt: skip
HEAVY = (
    "answer_rows",
    "merged",
    "predict",
    "predict_many",
    "predict_mixed",
    "predict_probabilities",
    "predict_windows",
)


def far(answer: Any, expected: Any) -> bool:
    """Whether two answers differ by more than rounding."""
    if isinstance(answer, list | tuple | dict):
        return len(answer) != len(expected) or any(far(one, other) for one, other in zip(answer, expected, strict=True))
    if isinstance(answer, np.ndarray | float):
        return not np.allclose(answer, expected, rtol=1e-5, atol=1e-6)
    return bool(answer != expected)


def model_of(folder: Path, encoder: Path, data: Path, cache: Path, name: str, implementation: str) -> Path:
    adaptations, more = MODELS[name]
    prepared = adapted(encoder, data, cache, implementation=implementation, **adaptations, **more)
    stir(prepared.model)
    return write(prepared, folder, **adaptations)


@pytest.fixture(params=["kernels", "plain", "transformers"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the encoder is made of; our BERT with and without kernels."""
    if request.param == "kernels" and not fused.available():
        pytest.skip("no C++ compiler: the kernels cannot be built")
    if request.param == "plain":
        monkeypatch.setattr(fused, "available", lambda: False)
    return "transformers" if request.param == "transformers" else "native"


def wrong_calls(model: Model, calls: Iterable[tuple[str, int]]) -> list[str]:
    """The calls that threads answer in another way than one thread, or with an error."""
    calls = list(calls)
    expected = {call: CASES[call[0]](model, random.Random(call[1])) for call in set(calls)}

    def problem(call: tuple[str, int]) -> str | None:
        try:
            answer = CASES[call[0]](model, random.Random(call[1]))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a wrong answer
            return f"{call}: {error!r}"
        return f"{call}: another answer" if far(answer, expected[call]) else None

    with ThreadPoolExecutor(THREADS) as pool:
        return [line for line in pool.map(problem, calls) if line is not None]


def test_every_public_part_of_a_model_has_a_case(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    public = {name for name in vars(Model) if not name.startswith("_")}
    assert public == set(CASES)
    assert len(public) >= 15
    assert set(HEAVY) <= public


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS if "SMOOTHTUNE_THREAD_CALLS" in os.environ else SHORT)
def test_threads_get_the_answers_of_one_thread(
    name: str, precision: str, implementation: str,
    tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path,
) -> None:  # fmt: skip
    folder = model_of(tmp_path / "model", tiny_encoder, small_data, shared_cache, name, implementation)
    model = load(folder, device="cpu", precision=precision)
    draw = random.Random(1)
    light = [(case, seed) for case in CASES for seed in range(2)]
    heavy = [(draw.choice(HEAVY), draw.randrange(TEXTS_EACH)) for _ in range(CALLS - len(light))]
    calls = draw.sample(light + heavy, CALLS)
    assert {case for case, _ in calls} == set(CASES)
    before = {key: part.clone() for key, part in model.network.state_dict().items()}
    wrong = wrong_calls(model, calls)
    assert not wrong, f"{len(wrong)} of {CALLS} calls, e.g. {wrong[:3]}"
    assert all(torch.equal(part, before[key]) for key, part in model.network.state_dict().items())
    assert not any(part.training for part in model.network.modules())


@pytest.fixture
def wrapped(tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path) -> Path:
    """A model folder with a wrapped encoder and adaptations of all kinds."""
    return model_of(tmp_path / "model", tiny_encoder, small_data, shared_cache, "mixed", "transformers")


def test_threads_inside_merged_need_not_wait_for_each_other(wrapped: Path) -> None:
    model, asked = load(wrapped, device="cpu"), single(random.Random(0))
    expected = model.predict_probabilities("mood", asked)
    with ThreadPoolExecutor(THREADS) as pool, model.merged("mood"):
        assert model.network.merged == "mood"
        assert pool.submit(lambda: model.network.merged).result() is None
        inside = model.predict_probabilities("mood", asked)
        others = list(pool.map(lambda _: model.predict_probabilities("mood", asked), range(THREADS)))
    assert all(np.array_equal(other, expected) for other in others)
    assert not far(inside, expected)


def test_models_are_loaded_side_by_side(
    wrapped: Path, tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    own = model_of(wrapped.parent / "own", tiny_encoder, small_data, shared_cache, "both", "native")
    asked, folders = single(random.Random(0)), [wrapped, own] * THREADS
    expected = {folder: load(folder, device="cpu").predict_probabilities("mood", asked) for folder in (wrapped, own)}
    functions = {name: getattr(torch.nn.init, name) for name in ("normal_", "uniform_", "zeros_", "ones_")}
    with ThreadPoolExecutor(THREADS) as pool:
        models = list(pool.map(lambda folder: load(folder, device="cpu"), folders))
    for folder, model in zip(folders, models, strict=True):
        assert np.array_equal(model.predict_probabilities("mood", asked), expected[folder])
    assert functions == {name: getattr(torch.nn.init, name) for name in functions}


def test_training_beside_predictions_and_loads_reaches_the_same_bits(
    wrapped: Path, tiny_encoder: Path, small_data: Path, tmp_path: Path, own_cache: Path
) -> None:
    wanted = table(tiny_encoder, stop={"max_epochs": 1})
    wanted["encoder"] |= {"implementation": "transformers", "dropout": 0.1}
    wanted["runtime"] = {"threads": 1}
    alone = train(wanted, data_dir=small_data, run_dir=tmp_path / "alone").model().network.state_dict()
    model, asked, busy = load(wrapped, device="cpu"), single(random.Random(0)), threading.Event()
    expected = model.predict_probabilities("mood", asked)

    def ask() -> list[np.ndarray]:
        answers = [model.predict_probabilities("mood", asked)]
        while not busy.is_set():
            answers.append(load(wrapped, device="cpu").predict_probabilities("mood", asked))
        return answers

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            beside = train(wanted, data_dir=small_data, run_dir=tmp_path / "beside").model().network.state_dict()
        finally:
            busy.set()
        answers = [answer for thread in asking for answer in thread.result()]
    assert len(answers) > 2
    assert all(np.array_equal(answer, expected) for answer in answers)
    assert [name for name, part in beside.items() if not torch.equal(part, alone[name])] == []


def test_threads_that_ask_at_once_get_one_decision_on_the_precision(
    wrapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = load(wrapped, device="cpu"), single(random.Random(0))
    model._precision = None
    decided: list[Precision] = []

    def slowly(*given: Any) -> Precision:
        time.sleep(0.05)
        decided.append(Precision("bfloat16" if decided else "float32", "in turn"))
        return decided[-1]

    monkeypatch.setattr(module, "measured", slowly)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda _: model.predict_probabilities("mood", asked), range(THREADS)))
    assert len(decided) == 1
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_a_model_in_training_mode_rests_until_the_last_thread_is_done(wrapped: Path) -> None:
    network = load(wrapped, device="cpu").network.train()
    network.encoder.eval()
    before = {name: part.training for name, part in network.named_modules()}
    entered, leave = threading.Event(), threading.Event()

    def rest() -> None:
        with at_rest(network):
            entered.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with at_rest(network):
            other = pool.submit(rest)
            assert entered.wait(60)
        assert not any(part.training for part in network.modules())
        leave.set()
        other.result()
    assert {name: part.training for name, part in network.named_modules()} == before


def test_exports_beside_predictions(wrapped: Path, tmp_path: Path) -> None:
    model, asked = load(wrapped, device="cpu"), single(random.Random(0))
    expected = model.predict_probabilities("mood", asked)
    export(model, "mood", tmp_path / "alone")
    with ThreadPoolExecutor(THREADS) as pool:
        writing = [pool.submit(export, model, "mood", tmp_path / str(number)) for number in range(3)]
        answers = list(pool.map(lambda _: model.predict_probabilities("mood", asked), range(3 * THREADS)))
        for done in writing:
            done.result()
    assert all(np.array_equal(answer, expected) for answer in answers)
    for path in (tmp_path / "alone").rglob("*.safetensors"):
        others = {(tmp_path / str(number) / path.relative_to(tmp_path / "alone")).read_bytes() for number in range(3)}
        assert others == {path.read_bytes()}
