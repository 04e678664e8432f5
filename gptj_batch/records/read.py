"""Reading the input: which files there are, and the rows of one unit as a table."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from gptj_batch.errors import InputError, shorten
from gptj_batch.records.batches import (
    arrow_batches,
    damaged_chunk,
    open_arrow,
    open_parquet,
    open_source,
    parquet_batches,
)
from gptj_batch.records.footers import BadFile, InputFile, InputFiles, inspect_files
from gptj_batch.records.formats import FileFormat, with_formats
from gptj_batch.records.huggingface import dataset_files
from gptj_batch.records.locate import FoundFile, find_files
from gptj_batch.records.merge import conform, merge_schemas
from gptj_batch.records.plan import Unit, UnitPlan, plan_units
from gptj_batch.records.read_text import read_text
from gptj_batch.records.schema import one_dictionary, select_columns

__all__ = ["BadFile", "InputFile", "InputFiles", "Unit", "UnitPlan", "list_files", "plan_units", "read_unit"]

_MAX_FILES_SHOWN = 5


def list_files(
    path: str | Sequence[str],
    file_format: str = "auto",
    on_bad_file: Literal["fail", "skip"] = "fail",
    subset: str | None = None,
    split: str | None = None,
) -> InputFiles:
    """Find the files that `path` leads to, read what they say of themselves, and merge their columns.

    subset, split: of datasets, see `huggingface`

    Raises ConfigError for what this version does not read. Raises InputError, naming files, where nothing matches, two
    files disagree, or one cannot be read (with "skip": none can be read).
    """
    paths = dataset_files([path] if isinstance(path, str) else path, file_format, subset, split)
    good, bad = inspected(with_formats(find_files(paths), file_format), on_bad_file)
    if not good:
        raise InputError(_bad_files(bad, len(bad)))
    return with_one_schema(good, bad)


def inspected(
    found: Sequence[tuple[FoundFile, FileFormat]], on_bad_file: Literal["fail", "skip"]
) -> tuple[list[InputFile], tuple[BadFile, ...]]:
    """Read what files say of themselves; those that can be read, and with "skip" those that cannot.

    Raises InputError, naming files, where one cannot be read and none is to be skipped.
    """
    answers = inspect_files(found)
    bad = tuple(file for file in answers if isinstance(file, BadFile))
    if bad and on_bad_file == "fail":
        raise InputError(_bad_files(bad, len(answers)))
    return _with_partitions([file for file in answers if isinstance(file, InputFile)]), bad


def with_one_schema(good: Sequence[InputFile], bad: Sequence[BadFile] = (), first: Sequence[Any] = ()) -> InputFiles:
    """Return files with the columns of all of them.

    first: what has path, format and schema as files do, and gives the columns their order and their types before them

    Raises InputError where two disagree.
    """
    schema = merge_schemas([*first, *good])
    if not schema.names:
        raise InputError(
            f"input.path: {good[0].path} and all other files have no columns; check that they are the input"
        )
    return InputFiles(tuple(replace(file, schema=schema) for file in good), tuple(bad), schema)


def _bad_files(bad: Sequence[BadFile], num_files: int) -> str:
    shown = "; ".join(str(file) for file in bad[:_MAX_FILES_SHOWN])
    more = f"; and {len(bad) - _MAX_FILES_SHOWN} more" if len(bad) > _MAX_FILES_SHOWN else ""
    return (
        f"input.path: {len(bad)} of {num_files} files cannot be read: {shown}{more}. Write them again, take them out "
        "of input.path, or leave them out with errors.bad_files=skip"
    )


def _with_partitions(files: Sequence[InputFile]) -> list[InputFile]:
    """Add the partitions' columns to the files' own, typed as pyarrow.dataset does: int32 if all are, else text."""
    values: dict[str, list[str]] = {}
    for file in files:
        for name, value in file.partition:
            values.setdefault(name, []).extend([] if value is None else [value])
    kinds = {name: pa.int32() if seen and all(map(_is_int32, seen)) else pa.string() for name, seen in values.items()}
    return [
        replace(file, schema=_extended(file.schema, [pa.field(name, kinds[name]) for name, _ in file.partition]))
        for file in files
    ]


def _is_int32(value: str) -> bool:
    return bool(re.fullmatch("-?[0-9]{1,10}", value)) and -(2**31) <= int(value) < 2**31


def _extended(schema: pa.Schema, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([*schema, *fields], metadata=schema.metadata) if fields else schema


def read_unit(unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a unit's rows with the run's schema, or of it only `columns`, in the order given.

    Memory holds the unit and one batch, whatever the size of the file and of its row groups. Raises InputError where
    the file is gone, damaged, or not the one that was planned.
    """
    schema = select_columns(unit.schema, columns)
    if not unit.num_rows:
        return schema.empty_table()
    try:
        found = _rows(unit, schema)
        if found.num_rows != unit.num_rows:
            raise unit.changed(f"{unit.num_rows} rows planned, {found.num_rows} found")
        return _table(found, dict(unit.partition), schema)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _unreadable(unit, error) from error


