"""The parts of one folder, written one after the other, each closed when it has about the target size."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import PurePath

import pyarrow as pa

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_writer import PartWriter, check_part, close_quietly, open_part
from gptj_batch.records.schema import one_dictionary
from gptj_batch.records.write import row_groups

_MAX_WAITING_BYTES = 32 * 2**20
# What a table weighs beside its values, in objects: 100,000 tables of 8 rows have 13 MB of values, and fill 400 MB.
_TABLE_BYTES = 4096
# A part ends where tables do: with at least so many in it, it is off the target by an eighth at most.
_MIN_TABLES = 4


class PartSeries:
    """Joins small tables to large row groups and those to parts; which, follows from the tables alone."""

    def __init__(
        self,
        folder: OutputFolder,
        path: Callable[[int], PurePath],
        schema: pa.Schema,
        form: PartForm,
        max_waiting_bytes: int = _MAX_WAITING_BYTES,
    ) -> None:
        self._written: dict[PurePath, int] = {}
        self._folder = folder
        self._path = path
        self._schema = schema
        self._form = form
        self._max_waiting_bytes = min(max_waiting_bytes, _MAX_WAITING_BYTES, form.target_file_bytes // _MIN_TABLES)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = self._waiting_rows = 0
        self._part: _Part | None = None

    def add(self, table: pa.Table) -> None:
        """Take the next rows. Raises OutputError where they cannot be stored."""
        for piece in row_groups(table):
            if not piece.num_rows:
                continue
            self._waiting.append(piece)
            self._waiting_bytes += piece.nbytes + _TABLE_BYTES
            self._waiting_rows += piece.num_rows
            if self._is_group():
                self._write_waiting(is_last=False)

    def _is_group(self) -> bool:
        if self._form.row_group_rows is not None:
            return self._waiting_rows >= self._form.row_group_rows
        return self._waiting_bytes >= self._max_waiting_bytes

    def finish(self) -> dict[PurePath, int]:
        """Finish the last part and return all of them with their numbers of rows; one has none, where no row came."""
        self._write_waiting(is_last=True)
        if self._part is None and not self._written:
            self._part = self._new_part()
        self._finish_part()
        return self._written

    def leave_nothing(self, _: object, error: BaseException | None, __: object) -> None:
        """Remove what is staged after a failure; an exit callback, of no effect without one."""
        if error is not None and self._part is not None:
            self._part.drop(error)

    def _write_waiting(self, is_last: bool) -> None:
        if not self._waiting:
            return
        joined = one_dictionary(pa.concat_tables(self._waiting))
        groups = self._waiting if joined is None else [joined]
        self._waiting, self._waiting_bytes, self._waiting_rows = [], 0, 0
        for group in groups:
            size = self._form.row_group_rows or group.num_rows
            whole = group.num_rows if is_last else group.num_rows // size * size
            for start in range(0, whole, size):
                self._write(group.slice(start, min(size, whole - start)))
            if whole < group.num_rows:
                self._waiting.append(group.slice(whole))
                self._waiting_rows += group.num_rows - whole

    def _write(self, table: pa.Table) -> None:
        if self._part is not None and not self._part.take(table):
            self._finish_part()
        if self._part is None:
            self._part = self._new_part()
            taken = self._part.take(table)
            assert taken, "a new part holds any table"
        if self._part.size_bytes + self._part.last_bytes / 2 >= self._form.target_file_bytes:
            self._finish_part()

    def _new_part(self) -> "_Part":
        return _Part(self._folder, self._path(len(self._written)), self._schema, self._form)

    def _finish_part(self) -> None:
        if self._part is not None:
            part, self._part = self._part, None
            self._written[part.final] = part.finish()


class _Part:
    """A part that is staged, and stands under its name when it is whole."""

    def __init__(self, folder: OutputFolder, final: PurePath, schema: pa.Schema, form: PartForm) -> None:
        self.final = final
        self.last_bytes = 0
        self._form = form
        self._num_rows = 0
        self._stack = ExitStack()
        with ExitStack() as begun:  # on a failure here, nothing of the part is left
            self._staged = begun.enter_context(folder.whole_file(final))
            self._writer: PartWriter = open_part(self._staged, schema, form)
            begun.callback(close_quietly, self._writer)
            self._stack = begun.pop_all()

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    def take(self, table: pa.Table) -> bool:
        """Write rows; False where the part cannot hold them beside those it has. On an error nothing of it is left."""
        before = self.size_bytes
        try:
            is_taken = self._writer.take(table)
        except BaseException as error:
            self.drop(error)
            raise
        self.last_bytes = self.size_bytes - before
        self._num_rows += table.num_rows * is_taken
        return is_taken

    def finish(self) -> int:
        with self._stack:
            self._writer.close()
            check_part(self._staged, self.final, self._form, self._num_rows)
        return self._num_rows

    def drop(self, error: BaseException) -> None:
        """Remove the staged file; raises what the folder makes of the error."""
        self._stack.__exit__(type(error), error, error.__traceback__)
