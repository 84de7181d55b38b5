"""The benchmark of the defaults: its draws, which cells are measured again, what its page marks, the made-up tickets."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "workers")]

import default_frozen  # noqa: E402
import scores  # noqa: E402

import default_compare as compare  # noqa: E402
import default_data as data  # noqa: E402
import default_page as page  # noqa: E402
import default_sets as sets  # noqa: E402
import tickets_section  # noqa: E402
from default_cells import CellFile, Key, complete_lines, latest  # noqa: E402
from default_sides import Bench  # noqa: E402
from ticket_texts import tickets  # noqa: E402
from tickets import draws  # noqa: E402

KEY = Key("trec6", 30, 1, "words")


def line(key: Key, value: float = 0.5, **fields: Any) -> dict[str, Any]:
    metrics = {"spearman": value} if key.set in data.RANGES else {"accuracy": value, "macro_f1": value}
    return {
        **key._asdict(), "metrics": metrics, "train_seconds": 2.0, "overrides": [], "code": "abc", "commit": "c0ffee",
        "processor": "a processor", "cores": 2, "threads": 1, "date": "2026-01-02T00:00:00",
        "versions": {"torch": "2", "python": "3.11"}, **fields,
    }  # fmt: skip


def of_seeds(name: str, rows: int, side: str, value: float) -> list[dict[str, Any]]:
    return [line(Key(name, rows, seed, side), value) for seed in data.SEEDS]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs cells whose workers answer at once; a list of the cells that were really measured."""
    measured: list[Key] = []

    def answer(_side: str, key: Key, _bench: Bench) -> dict[str, Any]:
        measured.append(key)
        if key.rows == 300:
            raise RuntimeError("ended with status 1: no memory")
        return {"metrics": {"accuracy": 0.5}, "train_seconds": 1.0}

    monkeypatch.setattr(sets, "measure", answer)
    monkeypatch.setattr(sets, "machine_fields", lambda: {"processor": "a processor", "cores": 2, "commit": "c0ffee"})
    monkeypatch.setattr(sets, "package_code", lambda: "abc")

    def run(*keys: Key, overrides: tuple[str, ...] = (), keep: bool = False) -> int:
        return sets.run_all(keys, CellFile(tmp_path / "CELLS.jsonl"), Bench(tmp_path, overrides=overrides), keep=keep)

    run.path, run.measured = tmp_path / "CELLS.jsonl", measured  # type: ignore[attr-defined]
    return run


def test_halves_are_every_other_set_by_name():
    assert len(data.SETS) == 15
    assert data.SETS[::2] == data.CHOICE
    assert data.SETS[1::2] == data.CONFIRMATION


def test_a_draw_depends_on_its_seed_alone():
    labels = ["a", "b"] * 600
    train, dev = data.draw(labels, 30, 1)
    assert (train, dev) == data.draw(labels, 30, 1)
    assert train != data.draw(labels, 30, 2)[0]
    assert (len(set(train)), len(set(dev)), set(train) & set(dev)) == (30, data.DEV_ROWS, set())
    assert data.draw(labels, 100, 1)[0][:30] == train


@pytest.mark.parametrize("seed", range(20))
def test_a_draw_has_two_labels(seed):
    labels = ["a"] * 50 + ["b"]
    assert len({labels[number] for number in data.draw(labels, 2, seed)[0]}) == 2


def test_a_draw_that_is_not_possible_says_so():
    with pytest.raises(ValueError, match="a draw of 30 rows from 20 rows of 1 labels is not possible"):
        data.draw(["a"] * 20, 30, 1)


def test_quotes_and_line_breaks_of_a_set_are_read(tmp_path):
    folder = tmp_path / "sets" / "mrpc"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text('id\ttext1\ttext2\tlabel\n1\t"a ""b"""\t"c\td"\tyes\n', encoding="utf-8")
    assert data.read_set(tmp_path, "mrpc", "train") == [(('a "b"', "c\td"), "yes")]


def test_a_cell_that_is_there_is_not_measured_again(bench):
    other = KEY._replace(seed=2)
    assert bench(KEY) == 0
    assert bench(KEY, other) == 0
    assert bench.measured == [KEY, other]
    assert len(complete_lines(bench.path)) == 2


def test_a_half_written_line_is_dropped_and_measured_again(bench):
    bench(KEY, KEY._replace(seed=2))
    whole = bench.path.read_bytes()
    bench.path.write_bytes(whole[:-20])
    bench(KEY, KEY._replace(seed=2))
    assert bench.measured == [KEY, KEY._replace(seed=2), KEY._replace(seed=2)]
    assert [json.loads(text)["seed"] for text in bench.path.read_text().splitlines()] == [1, 2]


