"""The claim on an output: held while it is written, and not asked for where there is nothing to write."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gptj_batch.errors import ConfigError, OutputInUseError
from gptj_batch.records.lease import take_lease
from gptj_batch.records.output import OutputFolder
from pipelines.claim import claimed
from pipelines.config import Job
from pipelines.prepare import prepare


def test_it_is_held_until_it_is_left_and_has_all_units(make_job: Callable[..., Job], tmp_path: Path) -> None:
    run = prepare(make_job())
    with claimed(run) as claim:
        assert claim.fence is not None and len(claim.pending) == run.plan.num_units
        with pytest.raises(OutputInUseError), claimed(run):
            pass
    take_lease(tmp_path / "out")


def test_it_is_given_back_where_the_work_fails(make_job: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(prepare(make_job())):
        _ = 1 / 0
    take_lease(tmp_path / "out")


def test_a_complete_output_is_read_without_one_and_only_by_those_who_made_it(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    with claimed(prepare(make_job())):
        pass
    folder = OutputFolder.at(tmp_path / "out")
    folder.success.touch()
    with take_lease(tmp_path / "out"), claimed(prepare(make_job())) as claim:
        assert claim.is_done and not len(claim.pending)
    with (
        pytest.raises(ConfigError, match="another configuration"),
        claimed(prepare(make_job(task={"max_new_tokens": 9}))),
    ):
        pass
