import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputError, OutputInUseError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.retry import KEY, PART, ROW, RetryFolder
from gptj_batch.records.rewrite import open_parquet_part, parquet_tables

from .crash import crashes
from .tables import every_type

LABELS = pa.map_(pa.string(), pa.float64())
ADDED = ["label", "scores", "error"]
FORM = PartForm(target_file_bytes=2**20)


def output(folder: Path, bad: set[int], num_columns: int | None = None) -> Path:
    """An output of parts of so many rows, in row groups of four, with columns of every type."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, size in enumerate((6, 9)):
        rows = range(start, start + size)
        source = pa.concat_tables([every_type()] * 5).slice(0, size)
        source = source.select(source.column_names[:num_columns])
        added = {
            "label": pa.array([None if row in bad else f"label {row}" for row in rows], pa.string()),
            "scores": pa.array([None if row in bad else [("a", row / 2)] for row in rows], LABELS),
            "error": pa.array([f"error {row}" if row in bad else None for row in rows], pa.string()),
        }
        columns = [pa.array(rows, pa.int64()), *source.columns, *added.values()]
        fields = [pa.field("id", pa.int64()), *source.schema, *(pa.field(name, added[name].type) for name in added)]
        table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata={"gptj_batch": "{}"}))
        path = OutputFolder.at(folder).part(number, 2)
        pq.write_table(table, path, row_group_size=4, write_page_checksum=True)
        start += size
    parts = {"part-00000.parquet": 6, "part-00001.parquet": 9}
    (folder / "_SUCCESS").write_text(json.dumps({"rows": start, "parts": parts}))
    return folder


def keys(table: pa.Table, start: int) -> pa.Array:
    return pa.array([f"key {start + row}" for row in range(table.num_rows)], pa.string())


def do(retry: RetryFolder, still_bad: tuple[int, ...] = ()) -> None:
    """Do the rows that were taken out, as a run would."""
    rows = pq.read_table(retry.rows)
    ids = rows.column("id").to_pylist()
    label = [None if number in still_bad else f"again {number}" for number in ids]
    rows = rows.append_column("label", pa.array(label, pa.string()))
    scores = [None if number in still_bad else [("b", 1.0)] for number in ids]
    rows = rows.append_column("scores", pa.array(scores, LABELS))
    error = [f"still {number}" if number in still_bad else None for number in ids]
    retry.output.mkdir()
    pq.write_table(rows.append_column("error", pa.array(error, pa.string())), retry.output / "part-00000.parquet")


def nothing() -> None:
    return None


def test_the_failed_rows_are_taken_out_with_where_they_stand_and_their_keys(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, {0, 5, 6, 14}))
    assert not retry.is_open
    assert retry.take_out(ADDED, "error", keys) == 4
    rows = pq.read_table(retry.rows)
    assert rows.column("id").to_pylist() == [0, 5, 6, 14]
    assert rows.column(ROW).to_pylist() == [0, 5, 0, 8]
    assert rows.column(PART).to_pylist() == ["part-00000.parquet"] * 2 + ["part-00001.parquet"] * 2
    assert rows.column(KEY).to_pylist() == ["key 0", "key 5", "key 6", "key 14"]
    assert not set(ADDED) & set(rows.column_names) and retry.is_open


def test_rows_keep_their_keys_where_a_part_before_them_is_gone(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, {0, 6, 14}))
    (tmp_path / "part-00000.parquet").unlink()
    assert retry.take_out(ADDED, "error", keys) == 2
    assert pq.read_table(retry.rows).column(KEY).to_pylist() == ["key 6", "key 14"]


def test_what_became_of_rows_whose_part_is_gone_is_left_out(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, {0, 6, 14}))
    retry.take_out(ADDED, "error", keys)
    do(retry)
    (tmp_path / "part-00000.parquet").unlink()
    retry.put_back(ADDED, FORM, nothing)
    assert [part.name for part in tmp_path.glob("part-*")] == ["part-00001.parquet"]
    assert pq.read_table(tmp_path / "part-00001.parquet").column("error").null_count == 9


def test_an_output_whose_success_does_not_name_its_parts_is_refused(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, {0}))
    (tmp_path / "_SUCCESS").write_text("")
    with pytest.raises(OutputError, match=r"_SUCCESS does not say"):
        retry.take_out(ADDED, "error", keys)


def test_where_no_row_failed_there_is_nothing_to_do(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, set()))
    assert retry.take_out(ADDED, "error", keys) == 0
    assert (not retry.is_open and not (tmp_path / "_gptj_batch" / "retry").exists()) or not retry.rows.exists()


def test_what_became_of_them_stands_in_their_places_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    bad = {0, 5, 6, 14}
    retry = RetryFolder(output(tmp_path / "out", bad))
    before = pq.read_table(tmp_path / "out")
    retry.take_out(ADDED, "error", keys)
    do(retry, still_bad=(6,))
    retry.put_back(ADDED, FORM, nothing)
    retry.remove()
    after = pq.read_table(tmp_path / "out")
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.drop_columns(ADDED).equals(before.drop_columns(ADDED))
    for row, (new, old) in enumerate(
        zip(after.select(ADDED).to_pylist(), before.select(ADDED).to_pylist(), strict=True)
    ):
        if row == 6:
            assert new == {"label": None, "scores": None, "error": "still 6"}
        elif row in bad:
            assert new == {"label": f"again {row}", "scores": [("b", 1.0)], "error": None}
        else:
            assert new == old
    assert not (tmp_path / "out" / "_gptj_batch" / "retry").exists()


def test_a_part_without_failed_rows_is_not_touched(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, {2}))
    untouched = (tmp_path / "part-00001.parquet").stat()
    retry.take_out(ADDED, "error", keys)
    do(retry)
    retry.put_back(ADDED, FORM, nothing)
    assert (tmp_path / "part-00001.parquet").stat().st_mtime_ns == untouched.st_mtime_ns


def test_a_part_is_left_alone_once_the_output_is_anothers(tmp_path: Path) -> None:
    retry = RetryFolder(output(tmp_path, {2, 7}))
    before = pq.read_table(tmp_path)
    retry.take_out(ADDED, "error", keys)
    do(retry)

    def taken() -> None:
        raise OutputInUseError("taken")

    with pytest.raises(OutputInUseError):
        retry.put_back(ADDED, FORM, taken)
    assert pq.read_table(tmp_path).select(["label", "error"]).equals(before.select(["label", "error"]))


def test_a_retry_killed_at_any_step_leaves_whole_parts_and_is_finished_by_the_next(tmp_path: Path) -> None:
    def steps(folder: Path) -> None:
        retry = RetryFolder(folder)
        if not retry.is_open and not retry.take_out(ADDED, "error", keys):
            return
        if not retry.output.exists():
            do(retry)
        retry.put_back(ADDED, FORM, nothing)
        retry.remove()

    for number in range(1, 120):
        output(tmp_path / str(number), {0, 5, 6, 14}, 2)
    steps(output(tmp_path / "undisturbed", {0, 5, 6, 14}, 2))
    expected = pq.read_table(tmp_path / "undisturbed").select(["id", *ADDED])
    for number in crashes(lambda number: steps(tmp_path / str(number))):
        folder = tmp_path / str(number)
        for part in OutputFolder.at(folder).parts():
            assert pq.read_table(part).num_rows in (6, 9), "whole, the old one or the new one"
        if RetryFolder(folder).output.exists() and not list(RetryFolder(folder).output.glob("*.parquet")):
            RetryFolder(folder).output.rmdir()  # the run that writes it is tested elsewhere
        steps(folder)
        assert pq.read_table(folder).select(["id", *ADDED]).equals(expected)


def test_a_retry_whose_removal_is_cut_off_is_over_or_whole(tmp_path: Path) -> None:
    for number in range(1, 40):
        retry = RetryFolder(output(tmp_path / str(number), {0, 5, 6, 14}, 2))
        retry.take_out(ADDED, "error", keys)
        do(retry)
    names = {path.name for path in RetryFolder(tmp_path / "1").rows.iterdir()}
    assert len(names) == 2
    for number in crashes(lambda number: RetryFolder(tmp_path / str(number)).remove()):
        retry = RetryFolder(tmp_path / str(number))
        assert not retry.is_open or {path.name for path in retry.rows.iterdir()} == names
        assert not retry.is_open or retry.output.exists()
        if not retry.is_open:
            assert retry.take_out(ADDED, "error", keys) == 4, "and nothing that was left is in the way"
        retry.remove()
        assert not retry.is_open and not (tmp_path / str(number) / "_gptj_batch" / "retry").exists()


def test_a_damaged_part_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    output(tmp_path, {2})
    (tmp_path / "part-00001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(OutputError, match=r"part-00001\.parquet cannot be read: .* Nothing was changed"):
        RetryFolder(tmp_path).take_out(ADDED, "error", keys)
    assert not RetryFolder(tmp_path).is_open


def test_row_groups_in_which_nothing_failed_are_not_read(tmp_path: Path) -> None:
    part = OutputFolder.at(output(tmp_path, {5})).parts()[0]
    with open_parquet_part(part) as file:
        assert [start for _, start in parquet_tables(file, part)] == [0, 4]
        read = list(parquet_tables(file, part, ["id"], values_in="error"))
        assert [(table.column("id").to_pylist(), start) for table, start in read] == [([4, 5], 4)]
        assert len(list(parquet_tables(file, part, ["id"], values_in="a column that is not there"))) == 2
