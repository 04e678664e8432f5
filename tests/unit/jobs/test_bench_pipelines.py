from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench import pipeline_trial, table
from jobs.bench.pipeline_plan import NATIVE, NEW_TOKENS, PIPELINES, W7, W8
from jobs.bench.pipeline_report import agreement, report
from jobs.bench.pipeline_rounds import Measured
from jobs.bench.pipeline_trial import Trial, job_of
from jobs.bench.pipeline_work import LegWork, note_time, noted_time, prompt_of
from jobs.bench.pipelines import chosen
from jobs.bench.protocol import WorkerError
from pipelines.config import check_job
from pipelines.job_file import JobFile


def work_in(folder: Path, **settings: Any) -> LegWork:
    paths = {name: str(folder / name) for name in ("input", "output", "started", "done", "checkpoint")}
    return LegWork(
        **{**paths, "new_tokens": NEW_TOKENS, "dtype": "float32", "threads": 1, "kv_cache_bytes": 2**30, **settings}
    )


def rows(texts: list[str], num_tokens: int = NEW_TOKENS) -> pa.Table:
    number = len(texts)
    columns: dict[str, Any] = {"id": [str(n) for n in range(number)], "title": ["t"] * number, "text": ["x"] * number}
    columns |= {
        "generated_text": texts,
        "num_prompt_tokens": [3] * number,
        "num_generated_tokens": [num_tokens] * number,
    }
    return pa.table(columns)


def trial(start_s: float, steady_s: float) -> Trial:
    return Trial(rows=10, gemm_gflops=100.0, start_s=start_s, steady_s=steady_s, cores_share=0.9)


def test_workloads_are_chosen_by_name() -> None:
    assert [workload.id for workload in chosen("W7,W13")] == ["W7", "W13"] and chosen("") == PIPELINES
    with pytest.raises(SystemExit, match="W1"):
        chosen("W1")


def test_every_goal_has_a_leg_that_decides_it() -> None:
    for workload in PIPELINES:
        assert set(workload.goals) <= {leg.counts_for for leg in workload.legs}, workload.id


def test_the_job_is_one_that_a_user_could_write(tmp_path: Path) -> None:
    job = check_job(JobFile(name="job.yaml", values=job_of(NATIVE, work_in(tmp_path))))
    assert job.backend.kind == "native" and job.backend.kv_cache_gb == 1.0


def test_a_time_is_noted_once(tmp_path: Path) -> None:
    file = str(tmp_path / "time")
    assert noted_time(file) is None
    note_time(file)
    first = noted_time(file)
    note_time(file)
    assert first is not None and noted_time(file) == first


def test_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    work = work_in(tmp_path, settings={"batch_size": 3})
    work.write(tmp_path / "work.json")
    assert LegWork.read(str(tmp_path / "work.json")) == work
    assert prompt_of({"title": "a", "text": "b"}) == "a. b\nTopic:"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (rows(["a", "b"]).slice(0, 1), "not those of the input"),
        (rows(["a", "b"], 5), "rows of .'5'. tokens"),
        (rows(["a", "b"]), None),
    ],
)
def test_an_output_with_rows_missing_or_cut_is_no_measurement(
    tmp_path: Path, table: pa.Table, words: str | None
) -> None:
    work = work_in(tmp_path)
    pq.write_table(rows(["a", "b"]).select(["id", "title", "text"]), work.input)
    Path(work.output).mkdir()
    pq.write_table(table, Path(work.output) / "part.parquet")
    if words is None:
        assert pipeline_trial._output(work).num_rows == 2
    else:
        with pytest.raises(WorkerError, match=words):
            pipeline_trial._output(work)


def test_a_cold_start_counts_from_the_process_and_the_steady_state_from_the_first_rows() -> None:
    assert trial(start_s=5.0, steady_s=5.0).rate("cold") == 1.0
    assert trial(start_s=5.0, steady_s=5.0).rate("steady") == 2.0


def measured(workload: Any, seconds: list[float]) -> list[Measured]:
    return [
        Measured(leg, 10, trials=[trial(1.0, one)] * 3, output=rows(["a"]))
        for leg, one in zip(workload.legs, seconds, strict=True)
    ]


def test_the_first_leg_is_held_against_each_others_goal_and_the_table_has_all() -> None:
    facts = report(W7, measured(W7, [1.0, 1.5, 2.0, 0.95]))
    verdicts = {ratio["to"]: (ratio["ratio"], ratio["met"]) for ratio in facts["ratios"]}
    assert verdicts == {
        "ray.data.llm": (1.5, True),
        "map_batches, transformers": (2.0, False),
        "our engine, no Ray": (0.95, True),
    }
    assert sum("rows/s" in line for line in table.lines([facts])) == 4


def test_a_leg_that_failed_is_left_out_with_its_reason() -> None:
    some = measured(W8, [1.0, 9.0, 3.0, 2.0])
    some[1] = Measured(some[1].leg, 10, problem="no environment")
    facts = report(W8, some)
    assert facts["skipped"] == [{"name": "ray.data.llm", "reason": "no environment"}] and len(facts["legs"]) == 3


def test_texts_are_compared_row_by_row() -> None:
    assert agreement(rows(["a", "b", "c"]), rows(["a", "x"])) == {
        "rows": 2,
        "equal_rows": 1,
        "equal_prompt_tokens": 2,
    }
