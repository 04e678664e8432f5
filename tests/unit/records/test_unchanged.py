import os
from pathlib import Path

import pytest

from gptj_batch.errors import InputError
from gptj_batch.records.read import list_files
from gptj_batch.records.unchanged import check_unchanged

from .tables import numbered, write_parquet


def test_files_that_stay_are_good(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", numbered(0, 5))
    check_unchanged(list_files(str(tmp_path)).files)


def test_every_change_is_named(tmp_path: Path) -> None:
    for name in ("gone", "larger", "stays", "touched"):
        write_parquet(tmp_path / f"{name}.parquet", numbered(0, 5))
    files = list_files(str(tmp_path)).files
    (tmp_path / "gone.parquet").unlink()
    write_parquet(tmp_path / "larger.parquet", numbered(0, 500))
    status = (tmp_path / "touched.parquet").stat()
    os.utime(tmp_path / "touched.parquet", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    with pytest.raises(InputError, match="3 of 4 files changed while the run read them") as changed:
        check_unchanged(files)
    said = str(changed.value)
    assert "gone.parquet is gone" in said and "touched.parquet was written again" in said
    assert "larger.parquet had" in said and "stays" not in said and "on_exists=overwrite" in said