def _rows(unit: Unit, schema: pa.Schema) -> pa.Table:
    """Return a unit's rows, of the columns that its file has."""
    if unit.format in ("jsonl", "csv"):
        return read_text(unit, schema)
    read = _parquet_batches if unit.format == "parquet" else _arrow_batches
    with open_source(unit.path, unit.format) as source:
        if source.size() != unit.file_bytes:
            raise unit.changed(f"{unit.file_bytes} bytes then, {source.size()} now")
        return read(source, unit, schema.names)


def _parquet_batches(source: Any, unit: Unit, names: Sequence[str]) -> pa.Table:
    with open_parquet(source) as file:
        if file.metadata.num_rows != unit.file_rows:
            raise unit.changed(f"{unit.file_rows} rows then, {file.metadata.num_rows} now")
        names = _own(file.schema_arrow.names, names)
        try:
            return _joined(parquet_batches(file, names, unit.start, unit.stop), unit)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(unit, error, damaged_chunk(file, names, unit.start, unit.stop)) from error


def _arrow_batches(source: Any, unit: Unit, names: Sequence[str]) -> pa.Table:
    names = _own(open_arrow(source).schema.names, names)
    return _joined(arrow_batches(source, names, unit.start, unit.stop), unit)


def _own(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the file's columns that are wanted; of none the first, since a table without columns has no rows."""
    return [name for name in names if name in set(wanted)] or list(names[:1])


def _joined(batches: Iterable[pa.RecordBatch], unit: Unit) -> pa.Table:
    found = list(batches)
    if not found:
        raise unit.changed(f"{unit.num_rows} rows planned, 0 found")
    return pa.Table.from_batches(found)


def _unreadable(unit: Unit, error: Exception, where: str = "") -> InputError:
    reason = shorten(" ".join(str(error).split()), 200)
    return InputError(
        f"{unit.path}: rows {unit.start} to {unit.stop} cannot be read{where}: {reason}. Write the file again, or take "
        "it out of input.path"
    )


def _conform(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return conform(column, field.type)
    except ValueError as error:
        raise ValueError(f'column "{shorten(field.name, 40)}": {error}') from None


def _table(rows: pa.Table, partition: Mapping[str, str | None], schema: pa.Schema) -> pa.Table:
    """Make one table with exactly `schema`, whatever the file's columns, their order, their types and its metadata."""
    columns = []
    for field in schema:
        if field.name in rows.column_names:
            columns.append(_conform(rows.column(field.name), field))
        else:
            value = partition.get(field.name)
            same = pa.nulls(rows.num_rows, field.type) if value is None else pa.repeat(value, rows.num_rows)
            columns.append(pa.chunked_array([same]).cast(field.type))
    table = pa.Table.from_arrays(columns, schema=schema)
    unified = one_dictionary(table)
    return table if unified is None else unified
