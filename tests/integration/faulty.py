"""Jobs whose fake backend misbehaves where a test wants it to (`gptj_batch.backends.fake_faults`)."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from integration.desk import GENERATE, Desk
from integration.running import Outcome, output_table
from integration.tiny_model import TinyModel

# Each is one token of the tiny tokenizer, and stands in no other text of these tests.
KILL, HANG, MEMORY, DEAD = "~", "^", "`", "|"


def faulty_model(folder: Path, tiny: TinyModel, **faults: Any) -> Path:
    """Copy a model and let its fake misbehave; what a text's mark brings about, and how slow a request is."""
    shutil.copytree(tiny.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    marks = {"kill_token": KILL, "hang_token": HANG, "memory_token": MEMORY, "dead_token": DEAD}
    tokens = {name: tiny.encode(mark)[0] for name, mark in marks.items()}
    config["fake_faults"] = {**tokens, **faults}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def texts(num_rows: int, marks: dict[int, str] | None = None) -> pa.Table:
    """Rows with a text of their own, some with a mark in it."""
    marks = marks or {}
    values = [f"{row}: Shares fell as the market closed.{marks.get(row, '')}" for row in range(num_rows)]
    return pa.table({"id": pa.array(range(num_rows), pa.int64()), "text": values})


def faulty_job(
    desk: Desk, table: pa.Table, name: str = "output", faults: dict[str, Any] | None = None, **blocks: Any
) -> Path:
    """Write the input and the job of a run with a faulty fake."""
    model = desk.folder / f"model-{name}"
    if not model.exists():
        faulty_model(model, desk.tiny, **(faults or {}))
    source = desk.folder / f"{name}.parquet"
    pq.write_table(table, source)
    settings = {"backend": {"kind": "fake"}, "errors": {"max_failed_rows": 0.5}, **blocks}
    return desk.job(source, GENERATE, name, model={"path": str(model)}, **settings)


def undisturbed_rows(desk: Desk, num_rows: int) -> list[dict[str, Any]]:
    """Run a job over texts that nothing is wrong with, and return its rows."""
    ended = desk.run(faulty_job(desk, texts(num_rows)))
    assert ended.code == 0, ended.stderr
    rows: list[dict[str, Any]] = output_table(desk.output()).to_pylist()
    return rows


def run_while(desk: Desk, job: Path, num_units: int, then: Callable[[], object]) -> Outcome:
    """Run a job, and do something to it when so many units are done."""
    over = threading.Event()

    def interfere() -> None:
        units = desk.output() / "_gptj_batch" / "units"
        while not over.is_set() and len(list(units.glob("unit-*"))) < num_units:
            time.sleep(0.01)
        try:
            then()
        except BaseException:  # the run may wait for what did not happen
            os.kill(os.getpid(), signal.SIGINT)
            raise

    with ThreadPoolExecutor() as pool:
        done = pool.submit(interfere)
        try:
            ended = desk.run(job)
        finally:
            over.set()
        done.result()
    return ended
