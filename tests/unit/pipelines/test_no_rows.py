import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import pending_units
from pipelines.config import Job
from pipelines.destination import claim_output
from pipelines.no_rows import write_no_rows
from pipelines.prepare import prepare


def test_an_input_without_rows_becomes_a_file_with_its_columns_and_the_tasks(
    make_job: Callable[..., Job], records: Path
) -> None:
    schema = pa.schema([pa.field("id", pa.int8()), pa.field("text", pa.string())], metadata={"who": "me"})
    pq.write_table(schema.empty_table(), records / "a.parquet")
    job = make_job(input={"columns": ["text"]}, output={"prefix": "g_"})
    run = prepare(job)
    claim_output(run)
    write_no_rows(run)
    written = pq.read_schema(OutputFolder.at(job.output.path).unit(0))
    assert written.names == ["text", *(f"g_{name}" for name in (*run.task.adds.names, "error"))]
    assert written.field("g_num_prompt_tokens").type == pa.int32()
    assert json.loads(written.metadata[b"gptj_batch"])["job"] == "test-job" and written.metadata[b"who"] == b"me"
    assert pending_units(job.output.path, run.plan).tolist() == []