def test_a_line_that_is_no_cell_is_an_error(tmp_path):
    path = tmp_path / "CELLS.jsonl"
    path.write_text(json.dumps(line(KEY)) + '\n{"set": 1}\n')
    with pytest.raises(ValueError, match=r"CELLS\.jsonl:2: is no line of a cell"):
        CellFile(path)


def test_a_cell_of_ours_depends_on_code_and_overrides(bench, monkeypatch):
    ours = KEY._replace(side="ours")
    bench(ours, KEY)
    monkeypatch.setattr(sets, "package_code", lambda: "def")
    bench(ours, KEY, keep=True)
    assert len(bench.measured) == 2
    bench(ours, KEY)
    label = KEY._replace(side="slow")
    for rate in ("1", "1", "2"):
        bench(label, overrides=(f"stages.0.batch_size={rate}",))
    assert bench.measured == [ours, KEY, ours, label, label]
    assert latest(complete_lines(bench.path))[ours]["code"] == "def"


def test_a_cell_that_fails_is_not_stored_and_others_are_measured(bench, capsys):
    failing = KEY._replace(rows=300)
    assert bench(failing, KEY) == 1
    assert [one["rows"] for one in complete_lines(bench.path)] == [30]
    assert "1/2 trec6, 300 rows, seed 1, words: ended with status 1: no memory" in capsys.readouterr().err


