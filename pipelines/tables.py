"""The caller's own kinds of table: pandas, pyarrow, `datasets` and polars, read as Arrow and given back as they were.

Only the columns that a task reads are turned into Arrow, and only the added ones back: whatever else a table holds, and
its index, is never touched. No library is imported here but that of the table which was given.
"""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from gptj_batch.errors import ConfigError, shorten
from gptj_batch.records.schema import append, name_list

HASHED_ROWS = 4096


class CallersTable(Protocol):
    """A table in memory, whatever its kind."""

    @property
    def names(self) -> list[str]:
        """Return its columns; those whose name is no text cannot be read by a template, and are left out."""
        ...

    @property
    def num_rows(self) -> int:
        """Return its rows."""
        ...

    def arrow(self, names: Sequence[str] | None = None) -> pa.Table:
        """Return these columns, or all. Raises ConfigError naming a column that has no form in Arrow."""
        ...

    def with_columns(self, added: pa.Table) -> Any:
        """Return a table of the caller's kind, with these columns behind its own; the given one stays as it is."""
        ...


def callers_table(data: Any) -> CallersTable:
    """Return the table behind which `data` is. Raises ConfigError for what is none."""
    for library, kind, wrap in (
        ("pyarrow", "Table", ArrowTable),
        ("pandas", "DataFrame", PandasTable),
        ("datasets", "Dataset", DatasetsTable),
        ("polars", "DataFrame", PolarsTable),
    ):
        module = sys.modules.get(library)
        if module is not None and isinstance(data, getattr(module, kind)):
            return wrap(data)
    raise ConfigError(
        "data: must be a Ray Dataset, a pandas or polars DataFrame, a pyarrow Table, a datasets.Dataset or a path; got "
        f"{_kind(data)}{_HINTS.get(type(data).__name__, '')}"
    )


def fingerprint(table: pa.Table) -> str:
    """Return a hash of a table's content, however its rows are chunked."""
    digest = hashlib.sha256()
    for start in range(0, max(table.num_rows, 1), HASHED_ROWS):
        sink = pa.BufferOutputStream()
        rows = table.slice(start, HASHED_ROWS).combine_chunks()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(rows)
        digest.update(sink.getvalue())
    return digest.hexdigest()[:32]


_HINTS = {
    "DatasetDict": "; choose one of its splits, such as data['train']",
    "IterableDataset": "; make a Dataset of it, or a Ray Dataset with ray.data.from_huggingface",
    "LazyFrame": "; collect() it first",
    "RecordBatch": "; make a table of it with pyarrow.Table.from_batches([data])",
    "Series": "; make a DataFrame of it with data.to_frame('text')",
    "list": "; make a DataFrame of it, such as pandas.DataFrame({'text': data})",
    "dict": "; make a DataFrame of it with pandas.DataFrame(data)",
}


def _kind(data: Any) -> str:
    kind = type(data)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"


