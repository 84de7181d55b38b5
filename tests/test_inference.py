"""The parts of prediction: batches by tokens, working ahead, modes, the choice of precision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import smoothtune
from smoothtune.data.ahead import one_ahead
from smoothtune.data.batching import padded_width
from smoothtune.errors import UsageError
from smoothtune.inference import precision as precisions
from smoothtune.inference.answering import answer_examples
from smoothtune.inference.batches import token_batches
from smoothtune.inference.precision import AGREEMENT, Groups, choice, measured, without_measuring
from smoothtune.inference.texts import checked_rows
from smoothtune.nn.at_rest import at_rest
from tests.small_data import Prepared, prepare, table

CPU = torch.device("cpu")


# batches


@given(
    lengths=st.lists(st.integers(1, 90), max_size=200),
    columns=st.integers(1, 2),
    most=st.none() | st.integers(1, 20),
    tokens=st.integers(1, 2000),
)
def test_every_row_stands_in_one_batch_that_fits(
    lengths: list[int], columns: int, most: int | None, tokens: int
) -> None:
    of = np.array(lengths, dtype=np.int32)
    found = list(token_batches(of, limit=90, columns=columns, most=most, tokens=tokens))
    assert sorted(np.concatenate(found).tolist() if found else []) == list(range(len(lengths)))
    for batch in found:
        cost = columns * padded_width(int(of[batch].max()), 90) * len(batch)
        assert len(batch) == 1 or cost <= tokens
        assert most is None or len(batch) <= most
    longest = [int(of[batch].max()) for batch in found]
    assert longest == sorted(longest, reverse=True)


def test_few_shapes_occur() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, size=5000)
    found = list(token_batches(lengths, limit=128, tokens=2048))
    shapes = {(len(batch), padded_width(int(lengths[batch].max()), 128)) for batch in found[:-1]}
    assert len(shapes) <= 16 < len(found)
    assert all(rows % 8 == 0 for rows, _ in shapes)


# working ahead


def test_work_is_done_in_order_one_item_ahead() -> None:
    drawn, threads = [], set()

    def items() -> Iterator[int]:
        for number in range(5):
            drawn.append(number)
            threads.add(threading.current_thread())
            yield number

    made = []
    for result in one_ahead(lambda number: (number, threading.current_thread()), items()):
        made.append(result[0])
        assert len(drawn) <= len(made) + 1
        assert result[1] is not threading.current_thread()
    assert made == [0, 1, 2, 3, 4]
    assert threads == {threading.current_thread()}
    assert list(one_ahead(str, [])) == []


def test_what_work_raises_comes_at_its_place() -> None:
    found = one_ahead(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_what_drawing_raises_comes_after_all_that_was_drawn_before() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("a bad third")

    found = one_ahead(lambda number: 10 * number, items())
    assert [next(found), next(found)] == [10, 20]
    with pytest.raises(ValueError, match="a bad third"):
        next(found)
    assert list(found) == []
    with pytest.raises(ZeroDivisionError):  # that of the work on 0 stands before that of the drawing
        list(one_ahead(lambda number: 1 // number, (1 // number - 1 for number in (1, 0))))


# modes


def test_every_part_is_in_its_own_mode_again_even_after_an_error() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    module[1].eval()
    before = [part.training for part in module.modules()]
    inside: list[bool] = []

    def fails() -> None:
        with at_rest(module):
            inside.extend(part.training for part in module.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert inside == [False] * 4
    assert [part.training for part in module.modules()] == before == [True, True, False, False]


# precision


@pytest.mark.parametrize(
    ("asked", "trained_in", "bfloat16", "text"),
    [
        ("float32", "bfloat16", True, "precision float32 (asked for)"),
        ("bfloat16", "float32", False, "precision bfloat16 (asked for)"),
        ("auto", "float32", True, "precision float32 (as in training)"),
        ("auto", "bfloat16", False, "precision float32 (this cpu has no bfloat16 products)"),
        ("auto", "bfloat16", True, "None"),
        ("auto", None, True, "None"),
    ],
)
def test_where_nothing_is_to_be_measured(
    monkeypatch: pytest.MonkeyPatch, asked: str, trained_in: str | None, bfloat16: bool, text: str
) -> None:
    monkeypatch.setattr(precisions, "has_bfloat16", lambda _: bfloat16)
    assert str(without_measuring(asked, trained_in, CPU)) == text


@pytest.mark.parametrize(
    ("speed", "difference", "text"),
    [
        (3.0, 0.001, "bfloat16 (measured: float32 1.00x, bfloat16 3.00x; answers agree, mean difference 0.0010)"),
        (0.5, 0.001, "float32 (measured: float32 1.00x, bfloat16 0.50x; answers agree, mean difference 0.0010)"),
        (3.0, 0.5, "float32 (measured: float32 1.00x, bfloat16 3.00x; answers do not agree, mean difference 0.5000)"),
        (
            3.0,
            float("nan"),
            "float32 (measured: float32 1.00x, bfloat16 3.00x; answers do not agree, mean difference nan)",
        ),
    ],
)
def test_the_fastest_whose_answers_agree(speed: float, difference: float, text: str) -> None:
    found = choice({"float32": 1.0, "bfloat16": speed}, difference)
    assert str(found) == f"precision {text}"
    assert found.dtype == (torch.bfloat16 if text.startswith("bfloat16") else torch.float32)


@pytest.fixture(scope="module")
def prepared(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(table(tiny_encoder), small_data, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("task", ["mood", "same", "near"])
def test_a_measurement_compares_answers(prepared: Prepared, own_cache: Path, task: str) -> None:
    found = measured(prepared.model, [((task,), prepared.dev[task])], "model")
    assert set(found.speeds) == {"float32", "bfloat16"}
    assert found.speeds["float32"] == 1
    assert found.difference is not None
    assert 0 < found.difference < AGREEMENT


FASTER = [{"float32": 2.0, "bfloat16": 1.0}] * 2


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> list[list[int]]:
    """Measurements that were made, each as the numbers of rows of its groups; each finds bfloat16 twice as fast."""
    made: list[list[int]] = []

    def measure(model: object, groups: Groups) -> tuple[list[dict[str, float]], float]:
        made.append([len(examples) for _, examples in groups])
        return FASTER, 0.001

    monkeypatch.setattr(precisions, "measure", measure)
    return made


def of(prepared: Prepared, *tasks: str) -> Groups:
    return [((task,), prepared.dev[task]) for task in tasks]


def test_a_measurement_is_made_once_per_model(
    prepared: Prepared, own_cache: Path, measurements: list[list[int]]
) -> None:
    first = measured(prepared.model, of(prepared, "mood"), "one")
    assert measured(prepared.model, of(prepared, "mood"), "one") == first
    assert len(measurements) == 1
    measured(prepared.model, of(prepared, "mood"), "another")
    assert len(measurements) == 2
    # Few rows are repeated, so that the time of a full batch is taken.
    assert min(rows for groups in measurements for rows in groups) > len(prepared.dev["mood"])
    for file in (own_cache / "smoothtune").iterdir():
        file.write_text("[")
    assert measured(prepared.model, of(prepared, "mood"), "one") == first
    assert len(measurements) == 3


def test_a_measurement_is_made_for_the_tasks_that_are_asked_together(
    prepared: Prepared, measurements: list[list[int]]
) -> None:
    for tasks in (("same",), ("near",), ("same", "near"), ("near", "same"), ("near",)):
        measured(prepared.model, of(prepared, *tasks), "one")
    assert [len(groups) for groups in measurements] == [1, 1, 2]


@pytest.mark.parametrize("name", ["version", "told"])
def test_another_release_or_other_kernels_are_measured_anew(
    prepared: Prepared, measurements: list[list[int]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for answer in ("one", "other", "one"):
        monkeypatch.setattr(precisions, name, lambda *_, answer=answer: answer)
        measured(prepared.model, of(prepared, "mood"), "one")
    assert len(measurements) == 2


def test_rounds_that_contradict_each_other_are_not_kept(
    prepared: Prepared, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def measure(model: object, groups: Groups) -> tuple[list[dict[str, float]], float]:
        made.append(groups)
        disturbed = [{"float32": 2.0, "bfloat16": 8.0}, *FASTER]
        return (disturbed if len(made) == 1 else FASTER), 0.001

    monkeypatch.setattr(precisions, "measure", measure)
    found = [measured(prepared.model, of(prepared, "mood"), "one") for _ in range(3)]
    assert len(made) == 2
    assert {answer.name for answer in found} == {"bfloat16"}
    assert found[0].speeds == {"float32": 1.0, "bfloat16": 2.0}  # of the fastest round of each


@pytest.mark.parametrize("change", [lambda logits: logits + 1, lambda logits: logits * np.nan])
@pytest.mark.parametrize("tasks", [("near", "mood"), ("mood", "near")])
def test_the_answers_to_every_task_must_agree(
    prepared: Prepared,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: tuple[str, ...],
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    real = precisions.answer_tasks

    def answers(*given: Any, dtype: torch.dtype) -> dict[str, np.ndarray]:
        found = real(*given, dtype=dtype)
        astray = dtype == torch.bfloat16 and "near" in found
        return {**found, "near": change(found["near"])} if astray else found

    monkeypatch.setattr(precisions, "answer_tasks", answers)
    assert "answers agree" in measured(prepared.model, of(prepared, "mood"), "one").why
    found = measured(prepared.model, of(prepared, *tasks), "one")
    assert found.name == "float32"
    assert "answers do not agree" in found.why


def test_a_cache_that_cannot_be_written_only_costs_time(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured(prepared.model, of(prepared, "mood"), "one").speeds


def test_batches_change_no_answer(prepared: Prepared) -> None:
    for examples in prepared.dev.values():
        whole = answer_examples(prepared.model, examples, dtype=torch.float32)
        by_three = answer_examples(prepared.model, examples, dtype=torch.float32, batch_size=3)
        np.testing.assert_allclose(by_three, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"text": ["a film"]}, "expected a list of texts, got dict; give its column"),
        (SimpleNamespace(columns=["text"]), "got SimpleNamespace; give its column, such as df"),
        (["good", "\ud800 fine"], "text 1: has half of a surrogate pair"),
    ],
    ids=["dict", "frame", "surrogate"],
)
def test_tables_and_broken_characters_are_no_texts(texts: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(checked_rows("mood", texts, 1))


def test_a_model_is_loaded_from_a_path() -> None:
    with pytest.raises(UsageError, match="load: got NoneType, expected the folder"):
        smoothtune.load(None)  # type: ignore[arg-type]
