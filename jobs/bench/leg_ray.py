"""What the peers' legs on Ray have in common: a local Ray like the one of our own runs, and the input in blocks."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.bench.pipeline_work import LegWork
from pipelines.cluster import open_connection, set_environment


@contextmanager
def local_ray() -> Iterator[None]:
    """Start a Ray of this process's own."""
    set_environment("local")
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        open_connection("local", folder)
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def read_input(work: LegWork) -> Any:
    """Return the rows as a dataset of blocks of `block_rows`: read as it comes, a small file is one block."""
    import ray

    dataset = ray.data.read_parquet(work.input)
    return dataset.repartition(target_num_rows_per_block=work.settings["block_rows"])