class ArrowTable:
    """See `CallersTable`."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def names(self) -> list[str]:
        """See `CallersTable`."""
        return list(self._table.column_names)

    @property
    def num_rows(self) -> int:
        """See `CallersTable`."""
        return int(self._table.num_rows)

    def arrow(self, names: Sequence[str] | None = None) -> pa.Table:
        """See `CallersTable`."""
        return self._table if names is None else self._table.select(names)

    def with_columns(self, added: pa.Table) -> pa.Table:
        """Return the table with its own metadata."""
        return append(self._table, added)


class PandasTable:
    """See `CallersTable`; the index, its dtypes and `attrs` are kept."""

    def __init__(self, frame: Any) -> None:
        if frame.columns.nlevels > 1:
            raise ConfigError("data: its columns are a MultiIndex, whose names no template can say; flatten them")
        self._frame = frame

    @property
    def names(self) -> list[str]:
        """See `CallersTable`."""
        return [name for name in self._frame.columns if isinstance(name, str)]

    @property
    def num_rows(self) -> int:
        """See `CallersTable`."""
        return len(self._frame)

    def arrow(self, names: Sequence[str] | None = None) -> pa.Table:
        """See `CallersTable`; all columns are those with the index, as pandas stores it in Parquet."""
        if names is not None:
            return pa.table({name: self._column(name) for name in names})
        try:
            return pa.Table.from_pandas(self._frame)
        except (pa.ArrowException, TypeError, ValueError):
            for name in self.names:
                self._column(name)
            raise ConfigError(
                "data: it has a column or an index that Arrow cannot hold, or a text that is no Unicode; to write it, "
                "repair it or leave it out"
            ) from None

    def _column(self, name: str) -> pa.Array:
        if list(self._frame.columns).count(name) > 1:
            raise ConfigError(f"data: it has more than one column called {name_list([name])}; rename one of them")
        series = self._frame[name]
        try:
            return pa.array(series, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError):  # whose messages quote the value
            return _texts(series.tolist(), name)

    def with_columns(self, added: pa.Table) -> Any:
        """Return a new frame. Whole numbers are `Int64`, which has nulls; maps are dictionaries."""
        import pandas as pd

        whole = {
            pa.int64(): pd.Int64Dtype(),
            pa.int32(): pd.Int32Dtype(),
            pa.int16(): pd.Int16Dtype(),
            pa.int8(): pd.Int8Dtype(),
        }
        columns = added.to_pandas(types_mapper=whole.get, maps_as_pydicts="strict")
        columns.index = self._frame.index
        return self._frame.assign(**{name: columns[name] for name in added.column_names})


def _texts(values: Sequence[Any], name: str) -> pa.Array:
    """Return texts that are not all Unicode, byte for byte, so that only the bad rows fail.

    Raises ConfigError where they are not all texts.
    """
    kinds = {type(value).__name__ for value in values if not isinstance(value, str) and not _is_null(value)}
    if kinds:
        shown = ", ".join(sorted(kinds | ({"str"} if any(isinstance(value, str) for value in values) else set())))
        raise ConfigError(
            f"data: column {name_list([name])} holds values that have no one type in Arrow ({shorten(shown)}); make "
            f"them one, for example with data[{name!r}].astype(str)"
        )
    coded = [value.encode(errors="surrogatepass") if isinstance(value, str) else None for value in values]
    raw = pa.array(coded, pa.large_binary())
    return pa.Array.from_buffers(pa.large_string(), len(raw), raw.buffers(), raw.null_count)


def _is_null(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


class DatasetsTable:
    """See `CallersTable`; features, format and split are kept."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    @property
    def names(self) -> list[str]:
        """See `CallersTable`."""
        return list(self._dataset.column_names)

    @property
    def num_rows(self) -> int:
        """See `CallersTable`."""
        return len(self._dataset)

    def arrow(self, names: Sequence[str] | None = None) -> pa.Table:
        """See `CallersTable`."""
        wanted = self._dataset if names is None else self._dataset.select_columns(list(names))
        return wanted.with_format("arrow")[:]

    def with_columns(self, added: pa.Table) -> Any:
        """Return a new dataset; `datasets` has no maps, so these are structures."""
        import datasets

        columns = [_map_as_struct(column) for column in added.columns]
        beside = datasets.Dataset(pa.table(columns, names=added.column_names))
        parts = [self._dataset.with_format(None), beside]
        joined = datasets.concatenate_datasets(parts, axis=1, split=self._dataset.split)
        shown = self._dataset.format
        if shown["type"] is None and set(shown["columns"]) == set(self._dataset.column_names):
            return joined
        return joined.with_format(
            shown["type"], [*shown["columns"], *added.column_names], output_all_columns=shown["output_all_columns"]
        )


def _map_as_struct(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of maps from texts as one of structures, with a field for every key."""
    kind = column.type
    if not pa.types.is_map(kind):
        return column
    rows = column.to_pylist(maps_as_pydicts="strict")
    keys = dict.fromkeys(key for row in rows if row is not None for key in row)
    # A structure has a field at least; without any key there is no row that has a value.
    fields = [pa.field(key, kind.item_type) for key in keys] or [pa.field("none", kind.item_type)]
    return pa.chunked_array([pa.array(rows, pa.struct(fields))])


class PolarsTable:
    """See `CallersTable`."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    @property
    def names(self) -> list[str]:
        """See `CallersTable`."""
        return list(self._frame.columns)

    @property
    def num_rows(self) -> int:
        """See `CallersTable`."""
        return int(self._frame.height)

    def arrow(self, names: Sequence[str] | None = None) -> pa.Table:
        """See `CallersTable`."""
        table: pa.Table = (self._frame if names is None else self._frame.select(list(names))).to_arrow()
        return table

    def with_columns(self, added: pa.Table) -> Any:
        """Return a new frame; polars has no maps, so these are structures."""
        import polars

        columns = [_map_as_struct(column) for column in added.columns]
        beside = polars.DataFrame(pa.table(columns, names=added.column_names))
        return self._frame.with_columns(beside.get_columns())
