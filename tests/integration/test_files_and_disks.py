"""Input that changes or goes while it is read, and disks that are full or closed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from integration.desk import Desk
from integration.faulty import faulty_job, run_while, texts
from integration.running import output_table

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

NUM_ROWS = 320


@pytest.mark.extended
def test_an_input_that_is_written_again_while_it_is_read_is_not_published(desk: Desk) -> None:
    job = faulty_job(desk, texts(NUM_ROWS), faults={"request_s": 0.02})
    source = desk.folder / "output.parquet"
    ended = run_while(desk, job, 1, lambda: pq.write_table(texts(NUM_ROWS), source))
    assert ended.code == 2, ended.stderr
    assert f"{source} was written again" in ended.stderr
    assert not (desk.output() / "_SUCCESS").exists() and not list(desk.output().glob("part-*"))
    again = desk.run(job)
    assert again.code == 2 and "was made by another configuration" in again.stderr
    assert desk.run(job, "output.on_exists=overwrite").code == 0


def test_an_input_that_goes_while_it_is_read_is_named(desk: Desk) -> None:
    job = faulty_job(desk, texts(NUM_ROWS), faults={"request_s": 0.02})
    source = desk.folder / "output.parquet"
    ended = run_while(desk, job, 1, source.unlink)
    assert ended.code == 2, ended.stderr
    assert str(source) in ended.stderr and ("cannot be read" in ended.stderr or "is gone" in ended.stderr)
    assert not (desk.output() / "_SUCCESS").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that holds next to nothing."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be made by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(desk: Desk, small_disk: Path) -> None:
    job = faulty_job(desk, texts(NUM_ROWS))
    output = small_disk / "output"
    full = desk.run(job, f"output.path={output}")
    assert full.code == 1, full.stderr
    assert "cannot be written" in full.stderr and "Make room" in full.stderr and "No space left" in full.stderr
    assert not (output / "_SUCCESS").exists() and not list(output.glob("part-*"))
    for unit in (output / "_gptj_batch" / "units").glob("*"):
        assert pq.read_table(unit).num_rows > 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    ended = desk.run(job, f"output.path={output}")
    assert ended.code == 0, ended.stderr
    assert output_table(output).column("id").to_pylist() == list(range(NUM_ROWS))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_may_not_be_written_is_named(desk: Desk) -> None:
    closed = desk.folder / "closed"
    closed.mkdir(mode=0o500)
    ended = desk.run(faulty_job(desk, texts(40)), f"output.path={closed / 'output'}")
    assert ended.code == 1
    assert "cannot be written" in ended.stderr and "Allow writing there" in ended.stderr
