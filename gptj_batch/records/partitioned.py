"""Writing partitioned parts: every unit is read once for some hundred partitions, whose files are open together."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePath

import pyarrow as pa

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_series import PartSeries
from gptj_batch.records.partitions import partition_rows, split, without_columns
from gptj_batch.records.schema import name_list
from gptj_batch.records.unit_files import unit_tables

MAX_PARTITIONS = 10_000
# Files open at once, and the bytes that wait in all of them together for their row groups to fill.
_MAX_OPEN = 256
_MAX_WAITING_BYTES = 256 * 2**20


@dataclass
class _Span:
    """The units that have rows of a partition lie between these two, inclusive."""

    first: int
    last: int


def write_partitions(
    folder: OutputFolder, units: Sequence[PurePath], schema: pa.Schema, form: PartForm, first: int = 0
) -> dict[PurePath, int]:
    """Write the units' rows as parts in one folder a partition; return the parts with their numbers of rows.

    first: the number of each folder's first part

    Raises OutputError, also where there are too many partitions; nothing has been written then.
    """
    spans = _spans(units, schema, form.partition_by)
    written: dict[PurePath, int] = {}
    left = iter(spans.items())
    while wave := dict(islice(left, _MAX_OPEN)):
        written |= _write_wave(folder, units, schema, form, wave, first)
    return written


def _spans(units: Sequence[PurePath], schema: pa.Schema, columns: Sequence[str]) -> dict[str, _Span]:
    """Return the partitions in the order in which they first appear, so that sorted input opens few files at once."""
    spans: dict[str, _Span] = {}
    for number, table in enumerate(unit_tables(units, schema, columns)):
        for name in partition_rows(table, columns):
            spans.setdefault(name, _Span(number, number)).last = number
        if len(spans) > MAX_PARTITIONS:
            raise OutputError(
                f"output.partition_by: {name_list(columns)} has more than {MAX_PARTITIONS:,} values, each of which "
                "would be a folder. Choose another output.partition_by, or [] for none, and run again: finished units "
                "are kept"
            )
    return spans


def _write_wave(
    folder: OutputFolder,
    units: Sequence[PurePath],
    schema: pa.Schema,
    form: PartForm,
    wave: dict[str, _Span],
    first_part: int,
) -> dict[PurePath, int]:
    """Write some partitions in one pass over the units that have rows of them."""
    first, last = min(span.first for span in wave.values()), max(span.last for span in wave.values())
    kept = without_columns(schema, form.partition_by)
    waiting_bytes = _MAX_WAITING_BYTES // len(wave)
    written: dict[PurePath, int] = {}
    series: dict[str, PartSeries] = {}
    with ExitStack() as unfinished:
        for number, table in enumerate(unit_tables(units[first : last + 1], schema), start=first):
            for name, rows in split(table, form.partition_by, wave):
                if name not in series:
                    part = partial(folder.part, max_parts=len(units), ending=form.ending, partition=name)
                    path = partial(_numbered_from, first_part, part)
                    series[name] = PartSeries(folder, path, kept, form, waiting_bytes)
                    unfinished.push(series[name].leave_nothing)
                series[name].add(rows)
            for name in [name for name in series if wave[name].last == number]:
                written |= series.pop(name).finish()
    return written


def _numbered_from(first: int, part: Callable[[int], PurePath], index: int) -> PurePath:
    return part(first + index)
