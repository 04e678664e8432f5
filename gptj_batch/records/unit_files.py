"""Reading finished units, all of one run and so of one schema."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.output import OutputFolder, store_of


def all_units(folder: OutputFolder, num_units: int) -> list[PurePath]:
    """Return the files of all units. Raises OutputError where one is not there."""
    missing = sorted(set(range(num_units)) - set(folder.unit_indices()))
    if missing:
        raise OutputError(
            f"output.path: {len(missing)} of {num_units} units are not there yet, the first is "
            f"{folder.unit(missing[0])}; run the job again to do them"
        )
    return [folder.unit(index) for index in range(num_units)]


def unit_schema(unit: PurePath) -> pa.Schema:
    """Return a unit's schema, its metadata too. Raises OutputError where it cannot be read."""
    with _open(unit) as file:
        return file.schema_arrow


def unit_tables(
    units: Iterable[PurePath], schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the units' tables, each with the metadata of `schema`; only `columns` where some are named.

    Raises OutputError for a unit that cannot be read, or has other columns.
    """
    for unit in units:
        with _open(unit) as file:
            if not file.schema_arrow.equals(schema):
                raise OutputError(
                    f"output.path: {unit} has other columns than the units before it; this is a bug of gptj-batch, "
                    "please report it. Nothing was removed"
                )
            try:
                table = file.read(columns=columns, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise _damaged(unit, error) from error
        yield table.replace_schema_metadata(schema.metadata)


def _open(unit: PurePath) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(store_of(unit).source(unit), pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(unit, error) from error


def _damaged(unit: PurePath, error: Exception) -> OutputError:
    reason = shorten(" ".join(str(error).split()), 200)
    return OutputError(
        f"output.path: the finished unit {unit} cannot be read: {reason}. Delete this file and run the job again; its "
        "rows are then done again"
    )
