"""Writing one unit: its table as one Parquet file that appears whole or not at all."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.schema import one_dictionary

LINEAGE_KEY = b"gptj_batch"


def write_unit(
    table: pa.Table, output: str | PurePath, unit_index: int, compression: str = "zstd", metadata: bytes = b""
) -> PurePath:
    """Write a unit to its file, replacing it where it is there already, and return the file.

    metadata: the run's lineage as JSON, kept in the file under the key `gptj_batch`

    The file is staged, synced, counted from its footer and then renamed. Raises OutputError.
    """
    folder = OutputFolder.at(output)
    if metadata:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), LINEAGE_KEY: metadata})
    final = folder.unit(unit_index)
    with folder.whole_file(final) as staged:
        with parquet_writer(staged, table.schema, compression) as writer:
            for group in row_groups(table):
                writer.write_table(group, row_group_size=max(group.num_rows, 1))
        check_num_rows(staged, final, table.num_rows)
    return final


def parquet_writer(sink: Any, schema: pa.Schema, compression: str) -> pq.ParquetWriter:
    """Return a writer to a path or file whose pages carry checksums, without which a flipped bit reads as good data."""
    return pq.ParquetWriter(sink, schema, compression=compression, write_page_checksum=True)


def row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the table in pieces that can each be one row group: a reader makes one dictionary of each."""
    unified = one_dictionary(table)
    if unified is not None:
        yield unified
    else:
        yield from (pa.Table.from_batches([batch]) for batch in table.to_batches())


def check_num_rows(staged: Path, final: PurePath, num_rows: int) -> None:
    """Raise OutputError unless the footer on the disk says `num_rows`."""
    found = pq.read_metadata(staged).num_rows
    if found != num_rows:
        raise OutputError(
            f"output.path: {final} cannot be written: {num_rows} rows were written and its footer says {found}. Check "
            "the file system, then run the same command again; finished units are kept"
        )
