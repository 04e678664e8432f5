"""What a recount finds in outputs that something happened to; made without Ray, by calling the stages."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from whole_runs import Spine, job, write

from gptj_batch.errors import ConfigError, InputError
from jobs.recount import recount
from jobs.run import run_job


@pytest.fixture
def made(folder: Path, model_folder: Path, spine: Spine) -> Path:
    """A finished output of 102 rows, two of them failed."""
    write(folder, [None, "x", None], "b.parquet")
    run_job(job(folder, model_folder, errors={"max_failed_rows": 5}, input={"limit": 103}))
    return folder / "out"


def said(output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = recount(str(output))
    return code, capsys.readouterr().out


def test_a_good_output_agrees(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(made, capsys)
    assert code == 0
    assert text == "103 rows in the input; 103 in the output: 101 done, 2 failed\neverything agrees\n"


def test_a_part_that_is_gone_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "part-00000.parquet").unlink()
    code, text = said(made, capsys)
    assert code == 1 and "part-00000.parquet is missing; it had 103 rows" in text


def test_rows_that_are_gone_or_doubled_are_counted(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = made / "part-00000.parquet"
    table = pq.read_table(part)
    for other in (table.slice(1), pa.concat_tables([table, table.slice(0, 1)])):
        pq.write_table(other, part)
        code, text = said(made, capsys)
        assert code == 1 and f"part-00000.parquet has {other.num_rows} rows and had 103 when it was written" in text
        assert f"the output has {other.num_rows} rows and the input 103" in text


def test_a_part_that_is_too_many_or_damaged_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"a": [1]}), made / "part-00001.parquet")
    (made / "part-00000.parquet").write_bytes(b"PAR1")
    code, text = said(made, capsys)
    assert code == 1
    assert "part-00001.parquet is not in _SUCCESS" in text and "part-00000.parquet cannot be read" in text


def test_an_input_that_changed_is_told(made: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, ["one more"], "c.parquet")
    code, text = said(made, capsys)
    assert code == 1 and "the input is another now: " in text and "c.parquet" in text
    for file in (folder / "in").iterdir():
        file.unlink()
    with pytest.raises(InputError):
        recount(str(made))


def test_a_report_that_says_otherwise_is_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made / "_gptj_batch" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "failed": 1}))
    code, text = said(made, capsys)
    assert code == 1 and "run.json says (103, 1) rows and failed rows, and the files (103, 2)" in text


def test_what_is_no_finished_output_is_refused(made: Path, tmp_path: Path) -> None:
    (made / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="its run has not finished"):
        recount(str(made))
    with pytest.raises(ConfigError, match="is not an output of gptj-batch"):
        recount(str(tmp_path / "nothing"))
