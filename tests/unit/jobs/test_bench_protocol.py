import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.bench.protocol import Worker, WorkerError

SCRIPT = """
import os
import sys

from jobs.bench.protocol import serve


def double(message):
    print("a library prints this")
    return {"twice": 2 * message["number"]}


def fail(message):
    raise ValueError("no such luck\\nand more")


def die(message):
    sys.stderr.write("these were the last words\\n")
    sys.stderr.flush()
    os._exit(7)


serve({"double": double, "fail": fail, "die": die})
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[3])
    worker = Worker([sys.executable, str(tmp_path / "script.py")], {"PYTHONPATH": root}, tmp_path / "log")
    yield worker
    worker.close()


def test_a_worker_answers_each_message_though_libraries_print(worker: Worker) -> None:
    assert [worker.ask({"op": "double", "number": number}) for number in (1, 2)] == [{"twice": 2}, {"twice": 4}]


def test_an_operation_that_fails_is_told_and_the_worker_goes_on(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"^ValueError: no such luck$"):
        worker.ask({"op": "fail"})
    assert worker.ask({"op": "double", "number": 3}) == {"twice": 6}


def test_a_worker_that_dies_is_reported_with_its_last_words(worker: Worker) -> None:
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"exit code 7.*these were the last words"):
            worker.ask({"op": "die"})


def test_a_closed_worker_has_ended(worker: Worker) -> None:
    worker.close()
    with pytest.raises((WorkerError, ValueError)):
        worker.ask({"op": "double", "number": 1})
