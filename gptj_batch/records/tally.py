"""The tally of an output: its finished units held against the plan one by one, and their errors, by the files alone."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.plan import UnitPlan
from gptj_batch.records.progress import pending_units

_NUM_THREADS = 4
_MAX_SHOWN = 5
# Of so many units at once the results wait: however many there are, memory stays flat.
_UNITS_AT_ONCE = 4096


def check_all_done(output: str | Path, plan: UnitPlan) -> None:
    """Raise OutputError, naming the units, where some are not finished."""
    missing = pending_units(output, plan)
    if not len(missing):
        return
    shown = "; ".join(plan.unit(int(index)).title for index in missing[:_MAX_SHOWN])
    more = f"; and {len(missing) - _MAX_SHOWN:,} more" if len(missing) > _MAX_SHOWN else ""
    raise OutputError(
        f"output.path: {len(missing):,} of {plan.num_units:,} units were not written: {shown}{more}. Nothing was "
        "published; run the same command again to do them"
    )


def tally_units(output: str | Path, plan: UnitPlan, error_column: str) -> dict[str, int]:
    """Return how often each error stands in the finished units.

    Raises OutputError, naming the units, where one cannot be read or has another number of rows than the input.
    """
    folder = OutputFolder.at(output)
    errors: Counter[str] = Counter()
    wrong: list[str] = []
    indices = [index for index in folder.unit_indices() if index < plan.num_units]
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        for start in range(0, len(indices), _UNITS_AT_ONCE):
            some = indices[start : start + _UNITS_AT_ONCE]
            read = pool.map(lambda index: _errors(folder, index, error_column), some)
            for index, found in zip(some, read, strict=True):
                unit = plan.unit(index)
                if isinstance(found, str):
                    wrong.append(f"{unit.title} cannot be read: {found}")
                elif found[0] != unit.num_rows:
                    wrong.append(f"{unit.title} has {found[0]:,} rows")
                else:
                    errors.update(found[1])
    if wrong:
        raise OutputError(_mismatch(folder, wrong))
    return dict(errors)


def _errors(folder: OutputFolder, index: int, column: str) -> tuple[int, list[str]] | str:
    """Return a unit's number of rows and its errors, or why it cannot be read."""
    try:
        with pq.ParquetFile(folder.unit(index), pre_buffer=False, page_checksum_verification=True) as file:
            values = file.read(columns=[column], use_threads=False).column(column)
            return file.metadata.num_rows, [] if values.null_count == len(values) else values.drop_null().to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        return shorten(" ".join(str(error).split()), 200)


def _mismatch(folder: OutputFolder, wrong: Sequence[str]) -> str:
    more = f"; and {len(wrong) - _MAX_SHOWN:,} more" if len(wrong) > _MAX_SHOWN else ""
    return (
        f"output.path: {len(wrong):,} finished units in {folder.units} are not what was planned: "
        f"{'; '.join(wrong[:_MAX_SHOWN])}{more}. Nothing was published. Delete the files of these units "
        f"({folder.unit(0).name} is unit 0) and run the same command again; their rows are then done again"
    )
