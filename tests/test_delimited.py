"""The reader of TSV and CSV files: what it reads, on which line, and what it says of what it cannot read."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smoothtune.data import csv_lines, delimited
from smoothtune.data.delimited import read_delimited
from smoothtune.data.source import Flaw, Record, Remark

HEADER = b"id\tsentence\tsentiment\n"
WANTED = ("sentence", "sentiment")
FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.text(
    '",\t\r\n\u2028 a', max_size=8
)


def read(
    folder: Path, content: bytes, columns: tuple[str, ...] = WANTED, delimiter: str = "\t"
) -> list[Record | Flaw | Remark]:
    path = folder / "train.tsv"
    path.write_bytes(content if delimiter == "\t" else content.replace(b"\t", b","))
    return list(read_delimited(path, columns, delimiter))


def separable(text: str, delimiter: str, width: int) -> bool:
    """Whether each of several lines would be a row if quotes were text."""
    lines = text.removesuffix("\n").removesuffix("\r").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    return len(lines) > 1 < width and all("\r" not in line and line.count(delimiter) == width - 1 for line in lines)


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
    buffer = io.StringIO(newline="")
    expected: list[Record | Remark] = []
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=ends[0], quoting=ends[1])
    writer.writerow(names)
    for row in rows:
        assume(len(row) == 1 or row != list(names))
        before = buffer.tell()
        expected.append(Record(buffer.getvalue().count("\n") + 1, tuple(reversed(row))))
        writer.writerow(row)
        several = separable(buffer.getvalue()[before:], delimiter, len(row))
        assume(delimiter == "," or not several)  # of a TSV file, lines that are rows by themselves are rows
        lines = buffer.getvalue().count("\n") + 1 - expected[-1].line
        if lines > 1:
            kind = "rows in one" if several else "several lines"
            expected.append(
                Remark(kind, expected[-1].line, f"lines {expected[-1].line} to {expected[-1].line + lines - 1}")
            )
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
        b"1\tgo\rod\t1\n",
        "bad line end",
        "a carriage return stands inside a field without quotes; "
        "put quotes around the field and double the quotes inside it",
    ),
]


@pytest.mark.parametrize(("row", "kind", "what"), BAD_ROWS, ids=[f"{number}" for number in range(len(BAD_ROWS))])
def test_a_bad_row_is_told_and_reading_goes_on(tmp_path: Path, row: bytes, kind: str, what: str) -> None:
    good = b'0\t"two\nlines"\t1\n'
    for delimiter in "\t,":
        assert read(tmp_path, HEADER + good + row + row + good, delimiter=delimiter) == [
            Record(2, ("two\nlines", "1")),
            Remark("several lines", 2, "lines 2 to 3"),
            Flaw(kind, 4, what),
            Flaw(kind, 5, what),
            Record(6, ("two\nlines", "1")),
            Remark("several lines", 6, "lines 6 to 7"),
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


CLOSE = "begins a quoted field that is never closed; close or double its quote"
QUOTES = "put quotes around the field and double the quotes inside it"


def test_quotes_that_make_no_fields_are_text_in_tsv(tmp_path: Path) -> None:
    """The quotes of a TSV file may be those of its texts: a melted row is several."""
    content = (
        b'1\t"Great start\tpos\n2\tdull middle\tneg\n3\tsplendid end"\tpos\n'  # lines 2 to 4
        b'4\t"Yes," he said\tneg\n5\t"both"\tpos\n6\t"a\tb"\tneg\n'
        b'7\t"one\n\ntwo"\tpos\n8\tlone"\tneg\n9\tx\t"lone\n'
    )
    records = [found for found in read(tmp_path, HEADER + content) if not isinstance(found, Remark)]
    assert records == [
        Record(2, ('"Great start', "pos")),
        Record(3, ("dull middle", "neg")),
        Record(4, ('splendid end"', "pos")),
        Record(5, ('"Yes," he said', "neg")),
        Record(6, ("both", "pos")),
        Record(7, ("a\tb", "neg")),
        Record(8, ("one\n\ntwo", "pos")),
        Record(11, ('lone"', "neg")),
        Record(12, ("x", '"lone')),
    ]
    remarks = [found for found in read(tmp_path, HEADER + content) if isinstance(found, Remark)]
    assert remarks == [
        Remark("quotes as text", 2, ""),
        Remark("quotes as text", 5, ""),
        Remark("several lines", 8, "lines 8 to 10"),
        Remark("quotes as text", 12, ""),
    ]


@pytest.mark.parametrize("place", range(1, 6))
def test_quotes_in_tsv_never_melt_rows(tmp_path: Path, place: int) -> None:
    """A text that begins with a quote, and a later one that ends with one, wherever they stand."""
    rows = [[f"text {number}", "pos"] for number in range(6)]
    rows[0][0], rows[place][0] = '"first', 'last"'
    content = b"sentence\tsentiment\n" + "".join("\t".join(row) + "\n" for row in rows).encode()
    records = [found for found in read(tmp_path, content) if isinstance(found, Record)]
    assert [list(record.values) for record in records] == rows
    assert [record.line for record in records] == [2, 3, 4, 5, 6, 7]


def test_rows_melted_by_quotes_in_csv_are_told(tmp_path: Path) -> None:
    content = b'1\t"Great start\tpos\n2\tdull middle\tneg\n3\tsplendid end"\tpos\n4\tx\tneg\n'
    assert read(tmp_path, HEADER + content, delimiter=",") == [
        Record(2, ("Great start,pos\n2,dull middle,neg\n3,splendid end", "pos")),
        Remark("rows in one", 2, "lines 2 to 4"),
        Record(5, ("x", "neg")),
    ]


def test_texts_of_several_lines_with_commas_are_no_rows_in_one(tmp_path: Path) -> None:
    content = b'1,"Hello, there,\nI like it, a lot,\nreally",pos\n'
    assert [found for found in read(tmp_path, HEADER + content, delimiter=",") if isinstance(found, Record)] == [
        Record(2, ("Hello, there,\nI like it, a lot,\nreally", "pos"))
    ]


def test_a_lone_quote_costs_its_line_alone(tmp_path: Path) -> None:
    csv_rows = read(tmp_path, HEADER + b'1\ta\t1\n2\t"b\t1\n3\tc\t1\n', delimiter=",")
    assert csv_rows == [Record(2, ("a", "1")), Flaw("open quote", 3, CLOSE), Record(4, ("c", "1"))]
    tsv_rows = read(tmp_path, HEADER + b'2\t"b\n3\tc\t1\n')
    assert tsv_rows == [Flaw("open quote", 2, CLOSE), Record(3, ("c", "1"))]
    error = "text follows a closing quote at line 3 (',' expected after '\"')"
    assert read(tmp_path, HEADER + b'1\t"b\t1\n2\tsaid "so" c\t1\n3\tc\t1\n', delimiter=",") == [
        Flaw("bad quotes", 2, f"{error}; {QUOTES}"),
        Record(3, ('said "so" c', "1")),
        Record(4, ("c", "1")),
    ]


def test_lines_melted_into_a_row_of_another_width_are_read_again(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + b'"1\tgood\t1\n2\tc"\t1\n3\td\t1\n', delimiter=",") == [
        Flaw(
            "wrong number of fields",
            2,
            "quotes make one row of lines 2 to 3: 2 fields where the header has 3: nothing stands in column 'sentiment'",
        ),
        Record(3, ('c"', "1")),
        Record(4, ("d", "1")),
    ]


def test_many_lone_quotes_and_an_open_one_take_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is decoded once, and read at most a few times."""
    reads = 0
    take = csv_lines.CsvLines._take

    def counted(self: csv_lines.CsvLines, text: str, *, broken: bool) -> None:
        nonlocal reads
        reads += 1
        take(self, text, broken=broken)

    monkeypatch.setattr(csv_lines.CsvLines, "_take", counted)
    rows = 3_000
    content = b"".join(b'%d\t"lone\t1\n' % row if row % 3 else b"%d\tx\t1\n" % row for row in range(rows))
    for delimiter in "\t,":
        reads = 0
        found = read(tmp_path, HEADER + content, delimiter=delimiter)
        assert sum(not isinstance(part, Remark) for part in found) == rows
        assert reads < 5 * rows


