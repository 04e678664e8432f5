"""A replica that stays: one backend, the tables of many tasks."""

import os
import threading
from pathlib import Path

from gptj_batch.stages.columns import RAW
from gptj_batch.stages.replica import MAX_TASKS, Replica
from stages import tables


def replica(model_folder: Path) -> Replica:
    return Replica(tables.replica(model_folder), "causal-lm", lambda: "this node")


def test_each_task_has_its_own_stage_on_one_backend(model_folder: Path, tmp_path: Path) -> None:
    one, other = tables.classify(), tables.generate()
    held = replica(model_folder)
    for name, task in (("one", one), ("other", other), ("one", one)):
        table = tables.tokenized(tmp_path, task, tables.records(), model_folder)
        alone = tables.infer(task, model_folder)(table)
        assert held.infer(name, task, table).column(RAW).to_pylist() == alone.column(RAW).to_pylist()


def test_stages_of_tasks_that_are_long_gone_are_dropped(model_folder: Path, tmp_path: Path) -> None:
    held, task = replica(model_folder), tables.generate()
    table = tables.tokenized(tmp_path, task, tables.records(), model_folder)
    for number in range(MAX_TASKS + 3):
        held.infer(str(number), task, table)
    assert len(held._stages) == MAX_TASKS and "0" not in held._stages


def test_it_rests_when_nothing_is_asked_of_it(model_folder: Path, tmp_path: Path) -> None:
    held, task = replica(model_folder), tables.generate()
    table = tables.tokenized(tmp_path, task, tables.records(), model_folder)
    inside, go_on = threading.Event(), threading.Event()
    run = held._backend.run

    def slow(requests):  # type: ignore[no-untyped-def]
        inside.set()
        go_on.wait(20)
        return run(requests)

    held._backend.run = slow  # type: ignore[method-assign]
    call = threading.Thread(target=held.infer, args=("slow", task, table))
    call.start()
    assert inside.wait(20) and held.idle_s() == 0.0
    go_on.set()
    call.join()
    assert held.idle_s() > 0.0


def test_it_says_what_and_where_it_is(model_folder: Path) -> None:
    facts = replica(model_folder).facts()
    assert facts["model"] == str(model_folder) and facts["head"] == "causal-lm"
    assert (facts["node"], facts["pid"], facts["kind"]) == ("this node", os.getpid(), "fake")
