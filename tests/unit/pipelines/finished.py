"""Runs whose units are written, and published, without any model."""

import pyarrow as pa

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.publish import publish
from gptj_batch.records.write import write_unit
from pipelines.prepare import Run


def output_of(run: Run) -> OutputFolder:
    return OutputFolder.at(run.job.output.path)


def finish_unit(run: Run, index: int) -> None:
    num_rows = run.plan.unit(index).num_rows
    write_unit(pa.table({"error": pa.nulls(num_rows, pa.string())}), run.folder, index)


def finish(run: Run) -> None:
    for index in range(run.plan.num_units):
        finish_unit(run, index)
    publish(run.folder, run.plan.num_units, run.job.output.form)
