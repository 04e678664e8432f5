"""The counts of a run whose report was lost after its parts were published."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder
from pipelines.config import Job
from pipelines.destination import claim_output
from pipelines.prepare import prepare
from pipelines.report import count_errors


def test_errors_are_counted_from_the_parts_where_the_units_are_gone(make_job: Callable[..., Job]) -> None:
    run = prepare(make_job())
    claim_output(run)
    folder = OutputFolder.at(run.job.output.path)
    for index, errors in enumerate((["bad", None], ["bad", "worse"])):
        pq.write_table(pa.table({run.error_column: pa.array(errors, pa.string())}), folder.part(index, 2))
    assert count_errors(run) == {"bad": 2, "worse": 1}
