import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.records import text
from gptj_batch.records.text import BadTextError, TextStream, csv_splitter, split_lines

from .text_files import PACKERS, write_text

split_csv = csv_splitter(",")


def cut(split, content: bytes) -> list[bytes]:
    starts, stops, _ = split(content)
    return [content[start:stop] for start, stop in zip(starts, stops, strict=True)]


def records_of(stream: TextStream) -> list[tuple[int, int, bytes]]:
    """Every record with its row and line."""
    return [
        (piece.row + index, piece.line_of(index), record)
        for piece in iter(stream.next, None)
        for index, record in enumerate(piece)
    ]


def test_blank_lines_are_no_records_and_the_last_line_waits_for_its_end():
    content = b"a\n\n  \n\t\r\n bc \r\nd"
    assert cut(split_lines, content) == [b"a", b" bc \r"]
    assert split_lines(content)[2] == len(content) - 1


def test_a_quoted_field_may_hold_line_breaks_delimiters_and_quotes():
    content = b'1,"a\nb",c\r\n2,"say ""hi""\n,",\n\n\r\n3,5" pipe,x\n'
    assert cut(split_csv, content) == [b'1,"a\nb",c\r', b'2,"say ""hi""\n,",', b'3,5" pipe,x']


@pytest.mark.parametrize("content", [b'1,"a\nb\n', b'"', b'1,"a""\n', b"1,2"])
def test_a_record_that_is_not_whole_waits(content):
    assert split_csv(content)[2] == 0


@given(st.lists(st.lists(st.text(st.sampled_from('a",\n;x é')), min_size=2, max_size=3), max_size=6), st.booleans())
def test_rows_that_python_writes_are_cut_where_python_wrote_them(rows, windows):
    end = "\r\n" if windows else "\n"
    lines = []
    for row in rows:
        sink = io.StringIO(newline="")
        csv.writer(sink, lineterminator=end).writerow(row)
        lines.append(sink.getvalue().encode())
    assert cut(split_csv, b"".join(lines)) == [line[:-1] for line in lines]


@pytest.mark.parametrize("ending", PACKERS)
def test_rows_and_lines_are_counted_over_all_pieces(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK_BYTES", 7)
    content = "".join(f"{row}\n" + "\n" * (row % 3) for row in range(100)) + "last"
    stream = TextStream(str(write_text(tmp_path / f"a.jsonl{ending}", content)), split_lines)
    lines = content.split("\n")
    expected = [(row, lines.index(name) + 1, name.encode()) for row, name in enumerate([*map(str, range(100)), "last"])]
    assert records_of(stream) == expected


@pytest.mark.parametrize("ending", PACKERS)
def test_a_stream_goes_back_and_forth_by_marks(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK_BYTES", 16)
    lines = [f"row {row}" for row in range(200)]
    path = write_text(tmp_path / f"a.jsonl{ending}", "".join(line + "\n" for line in lines))
    offsets = np.cumsum([0] + [len(line) + 1 for line in lines])
    stream = TextStream(str(path), split_lines)
    for start, mark in ((10, 8), (20, 16), (20, 16), (150, 144), (3, 0), (180, 60), (190, 184)):
        stream.go(start, mark, int(offsets[mark]))
        assert stream.row == start
        taken = [record.decode() for piece in stream.take(5) for record in piece]
        assert taken == lines[start : start + 5]


def test_going_on_in_a_compressed_file_does_not_begin_anew(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.jsonl.gz", "".join(f"row {row}\n" for row in range(1000)))
    stream = TextStream(str(path), split_lines)
    monkeypatch.setattr(stream, "_open", lambda: pytest.fail("opened again"))
    for start in range(0, 1000, 100):
        stream.go(start, 0, 0)
        assert sum(map(len, stream.take(100))) == 100


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path):
    path = write_text(tmp_path / "a.jsonl", b"\xef\xbb\xbfone\ntwo\n")
    stream = TextStream(str(path), split_lines)
    first = stream.next()
    assert list(first) == [b"one", b"two"] and first.offset == 3


def test_a_quote_that_is_never_closed_is_named_with_its_line(tmp_path):
    path = write_text(tmp_path / "a.csv", 'a,b\n1,2\n3,"four\n5,6\n')
    stream = TextStream(str(path), split_csv)
    with pytest.raises(BadTextError, match="line 3: a quote opens in it that is never closed"):
        records_of(stream)


def test_a_line_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_MAX_RECORD_BYTES", 2 * 2**20)
    path = write_text(tmp_path / "a.jsonl", "short\n" + "x" * (5 * 2**20))
    with pytest.raises(BadTextError, match=r"line 2: a line, .* is longer than 2 MiB"):
        records_of(TextStream(str(path), split_lines))


def test_a_long_quoted_field_takes_the_time_of_its_bytes(tmp_path):
    content = 'a,b\n1,"' + 'word ""quoted"", and\nmore ' * 400_000 + '"\n'
    assert len(records_of(TextStream(str(write_text(tmp_path / "a.csv", content)), split_csv))) == 2
