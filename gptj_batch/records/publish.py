"""Publishing: finished units become parts, and `_SUCCESS` says that the output is complete.

The steps, each of which may be the last of a process and is done again by the next:
    1. units -> parts      every part is staged and renamed; which rows make which part follows from the unit files
    2. other parts away    those of a publication that was cut off while other units or another form were asked for
    3. _SUCCESS            the moment that counts; nothing was taken away until now
    4. units, staging away
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_series import PartSeries
from gptj_batch.records.partitioned import write_partitions
from gptj_batch.records.unit_files import all_units, unit_schema, unit_tables


def publish(
    output: str | PurePath,
    num_units: int,
    form: PartForm,
    num_rows: int | None = None,
    groups: Sequence[int] | None = None,
) -> list[str]:
    """Make parts of the units, in the order of the rows, write `_SUCCESS`, and return the parts' names.

    num_rows: what the run should have; another sum of the parts stops the publication
    groups: where no part may hold rows of two groups of units, how many units each has; `published_groups` has the
        parts of each then

    Doing it again, after a crash at any point or when all is done, gives the same. Raises OutputError.
    """
    folder = OutputFolder.at(output)
    if not is_complete(output):
        units = all_units(folder, num_units)
        of_groups = _write_groups(folder, units, form, [num_units] if groups is None else groups)
        written = {part: rows for parts in of_groups for part, rows in parts.items()}
        if num_rows is not None and sum(written.values()) != num_rows:
            raise OutputError(
                f"output.path: {folder.root} has {sum(written.values())} rows, and the input {num_rows}; this is a bug "
                "of gptj-batch, please report it. Nothing was removed"
            )
        _remove_other_parts(folder, written)
        _write_success(folder, written, form, None if groups is None else of_groups)
    for leftover in (folder.units, folder.staging):
        with suppress(OSError):  # a file that cannot be removed does no harm there
            folder.store.remove(leftover)
    return [_name(folder, part) for part in folder.parts()]


def success_path(output: str | PurePath) -> PurePath:
    """Return the file whose presence says that the output is complete."""
    return OutputFolder.at(output).success


def is_complete(output: str | PurePath) -> bool:
    """Return True when the output is complete."""
    folder = OutputFolder.at(output)
    return folder.store.exists(folder.success)


def published_form(output: str | PurePath) -> dict[str, Any] | None:
    """Return what `PartForm.facts` said of the finished output; None where it is not finished, or does not say."""
    try:
        form = json.loads(OutputFolder.at(output).store.read(success_path(output)))["form"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return form if isinstance(form, dict) else None


def published_parts(output: str | PurePath) -> dict[str, int]:
    """Return the parts that the finished output had, in the order of its rows, with their numbers of rows.

    Of an incremental run, later runs may have taken some away. Raises OutputError where it does not say.
    """
    success = success_path(output)
    try:
        parts = json.loads(OutputFolder.at(output).store.read(success))["parts"]
        return {str(name): int(num_rows) for name, num_rows in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"output.path: {success} does not say which parts there are ({type(error).__name__}); run the job anew "
            "with output.on_exists=overwrite"
        ) from error


def published_groups(output: str | PurePath) -> list[list[str]] | None:
    """Return the names of the parts of each group that `publish` was given; None where there were none."""
    try:
        groups = json.loads(OutputFolder.at(output).store.read(success_path(output)))["groups"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return groups if isinstance(groups, list) else None


def _write_groups(
    folder: OutputFolder, units: Sequence[PurePath], form: PartForm, groups: Sequence[int]
) -> list[dict[PurePath, int]]:
    """Write all parts, and return each group's with their numbers of rows; numbers go on from group to group."""
    left, num_parts = iter(units), 0
    written: list[dict[PurePath, int]] = []
    for num_units in groups if sum(groups) else [len(units)]:  # no rows at all are one unit, which is no group's
        parts = _write_parts(folder, list(islice(left, num_units)), form, num_parts) if num_units else {}
        num_parts += len(parts)
        written.append(parts)
    return written


def _write_parts(folder: OutputFolder, units: Sequence[PurePath], form: PartForm, first: int) -> dict[PurePath, int]:
    """Write the parts of some units and return them with their numbers of rows."""
    schema = unit_schema(units[0])
    if form.partition_by and (written := write_partitions(folder, units, schema, form, first)):
        return written
    # Not partitioned, or without a row: then one part with all columns, which no partition would show.
    return _write_series(folder, units, schema, form, first)


def _write_series(
    folder: OutputFolder, units: Sequence[PurePath], schema: pa.Schema, form: PartForm, first: int
) -> dict[PurePath, int]:
    def path(index: int) -> PurePath:
        return folder.part(first + index, max_parts=len(units), ending=form.ending)

    series = PartSeries(folder, path, schema, form)
    with ExitStack() as unfinished:
        unfinished.push(series.leave_nothing)
        for table in unit_tables(units, schema):
            series.add(table)
        return series.finish()


def _remove_other_parts(folder: OutputFolder, parts: Mapping[PurePath, int]) -> None:
    for stale in set(folder.parts()) - set(parts):
        try:
            folder.store.remove(stale)
        except OSError as error:
            raise not_written(stale, error) from error
    folder.remove_empty_partitions()


def _write_success(
    folder: OutputFolder, parts: Mapping[PurePath, int], form: PartForm, groups: Sequence[Mapping[PurePath, int]] | None
) -> None:
    rows = {_name(folder, part): rows for part, rows in parts.items()}
    facts: dict[str, Any] = {"rows": sum(parts.values()), "form": form.facts(), "parts": rows}
    if groups is not None:
        facts["groups"] = [[_name(folder, part) for part in group] for group in groups]
    with folder.whole_file(folder.success) as staged:
        staged.write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _name(folder: OutputFolder, part: PurePath) -> str:
    return part.relative_to(folder.root).as_posix()
