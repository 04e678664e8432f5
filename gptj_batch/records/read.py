"""Reading the input: which files there are, and the rows of one unit as a table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from gptj_batch.errors import ConfigError, InputError, shorten
from gptj_batch.records.batches import arrow_batches, damaged_chunk, open_parquet, open_source, parquet_batches
from gptj_batch.records.footers import BadFile, FileFormat, InputFile, InputFiles, agreed_schema, inspect_files
from gptj_batch.records.locate import FoundFile, find_files
from gptj_batch.records.plan import Unit, UnitPlan, plan_units
from gptj_batch.records.schema import one_dictionary, select_columns

__all__ = ["BadFile", "InputFile", "InputFiles", "Unit", "UnitPlan", "list_files", "plan_units", "read_unit"]

_FORMATS: dict[str, FileFormat] = {"parquet": "parquet", "arrow": "arrow"}
_ENDINGS: dict[str, FileFormat] = {
    ".parquet": "parquet", ".pq": "parquet", ".parq": "parquet",
    ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow", ".feather": "arrow",
}  # fmt: skip
_LATER_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".jsonl.zst", ".csv.zst")
_LATER_FORMATS = ("jsonl", "csv", "huggingface")
_MAX_FILES_SHOWN = 5


def list_files(
    path: str | Sequence[str], file_format: str = "auto", on_bad_file: Literal["fail", "skip"] = "fail"
) -> InputFiles:
    """Find the files that `path` leads to, read their footers and check that they agree on their columns.

    Raises ConfigError for what this version does not read. Raises InputError, naming files, where nothing matches, two
    files disagree, or one cannot be read (with "skip": none can be read).
    """
    answers = inspect_files(_with_formats(find_files(path), file_format))
    good = [file for file in answers if isinstance(file, InputFile)]
    bad = tuple(file for file in answers if isinstance(file, BadFile))
    if bad and (on_bad_file == "fail" or not good):
        raise InputError(_bad_files(bad, len(answers)))
    schema = agreed_schema(good)
    return InputFiles(tuple(replace(file, schema=schema) for file in good), bad, schema)


def _bad_files(bad: Sequence[BadFile], num_files: int) -> str:
    shown = "; ".join(str(file) for file in bad[:_MAX_FILES_SHOWN])
    more = f"; and {len(bad) - _MAX_FILES_SHOWN} more" if len(bad) > _MAX_FILES_SHOWN else ""
    return (
        f"input.path: {len(bad)} of {num_files} files cannot be read: {shown}{more}. Write them again, take them out "
        "of input.path, or leave them out with errors.bad_files=skip"
    )


def _with_formats(files: Sequence[FoundFile], file_format: str) -> list[tuple[FoundFile, FileFormat]]:
    if file_format in _LATER_FORMATS:
        raise ConfigError(f"input.format: {file_format} is not in this version, parquet and arrow are")
    if given := _FORMATS.get(file_format):
        return [(file, given) for file in files]
    if file_format != "auto":
        raise ConfigError(f'input.format: "{shorten(file_format)}" is not known; auto, parquet and arrow are')
    pairs = [(file, _format_by_ending(file)) for file in files]
    known = [(file, kind) for file, kind in pairs if kind is not None]
    if not known:
        names = ", ".join(shorten(PurePosixPath(file.path).name) for file in files[:_MAX_FILES_SHOWN])
        raise InputError(
            f"input.path: no file ends as Parquet or Arrow files do ({', '.join(_ENDINGS)}); it leads to {names}. "
            "Set input.format where the files have other names"
        )
    return known


def _format_by_ending(file: FoundFile) -> FileFormat | None:
    """Return the format that a name's ending says; None for other files of a folder, such as a README."""
    name = PurePosixPath(file.path.partition("?")[0] if "://" in file.path else file.path).name.lower()
    if name.endswith(_LATER_ENDINGS):
        raise ConfigError(
            f"input.path: {file.path}: this format is not in this version, parquet and arrow are. Convert the file, or "
            "name the others with a glob such as data/*.parquet"
        )
    kind = _ENDINGS.get(PurePosixPath(name).suffix)
    if kind is None and file.named:
        raise ConfigError(
            f"input.format: the ending of {file.path} names no format; set input.format to parquet or arrow"
        )
    return kind


def read_unit(unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a unit's rows with the run's schema, or of it only `columns`, in the order given.

    Memory holds the unit and one batch, whatever the size of the file and of its row groups. Raises InputError where
    the file is gone, damaged, or not the one that was planned.
    """
    schema = select_columns(unit.schema, columns)
    if not unit.num_rows:
        return schema.empty_table()
    read = _parquet_batches if unit.format == "parquet" else _arrow_batches
    try:
        with open_source(unit.path, unit.format) as source:
            if source.size() != unit.file_bytes:
                raise _changed(unit, f"{unit.file_bytes} bytes then, {source.size()} now")
            table = _table(read(source, unit, schema.names), schema)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _unreadable(unit, error) from error
    if table.num_rows != unit.num_rows:
        raise _changed(unit, f"{unit.num_rows} rows planned, {table.num_rows} found")
    return table


def _parquet_batches(source: Any, unit: Unit, names: Sequence[str]) -> list[pa.RecordBatch]:
    with open_parquet(source) as file:
        if file.metadata.num_rows != unit.file_rows:
            raise _changed(unit, f"{unit.file_rows} rows then, {file.metadata.num_rows} now")
        try:
            return list(parquet_batches(file, names, unit.start, unit.stop))
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(unit, error, damaged_chunk(file, names, unit.start, unit.stop)) from error


def _arrow_batches(source: Any, unit: Unit, names: Sequence[str]) -> list[pa.RecordBatch]:
    return list(arrow_batches(source, names, unit.start, unit.stop))


def _unreadable(unit: Unit, error: Exception, where: str = "") -> InputError:
    reason = shorten(" ".join(str(error).split()), 200)
    return InputError(
        f"{unit.path}: rows {unit.start} to {unit.stop} cannot be read{where}: {reason}. Write the file again, or take "
        "it out of input.path"
    )


def _changed(unit: Unit, how: str) -> InputError:
    return InputError(
        f"{unit.path}: the file changed since it was planned ({how}). Put the old file back, or run the job on another "
        "output.path"
    )


def _table(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Make one table with exactly `schema`, whatever the file's order of columns and its metadata."""
    if not batches:
        return schema.empty_table()
    table = pa.Table.from_batches(batches)
    columns = [table.column(field.name).cast(field.type) for field in schema]
    table = pa.Table.from_arrays(columns, schema=schema)
    unified = one_dictionary(table)
    return table if unified is None else unified
