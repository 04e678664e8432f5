"""Failed rows of an output whose parts do not keep them as they were read: they are taken from the input again.

JSON lines lose types, and partitions lose columns and the order of the rows. Which row of the input a row of the output
is, follows from how the output was made: parts hold the input's rows in order, in each partition those of its values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import read_column
from gptj_batch.records.partitions import partition_rows, take_rows
from gptj_batch.records.plan import Unit, UnitPlan
from gptj_batch.records.publish import published_parts
from gptj_batch.records.read import read_unit
from gptj_batch.records.retry import with_addresses
from gptj_batch.records.rewrite import unreadable

# So many failed rows are in memory at once, with all their columns.
_ROWS_AT_ONCE = 20_000

UnitKeys = Callable[[pa.Table, Unit], pa.Array]
"""Returns the keys of a unit's rows."""


@dataclass(frozen=True)
class _Address:
    """Where a failed row stands, and where it came from; the order is that of parts and of rows in them."""

    part: str
    row: int
    unit: int
    row_in_unit: int


def failed_rows_of_input(
    output: str | PurePath,
    plan: UnitPlan,
    columns: Sequence[str] | None,
    partition_by: Sequence[str],
    error_column: str,
    keys: UnitKeys,
) -> Iterator[pa.Table]:
    """Yield the failed rows as the input has them, with their addresses, in the order of the parts.

    plan: of the input, which must be as it was    columns: those that the run read, None for all

    Raises OutputError for a damaged part, InputError for a file that cannot be read.
    """
    folder = OutputFolder.at(output)
    failed = {partition: _failed(folder, parts, error_column) for partition, parts in _partitions(folder).items()}
    if not any(failed.values()):
        return
    addresses = _addresses(plan, failed, partition_by if set(failed) != {""} else ())
    for start in range(0, len(addresses), _ROWS_AT_ONCE):
        some = addresses[start : start + _ROWS_AT_ONCE]
        yield _rows(plan, some, columns, keys)


def _partitions(folder: OutputFolder) -> dict[str, dict[str, int]]:
    """Return the parts that every partition had, in order, with their numbers of rows.

    Those of an output without partitions stand under an empty name.
    """
    parts: dict[str, dict[str, int]] = {}
    for name, num_rows in published_parts(folder.root).items():
        parts.setdefault(name.rpartition("/")[0], {})[name] = num_rows
    return parts


def _failed(folder: OutputFolder, parts: Mapping[str, int], error_column: str) -> dict[int, tuple[str, int]]:
    """Return the failed rows of a partition by their number in it, with part and row in the part."""
    found: dict[int, tuple[str, int]] = {}
    first_row = 0
    for name, num_rows in parts.items():
        part = folder.root / name
        try:
            errors = read_column(folder, part, error_column) if folder.store.exists(part) else None
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise unreadable(part, error) from error
        if errors is not None:
            places = np.flatnonzero(pc.is_valid(errors).to_numpy())
            found |= {first_row + int(place): (name, int(place)) for place in places}
        first_row += num_rows
    return found


def _addresses(
    plan: UnitPlan, failed: dict[str, dict[int, tuple[str, int]]], partition_by: Sequence[str]
) -> list[_Address]:
    """Return the failed rows, sorted, having gone through the input as the publication did."""
    found: list[_Address] = []
    counts: dict[str, int] = {}
    for unit in map(plan.unit, range(plan.num_units)):
        for partition, rows in _rows_of_partitions(unit, partition_by).items():
            first, of_partition = counts.get(partition, 0), failed.get(partition, {})
            counts[partition] = first + len(rows)
            if of_partition:
                numbers = ((first + place, row) for place, row in enumerate(rows))
                found += [_Address(*of_partition[n], unit.index, row) for n, row in numbers if n in of_partition]
    num_failed = sum(map(len, failed.values()))
    if len(found) != num_failed:
        raise OutputError(
            f"output.path: {num_failed:,} rows of the output failed, and {len(found):,} of them were "
            "found in the input: it is not what the output was made of. Nothing was changed; run the job anew with "
            "output.on_exists=overwrite"
        )
    return sorted(found, key=lambda address: (address.part, address.row))


def _rows_of_partitions(unit: Unit, partition_by: Sequence[str]) -> dict[str, Sequence[int]]:
    if not partition_by:
        return {"": range(unit.num_rows)}
    return dict(partition_rows(read_unit(unit, partition_by), partition_by)) if unit.num_rows else {}


def _rows(plan: UnitPlan, addresses: Sequence[_Address], columns: Sequence[str] | None, keys: UnitKeys) -> pa.Table:
    """Read rows, each unit once, and return them in the order of the addresses."""
    by_unit: NDArray[np.int64] = np.array([address.unit for address in addresses])
    pieces: list[pa.Table] = []
    order: list[int] = []
    for number in np.unique(by_unit):
        places = np.flatnonzero(by_unit == number).tolist()
        unit = plan.unit(int(number))
        table = read_unit(unit, columns)
        some = [addresses[place] for place in places]
        rows = pa.array([address.row for address in some], pa.int64())
        parts = pa.array([address.part for address in some], pa.string())
        wanted = [address.row_in_unit for address in some]
        pieces.append(with_addresses(take_rows(table, wanted), parts, rows, keys(table, unit).take(pa.array(wanted))))
        order += places
    return take_rows(pa.concat_tables(pieces), np.argsort(np.array(order)).tolist())
