"""Outputs that are there already: gone on with, begun anew, or left alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.prepare
from gptj_batch.errors import OutputError
from integration.desk import GENERATE, Desk
from integration.running import (
    Outcome,
    environment,
    outcome,
    output_table,
    run_report,
    start_command,
)

pytestmark = pytest.mark.timeout(600)

SAMPLED = {**GENERATE, "temperature": 1.0, "top_k": 50, "seed": 7}


@pytest.fixture(scope="module")
def sampled(new_desk: Callable[[str], Desk], source: Path) -> pa.Table:
    desk = new_desk("sampled")
    ended = desk.run(desk.job(source, SAMPLED, input={"columns": ["id", "text"]}))
    assert ended.code == 0, ended.stderr
    return output_table(desk.output())


@pytest.fixture
def interrupted(desk: Desk, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A run over one file in small units that ended before it was published, three of its units lost."""

    def crash(*arguments: Any) -> None:
        raise OutputError("as if the machine had gone")

    monkeypatch.setattr(pipelines.prepare, "unit_rows", lambda num_rows: 7)
    job = desk.job(source / "d.parquet", SAMPLED, input={"columns": ["id", "text"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.finish.publish", crash)
        assert desk.run(job).code == 1
    units = sorted((desk.output() / "_gptj_batch" / "units").iterdir())
    assert len(units) == 8
    for unit in units[1:4]:
        unit.unlink()
    yield desk


def test_an_interrupted_run_goes_on_and_gives_what_an_undisturbed_one_gives(
    interrupted: Desk, sampled: pa.Table
) -> None:
    output = interrupted.output()
    assert not list(output.glob("part-*"))
    assert not (output / "_SUCCESS").exists()
    ended = interrupted.run(interrupted.folder / "output.yaml")
    assert ended.code == 0, ended.stderr
    assert "21 rows of 1 files (29 were done before), in 3 units" in ended.stderr
    assert run_report(output)["rows_this_run"] == 21
    # in other units, of a file alone, partly in another run: the same rows
    assert output_table(output).to_pylist() == sampled.slice(65, 50).to_pylist()


@pytest.mark.without_ray
def test_sampling_depends_on_the_seed(interrupted: Desk, sampled: pa.Table) -> None:
    # On the way also: overwriting, which begins anew though another configuration made what is there.
    refused = interrupted.run(interrupted.folder / "output.yaml", "task.seed=8")
    assert refused.code == 2
    assert "task.seed: 7 -> 8" in refused.stderr
    assert "output.on_exists=overwrite" in refused.stderr
    ended = interrupted.run(interrupted.folder / "output.yaml", "task.seed=8", "output.on_exists=overwrite")
    assert ended.code == 0, ended.stderr
    assert run_report(interrupted.output())["rows_this_run"] == 50
    texts = output_table(interrupted.output()).column("generated_text").to_pylist()
    assert texts != sampled.slice(65, 50).column("generated_text").to_pylist()


@pytest.mark.without_ray
def test_rows_with_a_key_are_sampled_alike_in_any_order(desk: Desk, source: Path) -> None:
    rows = pq.read_table(source / "c.parquet", columns=["id", "text"])
    by_id = []
    for name, table in (("forth", rows), ("back", rows.take(list(range(rows.num_rows - 1, -1, -1))))):
        pq.write_table(table, desk.folder / f"{name}.parquet")
        job = desk.job(desk.folder / f"{name}.parquet", SAMPLED, name, input={"key": "id"})
        assert desk.run(job).code == 0
        by_id.append(output_table(desk.output(name)).sort_by("id").to_pylist())
    assert by_id[0] == by_id[1]


def test_an_output_that_is_there_is_left_alone_if_that_is_asked_for(
    generated: tuple[Desk, Outcome], source: Path
) -> None:
    desk, _ = generated
    before = output_table(desk.output())
    ended = desk.run(desk.folder / "output.yaml", "output.on_exists=fail")
    assert ended.code == 2
    assert "is not empty, and output.on_exists is fail" in ended.stderr
    assert output_table(desk.output()).equals(before)


def test_a_finished_run_does_nothing_again_and_starts_no_ray(generated: tuple[Desk, Outcome], tmp_path: Path) -> None:
    desk, _ = generated
    parts = {part: part.stat().st_mtime_ns for part in desk.output().glob("part-*")}
    # At this address there is no Ray: to ask for it would fail.
    arguments = ["run", str(desk.folder / "output.yaml"), "--address", "127.0.0.1:1"]
    ended = outcome(start_command(arguments, environment(tmp_path), tmp_path))
    assert ended.code == 0, ended.stderr
    assert "Nothing to do" in ended.stderr
    assert "115 rows: 115 done, 0 failed" in ended.stdout
    assert {part: part.stat().st_mtime_ns for part in desk.output().glob("part-*")} == parts
