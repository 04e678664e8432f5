"""Publishing: finished units become parts, and `_SUCCESS` says that the output is complete.

The steps, each of which may be the last of a process and is done again by the next:
    1. units -> parts      every part is staged and renamed; which units make which part follows from the unit files
    2. other parts away    those of a publication that was cut off while other unit files stood there
    3. _SUCCESS            the moment that counts; nothing was taken away until now
    4. units, staging away
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.schema import one_dictionary
from gptj_batch.records.write import check_num_rows, parquet_writer, row_groups

_ROW_GROUP_BYTES = 32 * 1024 * 1024  # in memory: the most that merging holds, besides one unit


def publish(
    output: str | Path,
    num_units: int,
    target_file_bytes: int,
    compression: str = "zstd",
    num_rows: int | None = None,
) -> list[str]:
    """Merge consecutive units into parts of about `target_file_bytes`, write `_SUCCESS`, and return the parts' names.

    num_rows: what the run should have; another sum of the parts stops the publication

    Doing it again, after a crash at any point or when all is done, gives the same. Raises OutputError.
    """
    folder = OutputFolder.at(output)
    if not is_complete(output):
        units = _all_units(folder, num_units)
        groups = group_units([unit.stat().st_size for unit in units], target_file_bytes)
        parts = [folder.part(index, len(groups)) for index in range(len(groups))]
        written = [
            _write_part(folder, part, units[group.start : group.stop], compression)
            for part, group in zip(parts, groups, strict=True)
        ]
        if num_rows is not None and sum(written) != num_rows:
            raise OutputError(f"output.path: {folder.root} has {sum(written)} rows, and the input {num_rows}; {_BUG}")
        _remove_other_parts(folder, parts)
        _write_success(folder, parts, written)
    for leftover in (folder.units, folder.staging):
        shutil.rmtree(leftover, ignore_errors=True)  # a file that cannot be removed does no harm there
    return [part.name for part in folder.parts()]


_BUG = "this is a bug of gptj-batch, please report it. Nothing was removed"


def success_path(output: str | Path) -> Path:
    """Return the file whose presence says that the output is complete."""
    return OutputFolder.at(output).success


def is_complete(output: str | Path) -> bool:
    """Return True when the output is complete."""
    return success_path(output).exists()


def group_units(sizes_bytes: Sequence[int], target_file_bytes: int) -> list[range]:
    """Return runs of units whose sizes sum to at most the target; a unit above it is alone."""
    groups: list[range] = []
    filled = 0
    for index, size in enumerate(sizes_bytes):
        if groups and filled + size <= target_file_bytes:
            groups[-1] = range(groups[-1].start, index + 1)
            filled += size
        else:
            groups.append(range(index, index + 1))
            filled = size
    return groups


def _all_units(folder: OutputFolder, num_units: int) -> list[Path]:
    missing = sorted(set(range(num_units)) - set(folder.unit_indices()))
    if missing:
        raise OutputError(
            f"output.path: {len(missing)} of {num_units} units are not there yet, the first is "
            f"{folder.unit(missing[0])}; run the job again to do them"
        )
    return [folder.unit(index) for index in range(num_units)]


def _write_part(folder: OutputFolder, part: Path, units: Sequence[Path], compression: str) -> int:
    """Write one part and return its number of rows."""
    with folder.whole_file(part) as staged:
        if len(units) == 1:
            _copy(units[0], staged)
            return _num_rows(units[0])
        schema = _open(units[0]).schema_arrow
        num_rows = 0
        with parquet_writer(staged, schema, compression) as writer:
            for group in _large_row_groups(_tables(units, schema)):
                writer.write_table(group, row_group_size=max(group.num_rows, 1))
                num_rows += group.num_rows
        check_num_rows(staged, part, num_rows)
        return num_rows


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _open(unit: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(unit, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(unit, error) from error


def _num_rows(unit: Path) -> int:
    with _open(unit) as file:
        return int(file.metadata.num_rows)


def _tables(units: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    for unit in units:
        with _open(unit) as file:
            try:
                table = file.read(use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise _damaged(unit, error) from error
        if not table.schema.equals(schema):
            raise OutputError(f"output.path: {unit} has other columns than the units before it; {_BUG}")
        yield table.replace_schema_metadata(schema.metadata)


def _damaged(unit: Path, error: Exception) -> OutputError:
    reason = shorten(" ".join(str(error).split()), 200)
    return OutputError(
        f"output.path: the finished unit {unit} cannot be read: {reason}. Delete this file and run the job again; its "
        "rows are then done again"
    )


def _large_row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables joined to row groups of about 32 MiB, where their dictionaries fit together."""
    waiting: pa.Table | None = None
    for table in tables:
        joined = table if waiting is None else one_dictionary(pa.concat_tables([waiting, table]))
        if joined is None:
            yield from row_groups(waiting)
            joined = table
        if joined.nbytes >= _ROW_GROUP_BYTES:
            yield from row_groups(joined)
            joined = None
        waiting = joined
    if waiting is not None:
        yield from row_groups(waiting)


def _remove_other_parts(folder: OutputFolder, parts: Sequence[Path]) -> None:
    for stale in set(folder.parts()) - set(parts):
        try:
            stale.unlink()
        except OSError as error:
            raise not_written(stale, error) from error


def _write_success(folder: OutputFolder, parts: Sequence[Path], num_rows: Sequence[int]) -> None:
    rows = {part.name: rows for part, rows in zip(parts, num_rows, strict=True)}
    with folder.whole_file(folder.success) as staged:
        staged.write_text(json.dumps({"rows": sum(num_rows), "parts": rows}) + "\n", encoding="utf-8")
