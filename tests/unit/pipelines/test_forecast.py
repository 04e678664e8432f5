from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.requests import EmbedRequest, LabelRequest, Request, SamplingParams, ScoreRequest
from pipelines.config import Job
from pipelines.forecast import Cost, cost, forecast
from pipelines.prepare import prepare

MakeJob = Callable[..., Job]


def test_a_sample_speaks_for_all_rows(make_job: MakeJob) -> None:
    found = forecast(prepare(make_job()), max_rows=50)
    assert (found.rows, found.files) == (100, 1)
    assert 40 <= found.sampled <= 60
    assert found.new_tokens == pytest.approx(100 * 8)
    mean = sum(cost.prompt_tokens for cost in found.costs) / found.sampled
    assert found.prompt_tokens == pytest.approx(100 * mean)


def test_rows_that_will_be_refused_and_cut_are_counted(make_job: MakeJob, records: Path) -> None:
    texts = [None, "short", "long " * 500]
    pq.write_table(pa.table({"text": texts}), records / "a.parquet")
    found = forecast(prepare(make_job(task={"truncate": "left"})))
    assert sum(found.errors.values()) == 1 and found.cut == 1
    assert len(found.costs) == 2


def test_the_histogram_holds_every_row_that_can_be_done(make_job: MakeJob) -> None:
    found = forecast(prepare(make_job()))
    assert sum(count for _, count in found.histogram()) == 100
    assert found.percentile(0.5) <= found.percentile(0.95) <= found.percentile(1.0)


def test_an_input_without_rows_has_a_plan(make_job: MakeJob, records: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), records / "a.parquet")
    found = forecast(prepare(make_job()))
    assert (found.rows, found.operations, found.histogram(), found.percentile(0.5)) == (0, 0, [], 0)


PROMPT = (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        (
            [Request(key=key, prompt_token_ids=PROMPT, sampling=SamplingParams(max_new_tokens=7)) for key in "ab"],
            Cost(prompt_tokens=5, new_tokens=14, read_tokens=14, longest=12),
        ),
        (
            [LabelRequest(key="a", prompt_token_ids=PROMPT, label_token_ids=((1,), (2, 3)))],
            Cost(prompt_tokens=5, new_tokens=0, read_tokens=3, longest=5),
        ),
        (
            [ScoreRequest(key=key, prompt_token_ids=PROMPT) for key in "ab"],
            Cost(prompt_tokens=10, new_tokens=0, read_tokens=10, longest=5),
        ),
        (
            [EmbedRequest(key="a", prompt_token_ids=PROMPT)],
            Cost(prompt_tokens=5, new_tokens=0, read_tokens=0, longest=5),
        ),
    ],
)
def test_a_row_costs_what_its_requests_ask(requests: list[Request], expected: Cost) -> None:
    assert cost(requests) == expected
