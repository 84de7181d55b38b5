"""The reader of TSV and CSV files: what it reads, on which line, and what it says of what it cannot read."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothtune.data import delimited
from smoothtune.data.delimited import read_delimited
from smoothtune.data.source import Flaw, Record

HEADER = b"id\tsentence\tsentiment\n"
WANTED = ("sentence", "sentiment")
FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.text(
    '",\t\r\n\u2028 a', max_size=8
)


def read(folder: Path, content: bytes, columns: tuple[str, ...] = WANTED) -> list[Record | Flaw]:
    path = folder / "train.tsv"
    path.write_bytes(content)
    return list(read_delimited(path, columns, "\t"))


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(FIELD, min_size=width, max_size=width), min_size=1, max_size=8))


@given(tables(), st.sampled_from("\t,"), st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]))
@settings(deadline=None, max_examples=150)
def test_what_csv_writer_writes_is_read_back_with_its_line(
    rows: list[list[str]], delimiter: str, ends: tuple[str, int]
) -> None:
    names = tuple(f"c{number}" for number in range(len(rows[0])))
    buffer, expected = io.StringIO(), []
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=ends[0], quoting=ends[1])
    writer.writerow(names)
    for row in rows:
        expected.append(Record(buffer.getvalue().count("\n") + 1, tuple(reversed(row))))
        writer.writerow(row)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(buffer.getvalue().encode())
        assert list(read_delimited(path, tuple(reversed(names)), delimiter)) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_bom_and_empty_lines(tmp_path: Path, end: bytes, bom: bytes) -> None:
    content = bom + end.join([b"sentence\tsentiment", b"good", b"", b'"a\tb ""c"""\t1', "b\u2028c\t0".encode()])
    assert read(tmp_path, content) == [
        Flaw("wrong number of fields", 2, "1 field where the header has 2: nothing stands in column 'sentiment'"),
        Record(4, ('a\tb "c"', "1")),
        Record(5, ("b\u2028c", "0")),
    ]


BAD_ROWS = [
    (
        b"1\tgood\t1\textra\n",
        "wrong number of fields",
        "4 fields where the header has 3: 'extra' stands after the last column, 'sentiment'; "
        "quote fields that hold separators",
    ),
    (
        b"1\tgood\n",
        "wrong number of fields",
        "2 fields where the header has 3: nothing stands in column 'sentiment'",
    ),
    (
        b"1\tcaf\xe9\t1\n",
        "not UTF-8",
        "column 'sentence' has byte 0xE9 at character 4, which is not UTF-8; save the file as UTF-8",
    ),
    (b"1\tg\x00d\t1\n", "NUL byte", "column 'sentence' has a NUL byte (0x00) at character 2; remove it"),
    (
        b'1\t"good" film\t1\n',
        "bad quotes",
        "text follows a closing quote ('\t' expected after '\"'); "
        "put quotes around the field and double the quotes inside it",
    ),
    (
        b"1\tgo\rod\t1\n",
        "bad line end",
        "a carriage return stands inside a field without quotes; "
        "put quotes around the field and double the quotes inside it",
    ),
    (b"1\t" + b"a" * 140_000 + b"\t1\n", "too long", "a field is longer than 131,072 characters; shorten it"),
]


@pytest.mark.parametrize(("row", "kind", "what"), BAD_ROWS, ids=[f"{number}" for number in range(len(BAD_ROWS))])
def test_a_bad_row_is_told_and_reading_goes_on(tmp_path: Path, row: bytes, kind: str, what: str) -> None:
    good = b'0\t"two\nlines"\t1\n'
    assert read(tmp_path, HEADER + good + row + row + good) == [
        Record(2, ("two\nlines", "1")),
        Flaw(kind, 4, what),
        Flaw(kind, 5, what),
        Record(6, ("two\nlines", "1")),
    ]


def test_a_bad_byte_inside_a_record_of_many_lines_is_told_with_its_own_line(tmp_path: Path) -> None:
    (flaw, record) = read(tmp_path, HEADER + b'1\t"a\nb\nc\xe9"\t1\n2\tfine\t0\n')
    assert isinstance(flaw, Flaw)
    assert (flaw.kind, flaw.line) == ("not UTF-8", 4)
    assert record == Record(5, ("fine", "0"))


def test_a_bad_byte_beyond_the_header_names_the_field(tmp_path: Path) -> None:
    (flaw,) = read(tmp_path, HEADER + b"1\ta\t1\t\xff\n")
    assert isinstance(flaw, Flaw)
    assert flaw.what == "field 4 has byte 0xFF at character 1, which is not UTF-8; save the file as UTF-8"


def test_a_quote_that_is_never_closed_names_the_line_where_its_record_begins(tmp_path: Path) -> None:
    short = read(tmp_path, HEADER + b'1\ta\t1\n2\t"b\t1\n3\tc\t1\n')
    closing = "close or double its quote"
    what = f"the record begins a quoted field that is never closed; {closing}"
    assert short == [Record(2, ("a", "1")), Flaw("open quote", 3, what)]
    long = read(tmp_path, HEADER + b'2\t"b\t1\n' + b"3\tccccccccccccccc\t1\n" * 10_000)
    (flaw,) = long
    assert isinstance(flaw, Flaw)
    assert (flaw.kind, flaw.line) == ("open quote", 2)
    assert flaw.what == f"a quoted field that begins here is still open at line 6556; {closing}"


HEADERS = [
    (b"", 0, "is empty, or its first line is; the first line must name the columns"),
    (b"\xef\xbb\xbf", 0, "is empty, or its first line is; the first line must name the columns"),
    (b"sentence\tsentence\tsentiment\n", 1, "column 'sentence' stands more than once in the header; rename one"),
    (
        b"sentence\tsentimnt\n",
        1,
        "has no column 'sentiment'; its columns are: 'sentence', 'sentimnt'; did you mean 'sentimnt'?",
    ),
    (
        b"sentence,x\n",
        1,
        "has no column 'sentiment'; its columns are: 'sentence,x'; is the file separated by a comma?",
    ),
    (b"sentence\tx\n", 1, "has no column 'sentiment'; its columns are: 'sentence', 'x'"),
    (
        "sentence\tsentiment\n".encode("utf-16"),
        1,
        "the header is not UTF-8 text: field 1 has byte 0xFF at character 1, which is not UTF-8; "
        "save the file as UTF-8",
    ),
    (
        b'"sentence',
        1,
        "the header cannot be read (unexpected end of data); write one line of column names in UTF-8",
    ),
]


@pytest.mark.parametrize(("content", "line", "what"), HEADERS, ids=[str(number) for number in range(len(HEADERS))])
def test_a_bad_header(tmp_path: Path, content: bytes, line: int, what: str) -> None:
    columns = ("sentiment",) if b"," in content else WANTED
    (flaw,) = read(tmp_path, content, columns)
    assert isinstance(flaw, Flaw)
    assert (flaw.line, flaw.what) == (line, what)


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER) == []


def test_an_endless_line_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LINE_LIMIT", 1 << 10)
    flaws = read(tmp_path, HEADER + b"1\ta\t1\n" + b"\t" * 2_000 + b"\n2\tb\t1\n")
    assert flaws == [Record(2, ("a", "1")), Flaw("file", 3, "the line is longer than 0 MiB; is this a text file?")]
