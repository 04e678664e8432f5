import pyarrow as pa
import pytest

from gptj_batch.records import text
from gptj_batch.records.csv_text import HEADER_ROW, csv_table, scan_csv
from gptj_batch.records.text import BadTextError, TextStream, csv_splitter

from .text_files import write_text


def column(tmp_path, *fields: str) -> str:
    content = "c,id\n" + "".join(f"{field},x\n" for field in fields)
    return str(scan_csv(str(write_text(tmp_path / "a.csv", content)))[1].field("c").type)


def rows_of(path, schema: pa.Schema | None = None, delimiter: str = ",") -> list[dict]:
    _, found, _, header = scan_csv(str(path))
    stream = TextStream(str(path), csv_splitter(delimiter), first_row=HEADER_ROW)
    list(stream.take(1))
    pieces = [csv_table(piece, header, delimiter, schema or found) for piece in iter(stream.next, None)]
    return [row for piece in pieces for row in piece.to_pylist()]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (["", ""], "null"),
        (["1", "", "-5", "0"], "int64"),
        (["9223372036854775807"], "int64"),
        (["1", "2.5", "-1e-7", ".5"], "double"),
        (["true", "False"], "bool"),
        (['"1"', '"2"'], "int64"),
        # Nothing that a number would not give back as it was written.
        (["007", "8"], "string"),
        (["+1"], "string"),
        (["1 "], "string"),
        (["1_000"], "string"),
        (["0x1F"], "string"),
        (["9223372036854775808"], "string"),
        (["9007199254740993", "0.5"], "string"),
        (["1", "NA"], "string"),
        (["1", "true"], "string"),
        (["2024-01-01", "2024-01-02"], "string"),
        (["nan", "inf"], "string"),
    ],
)
def test_a_column_is_a_number_where_every_field_is_written_as_one(tmp_path, fields, kind):
    assert column(tmp_path, *fields) == kind


def test_the_type_is_that_of_all_rows_not_of_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK_BYTES", 32)
    assert column(tmp_path, *["1"] * 200, "007") == "string"
    assert column(tmp_path, *["1"] * 200, "0.5") == "double"


def test_fields_are_taken_as_they_are_written(tmp_path):
    path = write_text(
        tmp_path / "a.csv", '\ufeffid,text,n\r\n1,"a\r\nb, ""c""",\r\n2,"",7\r\n\r\n3,,8\r\n4, 5" pipe ,9\r\n'
    )
    assert rows_of(path) == [
        {"id": 1, "text": 'a\r\nb, "c"', "n": None},
        {"id": 2, "text": "", "n": 7},
        {"id": 3, "text": None, "n": 8},
        {"id": 4, "text": ' 5" pipe ', "n": 9},
    ]


def test_tabs_separate_the_fields_of_a_tsv_file(tmp_path):
    path = write_text(tmp_path / "a.tsv", 'id\ttext\n1\ta,b\n2\t"c\td"\n')
    assert rows_of(path, delimiter="\t") == [{"id": 1, "text": "a,b"}, {"id": 2, "text": "c\td"}]


def test_names_may_be_quoted_and_hold_anything(tmp_path):
    path = write_text(tmp_path / "a.csv", '"a\nb","c, d",\n1,2,3\n')
    assert rows_of(path) == [{"a\nb": 1, "c, d": 2, "": 3}]


def test_a_header_alone_is_a_file_without_rows(tmp_path):
    num_rows, schema, _, header = scan_csv(str(write_text(tmp_path / "a.csv", "id,text\n")))
    assert (num_rows, schema.names, header) == (0, ["id", "text"], ("id", "text"))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("a,b\n1,2\n\n3\n", "line 4: the row has 1 field, and the header 2"),
        ('a,b\n1,"x\ny"\n3,secret,5\n', "line 4: the row has 3 fields, and the header 2"),
        ("a,b,a\n", 'its header has more than one "a"'),
        ("\n\n", "it has no line of column names"),
        ('a,b\n1,"secret\n', "line 2: a quote opens in it that is never closed"),
        ("a,b\r1,2\r", "line 1: its lines end with carriage returns alone"),
        ("a,b\n1,x\ry,2\n", "lines? 2"),
        (b"a,b\n1,x\n2,secr\xe9t\n", "line 3: byte 6 is not UTF-8"),
        (b"\xe9,b\n", "line 1: byte 0 is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_without_its_text(tmp_path, content, rule):
    with pytest.raises(BadTextError, match=rule) as caught:
        scan_csv(str(write_text(tmp_path / "a.csv", content)))
    assert "secr" not in str(caught.value)


def test_a_ragged_row_behind_the_first_block_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK_BYTES", 32)
    content = "a,b\n" + "".join(f'{row},"x\n"\n' for row in range(100)) + "1,2,3\n"
    with pytest.raises(BadTextError, match="line 202: the row has 3 fields, and the header 2"):
        scan_csv(str(write_text(tmp_path / "a.csv", content)))


def test_a_column_can_be_read_as_another_type_that_loses_nothing(tmp_path):
    path = write_text(tmp_path / "a.csv", "n,m\n1,\n2,\n")
    wider = pa.schema([("n", pa.float64()), ("m", pa.list_(pa.int8()))])
    assert rows_of(path, wider) == [{"n": 1.0, "m": None}, {"n": 2.0, "m": None}]
    large = write_text(tmp_path / "b.csv", "n\n9007199254740993\n")
    with pytest.raises(BadTextError, match='"n" holds a whole number that a double cannot hold exactly'):
        rows_of(large, pa.schema([("n", pa.float64())]))