def test_a_row_of_several_lines_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LINE_LIMIT", 1 << 12)
    found = read(tmp_path, HEADER + b'1\t"open\t1\n' + b"2\tfine\t1\n" * 1_000, delimiter=",")
    assert found[0] == Flaw("open quote", 2, CLOSE)
    assert found[1:] == [Record(line, ("fine", "1")) for line in range(3, 1_003)]


def test_long_fields_are_read(tmp_path: Path) -> None:
    long = "a" * 200_000
    assert read(tmp_path, HEADER + f"{long}\tgood\t1\n1\t{long}\t1\n".encode()) == [
        Record(2, ("good", "1")),
        Record(3, (long, "1")),
    ]


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_a_header_in_the_middle_is_no_row(tmp_path: Path, delimiter: str) -> None:
    again = Flaw("header", 3, delimited.HEADER_AGAIN)
    content = HEADER + b"1\tgood\t1\n" + HEADER + b"sentence\tx\t1\n"
    assert read(tmp_path, content, delimiter=delimiter) == [Record(2, ("good", "1")), again, Record(4, ("x", "1"))]
    assert again in read(tmp_path, content, ("sentence",), delimiter)
    moved = HEADER + b"1\tgood\t1\nID\tsentence\tsentiment\n"
    assert again in read(tmp_path, moved, delimiter=delimiter)
    assert read(tmp_path, b"sentence\nsentence\n", ("sentence",)) == [Record(2, ("sentence",))]


def test_columns_that_nobody_asks_for_may_stand_twice(tmp_path: Path) -> None:
    assert read(tmp_path, b"id\tsentence\tsentiment\tid\n1\tgood\t1\tx\n") == [Record(2, ("good", "1"))]


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
        "has no column 'sentiment'; its columns are: 'sentence,x'; is the file separated by a comma? then call it .csv",
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