def test_cells_are_in_order_of_size_within_a_set():
    options = sets.read_options(["--data-dir", "d", "--sets", "cola", "--sizes", "100", "30", "--seeds", "1"])
    assert list(sets.cells(options)) == [
        Key("cola", rows, 1, side) for rows in (30, 100) for side in ("ours", "frozen", "words")
    ]
    labelled = sets.read_options(["--data-dir", "d", "--half", "choice", "--label", "slow", "--set", "seed=1"])
    assert {key.side for key in sets.cells(labelled)} == {"slow"}
    assert {key.set for key in sets.cells(labelled)} == set(data.CHOICE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "d", "--set", "seed=1"], "give --label NAME"),
        (["--data-dir", "d", "--label", "words"], "'words', which is a side"),
        (["--data-dir", ""], "name the folder with sets/"),
    ],
)
def test_options_that_do_not_fit_are_an_error(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("SMOOTHTUNE_DATA", raising=False)
    with pytest.raises(SystemExit):
        sets.read_options(arguments)
    assert message in capsys.readouterr().err


CELLS = latest(
    [
        *of_seeds("cola", 30, "ours", 0.70), *of_seeds("cola", 30, "frozen", 0.705), *of_seeds("cola", 30, "words", 0.6),
        *of_seeds("trec6", 30, "ours", 0.60), *of_seeds("trec6", 30, "frozen", 0.55), *of_seeds("trec6", 30, "words", 0.62),
        *of_seeds("banking77", 30, "frozen", 0.4),
        *of_seeds("sts-gloss-mt", 30, "ours", 0.5), *of_seeds("sts-gloss-mt", 30, "frozen", 0.6),
    ]
)  # fmt: skip


def test_the_page_marks_what_is_more_than_a_point_below():
    text = page.page(CELLS)
    assert "| cola | 30 | 70.0 | 70.5 | 60.0 | -0.5 | -0.5 |" in text
    assert "| trec6 | 30 | 60.0 | 55.0 | 62.0 | +5.0 | ▼ -2.0 |" in text
    assert "| sts-gloss-mt | 30 | 50.0 | 60.0 |  | ▼ -10.0 | ▼ -10.0 |" in text
    assert "| banking77 | 30 |  | 40.0 |  |  |  |" in text
    macro = text.split("### The confirmation half: macro-F1")[1]
    assert "sts-gloss-mt | 30" not in macro


def test_the_page_says_where_ours_loses_and_what_is_missing():
    text = page.page(CELLS)
    assert "Main metric: more than 1 point below the better baseline at 2 of 3 sets and sizes.\n\n" in text
    assert "- sts-gloss-mt (confirmation), 30 rows: -10.0 to frozen\n- trec6 (choice), 30 rows: -2.0 to words\n" in text
    assert "Cells that are measured: ours 9 of 180, frozen 12 of 180, words 6 of 180." in text
    assert "27 cells on a processor, 2 cores, 1 thread(s); torch 2, Python 3.11; ours at commit c0ffee" in text
    assert "| main metric, to frozen | 30 | 3 | -1.8 |" in text


def test_the_page_shows_log_loss_of_sets_that_have_it():
    keys = [Key("cola", 30, 1, side) for side in ("ours", "frozen")]
    cells = {key: line(key, metrics={"accuracy": 0.5, "log_loss": 1.25}) for key in keys}
    assert "| 30 | 1 | 1.250 | 1.250 |" in page.page(cells)
    assert "No set has cells of ours and of `frozen`." in page.page(CELLS)


def test_the_page_shows_several_processors_and_codes():
    other = line(KEY._replace(side="ours"), processor="another", code="def", threads=None, date="2026-01-05T00:00:00")
    text = page.page({**CELLS, KEY._replace(side="ours"): other})
    assert "2026-01-02 to 2026-01-05; 26 cells on a processor, 2 cores, 1 thread(s); 1 cells on another" in text
    assert "(2 states of the package's code)" in text


def test_the_page_without_cells_says_so():
    text = page.page({})
    assert "No cell is measured." in text
    assert "ours 0 of 180" in text


def test_a_mean_over_sets_has_two_intervals():
    means = compare.mean_over_sets([0.0, 0.1, 0.2])
    assert means is not None
    assert math.isclose(means.student.value, 0.1)
    assert means.student.low < means.bootstrap.low < 0.1 < means.bootstrap.high < means.student.high
    assert compare.mean_over_sets([0.1]) is None


def test_scores_count_a_class_that_no_row_taught():
    assert scores.log_loss(["a", "c"], ["a", "b"], np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx(
        -math.log(scores.LEAST) / 2
    )
    assert scores.class_scores(["a", "a", "c"], ["a", "b", "b"]) == pytest.approx(
        {"accuracy": 1 / 3, "macro_f1": 1 / 3}
    )
    with pytest.raises(ValueError, match=r"all 2 predictions are 1\.0"):
        scores.number_scores([1.0, 2.0], [1.0, 1.0])


def test_the_frozen_baseline_fits_few_rows():
    vectors = np.random.default_rng(0).normal(size=(7, 4))
    assert default_frozen.features([vectors, vectors], cosine=True).shape == (7, 17)
    rows, folds = default_frozen.folds_of(list("aaabbcd"))
    assert (rows.tolist(), folds) == ([0, 1, 2, 3, 4], 2)
    assert default_frozen.folds_of(list("aaabcd"))[1] == 0
    for labels in ("aaabbcd", "aaabcde"):
        model = default_frozen.fit("classification", vectors, np.array(list(labels)), seed=1)
        assert set(model.classes_) == set(labels)
    assert default_frozen.fit("regression", vectors, np.arange(7.0), seed=1).predict(vectors).shape == (7,)


def test_tickets_are_seeded_and_rarely_urgent():
    train, new = draws(1)
    assert (train, new) == draws(1)
    assert (len(train), len(new)) == (200, 300)
    assert sum(row.urgency == "urgent" for row in train) == 6
    assert 11 <= sum(row.urgency == "urgent" for row in new) <= 20
    texts = [row.text for row in (*train, *new)]
    assert len(set(texts)) == 500
    assert not any(re.search("[{}]", text) for text in texts)
    assert tickets(5, 1) != tickets(5, 2)


def test_the_section_on_tickets_shows_both_sides():
    metrics = {"recall": 0.5, "precision": 0.25, "macro_f1": 0.7, "accuracy": 0.8}
    sides = {side: {"metrics": metrics} for side in ("ours", "balanced")}
    machine = {"date": "2026-01-02", "processor": "a processor", "cores": 2, "python": "3.11",
               "packages": {"torch": "2", "transformers": "5"}}  # fmt: skip
    run = {"seed": 1, "new_urgent": 12, "train": {"urgent": 6}, "sides": sides}
    output = {"smoothtune check tickets.toml": {"status": 0, "stdout": "a table\n", "stderr": "a note\n"}}
    text = tickets_section.section(
        {"machine": machine, "load_before": 0.1, "threads": 1, "rows": 200, "new_rows": 300, "runs": [run],
         "printed": output}
    )  # fmt: skip
    assert "| ours | 0.50 (0.50) | 0.25 (0.25) | 0.70 (0.70) | 0.80 (0.80) |" in text
    assert "```\na note\na table\n```" in text
    assert "Not measured." in tickets_section.section(None)
