"""A text file as its records: a JSON line each, or a line of CSV, whose quoted fields may hold line breaks.

Memory holds one piece of about a megabyte, or one record, whatever the size of the file.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gptj_batch.errors import shorten
from gptj_batch.records.formats import compression_of
from gptj_batch.records.locate import locate

_BLOCK_BYTES = 1024 * 1024
_MAX_RECORD_BYTES = 64 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE = b" \t\r"

Offsets = NDArray[np.int64]
# Whole records at the beginning of some bytes: where each begins and ends, and how many bytes belong to them.
Split = tuple[Offsets, Offsets, int]
Splitter = Callable[[bytes], Split]


class BadTextError(ValueError):
    """A text file that cannot be read; its message is the rule that the file breaks, with the line."""


def not_of_type(field: pa.Field) -> BadTextError:
    """Return the error for a value that is not of its column's type, which is so only in a file that has changed."""
    name = shorten(field.name, 40)
    return BadTextError(
        f'"{name}" has a value that is no {shorten(field.type)}; the file has changed, or other files differ'
    )


@dataclass(frozen=True)
class Records:
    """Records that follow one another in a file.

    content: their bytes    starts, stops: where each lies in `content`; blank lines are no records
    offset: where `content` begins in the file    row: the number of the first record, from 0
    line: the number of the line that `content` begins with, from 1
    """

    content: bytes
    starts: Offsets
    stops: Offsets
    offset: int
    row: int
    line: int

    def __len__(self) -> int:
        return len(self.starts)

    def __bool__(self) -> bool:
        return True  # also of blank lines alone

    def __iter__(self) -> Iterator[bytes]:
        return (self.content[start:stop] for start, stop in zip(self.starts, self.stops, strict=True))

    def line_of(self, index: int) -> int:
        """Return the number of the line that a record begins on."""
        return self.line + self.content.count(b"\n", 0, int(self.starts[index]))

    def cut(self, num_rows: int) -> tuple["Records", "Records"]:
        """Return the first records, and the others."""
        end = int(self.starts[num_rows])
        first = replace(self, content=self.content[:end], starts=self.starts[:num_rows], stops=self.stops[:num_rows])
        rest = replace(
            self,
            content=self.content[end:],
            starts=self.starts[num_rows:] - end,
            stops=self.stops[num_rows:] - end,
            offset=self.offset + end,
            row=self.row + num_rows,
            line=self.line_of(num_rows),
        )
        return first, rest


def split_lines(content: bytes) -> Split:
    """Return every line that is not blank."""
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")).astype(np.int64)
    if not len(ends):
        return ends, ends, 0
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))
    # Most lines begin with a brace; only those that may be blank are looked at one by one.
    for index in np.flatnonzero(np.isin(np.frombuffer(content, np.uint8)[starts], list(_WHITE + b"\n"))):
        if not content[starts[index] : ends[index]].strip(_WHITE):
            starts[index] = -1
    kept = starts >= 0
    return starts[kept], ends[kept], int(ends[-1]) + 1


def csv_splitter(delimiter: str) -> Splitter:
    """Return what finds records of CSV as RFC 4180 has them: a quote counts only where a field begins with it."""
    comma = re.escape(delimiter.encode())
    # Possessive: nothing is tried twice, so that a field of megabytes takes the time of its bytes.
    field = rb'(?:"(?:[^"]++|"")*+"[^%b\n]*+|[^"%b\n][^%b\n]*+)?+' % (comma, comma, comma)
    record = re.compile(rb"%b(?:%b%b)*+\n" % (field, comma, field))

    def split(content: bytes) -> Split:
        if b'"' not in content:
            return _not_empty(content, *split_lines_as_they_are(content))
        starts, stops, end = [], [], 0
        while match := record.match(content, end):
            starts.append(end)
            end = match.end()
            stops.append(end - 1)
        return _not_empty(content, np.array(starts, np.int64), np.array(stops, np.int64), end)

    return split


def split_lines_as_they_are(content: bytes) -> Split:
    """Return every line, blank ones too."""
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")).astype(np.int64)
    if not len(ends):
        return ends, ends, 0
    return np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1)), ends, int(ends[-1]) + 1


