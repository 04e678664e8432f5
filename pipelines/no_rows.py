"""The output of an input without rows: the columns and the lineage. Ray Data hands no stage a block without rows."""

import json

import pyarrow as pa

from gptj_batch.records.schema import output_schema, select_columns
from gptj_batch.records.write import write_unit
from gptj_batch.tasks.base import ERROR_COLUMN
from pipelines.prepare import Run


def write_no_rows(run: Run) -> None:
    """Write the one unit that an input without rows has. Raises OutputError."""
    output = run.job.output
    added = run.task.adds.append(pa.field(ERROR_COLUMN, pa.string()))
    schema = output_schema(select_columns(run.inputs.schema, run.columns), added, output.prefix)
    lineage = json.dumps({**run.lineage(), "backend": {}}, sort_keys=True).encode()
    write_unit(schema.empty_table(), run.folder, 0, metadata=lineage)
