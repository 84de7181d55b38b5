"""The words-alone baseline on small made-up sets whose answers are in the words."""

from __future__ import annotations

import time

import numpy as np
import pytest

from smoothtune.errors import UsageError
from smoothtune.evaluation.metrics import accuracy, pearson
from smoothtune.evaluation.words_alone import words_alone
from tests.tiny import WORDS

MOODS = (("good", "great", "bright"), ("bad", "awful", "dull"), ("small", "slow", "rain"))


def sentence(generator: np.random.Generator, size: int = 6) -> list[str]:
    return [str(word) for word in generator.choice(WORDS, size=size)]


def moody(n: int, classes: int, seed: int = 0) -> tuple[list[tuple[str, ...]], np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(classes, size=n)
    texts = [" ".join([*sentence(generator, 4), str(generator.choice(MOODS[c]))]) for c in targets]
    return [(text,) for text in texts], targets


def pairs(n: int, seed: int = 0) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Pairs that share 0 to 5 words; the target is how many, in [0, 5]."""
    generator = np.random.default_rng(seed)
    shared = generator.integers(6, size=n)
    texts: list[tuple[str, ...]] = []
    for count in shared:
        first, second = sentence(generator, 5), sentence(generator, 5)
        texts.append((" ".join(first), " ".join([*first[:count], *second[count:]])))
    return texts, shared.astype(np.float32)


@pytest.mark.parametrize(("kind", "classes"), [("classification", 3), ("binary", 2)])
def test_words_tell_classes(kind: str, classes: int) -> None:
    texts, targets = moody(300, classes)
    held_out, answers = moody(100, classes, seed=1)
    found = words_alone(kind, texts, targets.astype(np.float32), held_out)  # type: ignore[arg-type]
    assert found.dtype == np.int64
    assert found.shape == (100,)
    assert accuracy(found, answers) > 0.8


@pytest.mark.filterwarnings("error")
def test_shared_words_tell_likeness_within_ten_seconds_and_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    texts, targets = pairs(200)
    held_out, answers = pairs(100, seed=1)
    started = time.perf_counter()
    likeness = words_alone("regression", texts, targets, held_out)
    same = words_alone("binary", texts, targets > 2, held_out)
    assert time.perf_counter() - started < 20
    assert likeness.dtype == np.float64
    assert pearson(likeness, answers) > 0.85
    assert accuracy(same, (answers > 2).astype(int)) > 0.8
    assert capfd.readouterr() == ("", "")


def test_predictions_repeat_and_pairs_may_be_swapped() -> None:
    texts, targets = pairs(60)
    swapped = [(second, first) for first, second in texts]
    once = words_alone("regression", texts, targets, texts, seed=3)
    np.testing.assert_array_equal(once, words_alone("regression", texts, targets, texts, seed=3))
    np.testing.assert_allclose(once, words_alone("regression", texts, targets, swapped, seed=3), atol=1e-4)


def test_many_texts_leave_out_what_occurs_once() -> None:
    texts, targets = moody(1200, 2)
    found = words_alone("binary", texts, targets, [("good great bright",), ("bad awful dull",)])
    assert found.tolist() == [0, 1]


@pytest.mark.filterwarnings("error")
def test_sets_too_small_for_folds() -> None:
    texts = [("good film",), ("bad film",), ("great film",)]
    assert words_alone("classification", texts, np.array([4, 1, 4]), texts).tolist() == [4, 1, 4]
    likeness = words_alone("regression", texts, np.array([5.0, 0.0, 4.0]), texts)
    assert likeness[0] > likeness[1]
    rare = np.array([0] * 12 + [1] * 12 + [2])
    moods = [(" ".join(MOODS[c]),) for c in rare]
    assert words_alone("classification", moods, rare, moods[:13]).tolist() == [0] * 12 + [1]


def test_one_class_one_value_and_no_texts() -> None:
    texts = [("good film",), ("bad film",)]
    assert words_alone("binary", texts, np.array([1, 1]), texts).tolist() == [1, 1]
    assert words_alone("regression", texts, np.array([2.5, 2.5]), texts[:1]).tolist() == [2.5]
    assert words_alone("binary", texts, np.array([0, 1]), []).shape == (0,)


def test_texts_without_letters_are_read_by_their_characters() -> None:
    texts = [("!!!",), ("???",)] * 10
    assert words_alone("binary", texts, np.array([1, 0] * 10), texts[:2]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("train", "targets", "texts", "message"),
    [
        (
            [],
            [],
            [("a",)],
            "got 0 training texts and targets of shape (0,); give at least one text and one target per text",
        ),
        (
            [("a",)],
            [0, 1],
            [],
            "got 1 training texts and targets of shape (2,); give at least one text and one target per text",
        ),
        ([("a",), ("b",)], [0, 1], [("a", "b")], "texts are tuples of [1, 2] strings; give all one string, or all two"),
        (["a", "b"], [0, 1], [], "got a plain string as a text; give a tuple of one string, or two for a pair"),
        ([("",), (" ",)], [0, 1], [("a",)], "the 2 training texts hold no words; check the text columns"),
    ],
)
def test_errors(train: list, targets: list, texts: list, message: str) -> None:
    with pytest.raises(UsageError) as error:
        words_alone("binary", train, np.array(targets), texts)
    assert str(error.value) == f"words alone: {message}"
