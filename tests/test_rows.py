"""The row table: what is checked, what is left out, what is kept on disk, and the labels fitted on it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smoothtune.data import row_writer
from smoothtune.data.checks import Finding, RowSpec
from smoothtune.data.content import HashedFile
from smoothtune.data.label_set import check_labels, fit_labels, rows_outside
from smoothtune.data.rows import RowTable, prepare_rows
from smoothtune.data.source import resolve_source
from smoothtune.errors import DataError, Problem
from smoothtune.files import WriteError

FULL = Path("/dev/full")
SST = RowSpec(("sentence",), "sentiment", "classification")
STS = RowSpec(("sentence1", "sentence2"), "similarity", "regression", (0.0, 5.0))
LABELS = ("0", "1", "2", "3", "4")
GOOD = ["id\tsentence\tsentiment", "1\tgood film\t4", "2\tbad film\t0", "3\tdull film\t1", ""]


def prepare(folder: Path, text: str | bytes, spec: RowSpec = SST, *, name: str = "train.tsv") -> RowTable:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return prepare_rows(spec, resolve_source(name, folder), cache=folder / "cache", name="sst train")


def with_line(number: int, line: bytes) -> bytes:
    """The good file with line `number` (from 1) replaced."""
    lines = [text.encode() for text in GOOD]
    lines[number - 1] = line
    return b"\n".join(lines)


BROKEN = [
    (
        with_line(3, b"2\tbad film\t0\tmore"),
        "train.tsv:3: 4 fields where the header has 3: 'more' stands after the last column, 'sentiment'; "
        "quote fields that hold separators",
    ),
    (
        with_line(4, b"3\tdull film\t7"),
        "train.tsv:4: column 'sentiment' is '7'; the labels are '0', '1', '2', '3', '4'",
    ),
    (
        with_line(2, b"1\tgood film\tx"),
        "train.tsv:2: column 'sentiment' is 'x'; the labels are '0', '1', '2', '3', '4'",
    ),
    (with_line(3, b"2\t  \t0"), "train.tsv:3: column 'sentence' is empty; write a text or remove the row"),
    (
        with_line(4, b"3\tcaf\xe9\t1"),
        "train.tsv:4: column 'sentence' has byte 0xE9 at character 4, which is not UTF-8; save the file as UTF-8",
    ),
    (
        with_line(1, b"id\tsentence\tlabel"),
        "train.tsv:1: has no column 'sentiment'; its columns are: 'id', 'sentence', 'label'",
    ),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=["fields", "7", "x", "empty", "latin-1", "column"])
def test_six_broken_copies_name_file_line_and_column(tmp_path: Path, content: bytes, message: str) -> None:
    table = prepare(tmp_path, content)
    problems = table.problems() or check_labels(table, LABELS)
    assert [str(problem) for problem in problems] == [message]
    assert table.errors == bool(table.problems())


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    content = b"id\tsentence\tsentiment\n" + b"1\t\t0\n" * 30 + b"2\tx\n" + b"3\t\xff\t0\n4\tgood\t1\n"
    table = prepare(tmp_path, content)
    assert [(finding.kind, finding.count, len(finding.examples)) for finding in table.findings] == [
        ("empty text", 30, 20),
        ("wrong number of fields", 1, 1),
        ("not UTF-8", 1, 1),
    ]
    assert table.problems()[20] == Problem("train.tsv", "10 more of this kind (empty text)")
    assert len(table.problems()) == 23
    assert table.errors
    assert len(table) == 1


def test_bad_rows_can_be_left_out_but_not_a_bad_file(tmp_path: Path) -> None:
    spec = RowSpec(("sentence",), "sentiment", "classification", on_bad_row="leave_out")
    table = prepare(tmp_path, "sentence\tsentiment\n\t1\ngood\t1\nx\nfine\t\n", spec)
    assert not table.errors
    assert table.left_out == {"no label": 1, "empty text": 1, "wrong number of fields": 1}
    assert (len(table), list(table.lines())) == (1, [3])
    missing = prepare(tmp_path, "sentence\tx\ngood\t1\n", spec)
    assert missing.errors
    none = prepare(tmp_path, "sentence\tsentiment\n\t1\n", spec)
    assert none.errors
    assert none.problems()[-1] == Problem("train.tsv", "has no row that can be used; rows with problems: 1")


def test_a_row_with_two_faults_counts_both_and_is_left_out_once(tmp_path: Path) -> None:
    spec = RowSpec(STS.texts, STS.label, "regression", (0.0, 5.0), on_bad_row="leave_out")
    table = prepare(tmp_path, "sentence1\tsentence2\tsimilarity\n\ta\t9\na\tb\t1\n", spec)
    assert [(finding.kind, finding.count) for finding in table.findings] == [
        ("outside the range", 1),
        ("empty text", 1),
    ]
    assert table.left_out == {"outside the range": 1}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("sentence\tsentiment\n", "has 0 rows; a file needs at least one row behind its column names"),
        ("sentence\tsentiment\na\t\nb\t\n", "none of its 2 rows has a label in column 'sentiment'"),
        ("", "is empty, or its first line is; the first line must name the columns"),
    ],
    ids=["header", "labels", "empty"],
)
def test_a_table_without_rows_is_an_error(tmp_path: Path, content: str, what: str) -> None:
    table = prepare(tmp_path, content)
    assert table.problems() == (Problem("train.tsv", what),)
    assert table.errors
    assert len(table) == 0
    assert table.keys().shape == (0,)
    assert table.texts([]) == []
    assert list(table.chunks(2)) == []


def test_scores_are_numbers_inside_the_range(tmp_path: Path) -> None:
    rows = [
        ("3.80", None),
        ("5.0", None),
        ("x", "n"),
        ("3,5", "n"),
        ("nan", "n"),
        ("7", "r"),
        ("-0.1", "r"),
        ("", None),
    ]
    content = "sentence1\tsentence2\tsimilarity\n" + "".join(f"a\tb\t{score}\n" for score, _ in rows)
    table = prepare(tmp_path, content, STS)
    assert table.labels().to_pylist() == ["3.8", "5"]
    assert table.left_out == {"no label": 1}
    assert [str(problem) for problem in table.problems()] == [
        "train.tsv:4: column 'similarity' is 'x', not a number; write it as 3.8, or leave it empty",
        "train.tsv:5: column 'similarity' is '3,5', not a number; write it as 3.8, or leave it empty",
        "train.tsv:6: column 'similarity' is 'nan', not a number; write it as 3.8, or leave it empty",
        "train.tsv:7: column 'similarity' is '7', outside the range 0 to 5; mend it, or the range",
        "train.tsv:8: column 'similarity' is '-0.1', outside the range 0 to 5; mend it, or the range",
    ]


def test_two_tasks_read_one_file_with_their_own_label_columns(tmp_path: Path) -> None:
    content = "text\tother\ttone\tscore\ngood\tgreat\t1.0\t4\nbad\t\t0\t\nfine\tbright\t\t2.5\n"
    tone = prepare(tmp_path, content, RowSpec(("text",), "tone", "binary"))
    score = prepare(tmp_path, content, RowSpec(("text", "other"), "score", "regression", (0.0, 5.0)))
    assert tone.labels().to_pylist() == ["1", "0"]
    assert score.labels().to_pylist() == ["4", "2.5"]
    assert (list(tone.lines()), list(score.lines())) == ([2, 3], [2, 4])
    assert tone.left_out == score.left_out == {"no label": 1}
    assert not tone.errors
    assert not score.errors
    assert len(list((tmp_path / "cache").glob("rows-*"))) == 2


def test_texts_chunks_and_places(tmp_path: Path) -> None:
    content = "sentence1\tsentence2\tsimilarity\n" + "".join(f"a{number}\tb{number}\t1\n" for number in range(7))
    table = prepare(tmp_path, content, STS)
    assert table.texts([5, 0]) == [("a5", "b5"), ("a0", "b0")]
    assert table.texts(np.array([6])) == [("a6", "b6")]
    assert [len(chunk) for chunk in table.chunks(3)] == [3, 3, 1]
    assert [row for chunk in table.chunks(3) for row in chunk] == table.texts(range(7))
    assert table.place(6) == "train.tsv:8"


def test_prediction_needs_no_label(tmp_path: Path) -> None:
    table = prepare(tmp_path, "sentence\ngood\nbad\n", RowSpec(("sentence",), None, "classification"))
    assert (len(table), table.errors, table.left_out) == (2, False, {})
    with pytest.raises(ValueError, match=r"the rows of train\.tsv were prepared without a label column"):
        table.labels()


def test_keys_forget_white_space_and_the_order_of_a_pair_but_not_case(tmp_path: Path) -> None:
    content = "sentence1\tsentence2\tsimilarity\na  b\tc\t1\nc\t a b\t2\nA b\tc\t1\nab\tc\t1\n"
    table = prepare(tmp_path, content, STS)
    keys = table.keys()
    assert keys.dtype == np.uint64
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3
    single = prepare(tmp_path, "sentence\tsentiment\na b\t1\n")
    assert single.keys()[0] == single.text_keys()[0, 0] == table.text_keys()[0, 0] == table.text_keys()[1, 1]
    assert table.text_keys().shape == (4, 2)


def test_rows_are_read_once_and_found_again_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = with_line(3, b"2\t\t0")
    first = prepare(tmp_path, content)
    monkeypatch.setattr(row_writer, "read_records", None)
    again = prepare(tmp_path, content, name="copy.tsv")
    assert again.texts([0, 1]) == first.texts([0, 1])
    assert again.content_key == first.content_key
    assert again.findings == (
        Finding(
            "empty text", 1, (Problem("copy.tsv:3", "column 'sentence' is empty; write a text or remove the row"),)
        ),
    )
    other = RowSpec(SST.texts, SST.label, SST.kind, on_bad_row="leave_out")
    assert prepare(tmp_path, content, other).left_out == {"empty text": 1}
    with pytest.raises(TypeError):
        prepare(tmp_path, content + b"4\tnew\t1\n")
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()) == ["contents", "rows"]


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("part", ["ROWS", "LINE", "KEY", "LABEL_KEY", "SUMMARY"])
@pytest.mark.parametrize("name", ["train.tsv", "train.parquet"])
def test_a_full_disk_names_the_cache_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: str
) -> None:
    if name.endswith("parquet"):
        pq.write_table(pa.table({"sentence": ["good film"], "sentiment": ["4"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(GOOD))
    monkeypatch.setattr(row_writer, part, str(FULL))
    with pytest.raises(WriteError) as caught:
        prepare_rows(SST, resolve_source(name, tmp_path), cache=tmp_path / "cache", name="sst train")
    what = "cannot be written: No space left on device; free space or choose another cache with XDG_CACHE_HOME"
    assert str(caught.value) == f"{tmp_path / 'cache'}: {what}"
    assert list((tmp_path / "cache").glob("*.part")) == list((tmp_path / "cache").glob("rows-*")) == []


@pytest.mark.parametrize(
    ("good", "text"),
    [(0, "\n".join(GOOD)), (1, "\n".join(GOOD)), (1, "no such columns\ngood film\n")],
    ids=["at once", "behind the rows", "behind a bad header"],
)
def test_a_source_that_stops_being_readable_is_no_fault_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int, text: str
) -> None:
    reads = iter(range(99))
    plain = HashedFile.readinto

    def fails(self: HashedFile, into: bytearray) -> int | None:
        if next(reads) >= good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(self, into)

    monkeypatch.setattr(HashedFile, "readinto", fails)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, text)
    what = f"train.tsv: cannot be read (Input/output error): {tmp_path / 'train.tsv'}"
    assert str(caught.value) == f"A data source cannot be used.\n  {what}"
    assert list((tmp_path / "cache").iterdir()) == []


def test_many_writers_at_once_leave_one_table(tmp_path: Path) -> None:
    content = "sentence\tsentiment\n" + "".join(f"text {number}\t{number % 2}\n" for number in range(500))
    (tmp_path / "train.tsv").write_text(content)
    source = resolve_source("train.tsv", tmp_path)
    tables: list[RowTable] = []
    threads = [
        threading.Thread(target=lambda: tables.append(prepare_rows(SST, source, cache=tmp_path / "cache", name="x")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(table) for table in tables] == [500] * 6
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()) == ["contents", "rows"]


def test_many_flushes_keep_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_writer, "_FLUSH_ROWS", 7)
    content = "sentence\tsentiment\n" + "".join(f"text {number}\t{number % 3}\n" for number in range(100))
    table = prepare(tmp_path, content)
    assert [text for chunk in table.chunks(9) for (text,) in chunk] == [f"text {number}" for number in range(100)]
    assert table.place(99) == "train.tsv:101"
    assert fit_labels(table) == ("0", "1", "2")


def labelled(folder: Path, labels: list[str], spec: RowSpec = SST) -> RowTable:
    return prepare(folder, "sentence\tsentiment\n" + "".join(f"t\t{label}\n" for label in labels), spec)


BINARY = RowSpec(("sentence",), "sentiment", "binary")


@pytest.mark.parametrize(
    ("labels", "fitted"),
    [
        (["10", "9", "1.0", "1"], ("1", "9", "10")),
        (["b", "10", "9", "a"], ("10", "9", "a", "b")),
        (["-1", "0.5", "0"], ("-1", "0", "0.5")),
    ],
)
def test_labels_are_sorted_as_numbers_or_as_text(tmp_path: Path, labels: list[str], fitted: tuple[str, ...]) -> None:
    assert fit_labels(labelled(tmp_path, labels)) == fitted


@pytest.mark.parametrize("pair", [("0", "1"), ("no", "yes"), ("false", "true"), ("negative", "positive")])
def test_the_second_label_of_a_binary_task_is_the_positive_one(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert fit_labels(labelled(tmp_path, [pair[1], pair[0], pair[1]], BINARY)) == pair


MANY = [f"{number}" for number in range(60)]
UNFIT = [
    (
        MANY,
        SST,
        "has 60 different labels in 60 rows, all of them numbers; is this a regression? If not, list them in `labels`",
    ),
    (
        [f"{number}" for number in range(1001)] * 3,
        SST,
        "has 1,001 different labels in 3,003 rows, all of them numbers; is this a regression? If not, list them in `labels`",
    ),
    (
        [f"code {number}" for number in range(10_001)],
        SST,
        "has 10,001 different labels in 10,001 rows; is this the column of the labels?",
    ),
    (["1", "1"], SST, "has only the label '1'; a classification task needs two or more"),
    (
        ["0", "1", "2"],
        BINARY,
        "has 3 different labels in 3 rows ('0', '1', '2'); a binary task needs exactly two: is this a classification?",
    ),
    ([""], SST, "has no labels"),
]


@pytest.mark.parametrize("labels", [[f"intent {n}" for n in range(60)], [f"code {n % 1_100}" for n in range(3_300)]])
def test_many_names_of_classes_are_no_measurements(tmp_path: Path, labels: list[str]) -> None:
    assert fit_labels(labelled(tmp_path, labels)) == tuple(sorted(set(labels)))


@pytest.mark.parametrize(("labels", "spec", "what"), UNFIT, ids=["half", "many", "most", "one", "binary", "none"])
def test_labels_that_cannot_be_fitted(tmp_path: Path, labels: list[str], spec: RowSpec, what: str) -> None:
    with pytest.raises(DataError) as caught:
        fit_labels(labelled(tmp_path, labels, spec))
    assert str(caught.value) == f"The labels of sst train cannot be used.\n  train.tsv: column 'sentiment' {what}"


def test_few_distinct_rows_are_not_called_a_regression(tmp_path: Path) -> None:
    assert len(fit_labels(labelled(tmp_path, MANY[:50]))) == 50
    assert len(fit_labels(labelled(tmp_path, MANY * 2))) == 60


def test_labels_are_checked_in_their_one_spelling(tmp_path: Path) -> None:
    table = labelled(tmp_path, ["0", "1.0", "9", *["8"] * 30])
    assert rows_outside(table, ["0.0", "1"]).tolist() == list(range(2, 33))
    problems = check_labels(table, [f"{number}" for number in range(8)] + ["a", "b", "c"])
    assert len(problems) == 21
    listed = ", ".join(f"'{number}'" for number in range(8))
    expected = f"column 'sentiment' is '9'; the labels are {listed}, 'a', 'b' and 1 more"
    assert problems[0] == Problem("train.tsv:4", expected)
    assert problems[20] == Problem("train.tsv", "11 more of this kind (unknown label)")
    assert check_labels(table, ["0", "1", "8", "9"]) == ()