def _not_empty(content: bytes, starts: Offsets, stops: Offsets, end: int) -> Split:
    """Leave out the lines that hold nothing, as readers of CSV do; one of spaces is a record."""
    first = np.frombuffer(content, np.uint8)[starts]
    filled = (stops > starts) & ~((stops == starts + 1) & (first == ord("\r")))
    return starts[filled], stops[filled], end


class TextStream:
    """A text file that is open: its records from a place on, in order.

    offset, row, line: the place of the next record, or of the blank line before it. `offset` is counted behind the
    decompression. first_row: the number of the first record; a header is row -1
    """

    def __init__(self, path: str, split: Splitter, first_row: int = 0) -> None:
        self._path = path
        self._split = split
        self._first_row = first_row
        self._open()

    def _open(self) -> None:
        place = locate(self._path)
        raw = place.filesystem.open_input_file(place.path)
        self.file_bytes = int(raw.size())
        compression = compression_of(self._path)
        self._seekable = compression is None
        self._source: Any = raw if compression is None else pa.CompressedInputStream(raw, compression)
        self._ahead: Records | None = None  # found, and not yet given
        self.offset, self.row, self.line = 0, self._first_row, 1
        self._left = self._read(len(_BYTE_ORDER_MARK))  # bytes that were read and hold no whole record yet
        if self._left == _BYTE_ORDER_MARK:
            self._left, self.offset = b"", len(_BYTE_ORDER_MARK)

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def next(self) -> Records | None:
        """Return the next records, about a megabyte of them, or None at the end. Raises BadTextError."""
        records, self._ahead = self._ahead, None
        if records is None:
            records = self._read_whole()
        if records is not None:
            self._stand_behind(records)
        return records

    def _stand_behind(self, records: Records) -> None:
        self.offset = records.offset + len(records.content)
        self.row = records.row + len(records)
        self.line = records.line + records.content.count(b"\n")

    def _read_whole(self) -> Records | None:
        want = _BLOCK_BYTES
        while block := self._read(want):
            content = self._left + block
            if records := self._whole(content):
                return records
            if len(content) > _MAX_RECORD_BYTES:
                most = f"{_MAX_RECORD_BYTES // 2**20} MiB"
                raise BadTextError(
                    f"line {self.line}: a line, or a quoted field that opens in it, is longer than {most}"
                )
            self._left = content
            want = len(content)  # it is looked at from its start again: twice as far every time
        if not self._left:
            return None
        if records := self._whole(self._left + b"\n"):  # the last line may have no end
            return records
        raise BadTextError(f"line {self.line}: a quote opens in it that is never closed")

    def _whole(self, content: bytes) -> Records | None:
        starts, stops, end = self._split(content)
        if not end:
            return None
        self._left = content[end:]
        return Records(content[:end], starts, stops, self.offset, self.row, self.line)

    def take(self, num_rows: int) -> Iterator[Records]:
        """Yield exactly the next records, fewer only where the file ends. Raises BadTextError."""
        while num_rows and (records := self.next()):
            if len(records) > num_rows:
                records, self._ahead = records.cut(num_rows)
                self._stand_behind(records)
            num_rows -= len(records)
            yield records

    def go(self, row: int, mark_row: int, mark_offset: int) -> None:
        """Go to a record, whose place is at or behind that of another one, `mark_row`, which begins at `mark_offset`.

        From where the stream stands, if that is between the two; a compressed file is read from its start otherwise.
        """
        if not mark_row <= self.row <= row:
            self._jump(mark_row, mark_offset)
        for _ in self.take(row - self.row):
            pass  # what stands between is only counted

    def _jump(self, row: int, offset: int) -> None:
        if self._seekable:
            self._source.seek(offset)
            self._left = b""
        else:
            if self.offset > offset:
                self.close()
                self._open()
            self._pass_over(offset)
        self._ahead = None
        self.offset, self.row, self.line = offset, row, 1

    def _pass_over(self, offset: int) -> None:
        """Read a compressed file up to `offset`; what was read and not used comes first."""
        unused = (self._ahead.content if self._ahead is not None else b"") + self._left
        missing = offset - self.offset
        self._left = unused[missing:]
        missing -= len(unused)
        while missing > 0:
            if not (block := self._read(min(missing, _BLOCK_BYTES))):
                raise BadTextError("the file is shorter than it was")
            missing -= len(block)

    def _read(self, num_bytes: int) -> bytes:
        block: bytes = self._source.read(num_bytes)
        return block
