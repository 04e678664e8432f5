"""Jobs on vLLM from end to end: Parquet in, Ray, vLLM, Parquet out; the output is the native engine's."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integration.clusters import RunningCluster, connect, running_cluster
from integration.running import Outcome, output_table, run_here, run_report, write_job
from jobs.cli import main
from tests.parity.on_vllm import needs_vllm

pytestmark = [needs_vllm, pytest.mark.timeout(900)]

TOLERANCE = 1e-4
TEXTS = [
    "The team won the match in the last minute.",
    "Shares fell as the market closed.",
    None,
    "The minister met the president 🙂 in the capital.",
    "A new chip doubles the speed of the machine.",
    "word " * 4000,
    "The striker scored twice and the crowd sang.",
]
TASKS: dict[str, dict[str, Any]] = {
    "generate": {
        "kind": "generate",
        "prompt": "{{ text }}\nTopic:",
        "max_new_tokens": 8,
        "stop": "\n",
        "logprobs": True,
    },
    "classify": {"kind": "classify", "prompt": "{{ text }}\nTopic:", "labels": ["World", "Sports", "Business"]},
    "classify by head": {"kind": "classify", "method": "head", "text": "{{ text }}"},
    "extract": {"kind": "extract", "question": "Who won?", "context": "{{ text }}", "top_k": 3},
    "score": {"kind": "score", "text": "{{ text }}"},
    "embed, mean": {"kind": "embed", "text": "{{ text }}"},
    "embed, last": {"kind": "embed", "text": "{{ text }}", "pooling": "last", "normalize": True},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("source") / "in.parquet"
    pq.write_table(pa.table({"id": range(3 * len(TEXTS)), "text": pa.array(TEXTS * 3)}), file)
    return file


def job(folder: Path, source: Path, kind: str, task: dict[str, Any], **blocks: Any) -> Path:
    backend = {"kind": kind, "kv_cache_gb": 0.05}
    if kind == "vllm":
        backend["engine_kwargs"] = {"enforce_eager": True}
    settings: dict[str, Any] = {
        "input": {"path": str(source)},
        "task": task,
        "model": {"path": "demo", "dtype": "float32"},
        "backend": backend,
        "replicas": {"cpus_each": 1.0},
        "output": {"path": str(folder / kind)},
        "errors": {"max_failed_rows": 0.9},
        **blocks,
    }
    return write_job(folder / f"{kind}.yaml", **settings)


def run(cluster: RunningCluster, file: Path) -> Outcome:
    connect(cluster)
    return run_here(file)


def flat(value: Any) -> list[Any]:
    """Return a nested value's leaves."""
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in flat(one)]
    return [leaf for one in value for leaf in flat(one)] if isinstance(value, list | tuple) else [value]


def same(ours: Any, theirs: Any) -> bool:
    one, other = flat(ours), flat(theirs)
    return len(one) == len(other) and all(map(_same_leaf, one, other))


def _same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=TOLERANCE, rel_tol=TOLERANCE)
    return bool(one == other)


CASES = [pytest.param(name, marks=[pytest.mark.vllm_first] * (name == "generate")) for name in TASKS]


@pytest.mark.parametrize("name", CASES)
def test_the_output_of_both_engines_is_the_same(
    cluster: RunningCluster, source: Path, tmp_path: Path, name: str
) -> None:
    tables = {}
    for kind in ("native", "vllm"):
        outcome = run(cluster, job(tmp_path, source, kind, TASKS[name]))
        assert outcome.code in (0, 3), outcome.stderr
        assert f"backend: {kind}" in outcome.stderr
        tables[kind] = output_table(tmp_path / kind).sort_by("id")
    assert tables["vllm"].schema.remove_metadata() == tables["native"].schema.remove_metadata()
    rows = [tables[kind].to_pylist() for kind in ("native", "vllm")]
    assert [ours["id"] for ours, theirs in zip(*rows, strict=True) if not same(ours, theirs)] == []
    assert sum(row["error"] is None for row in rows[1]) >= 15
    assert run_report(tmp_path / "vllm")["backend"]["kind"] == "vllm"


@pytest.mark.skipif(
    not (Path(__file__).parents[2] / "gptj_batch" / "stages" / "careful.py").exists(),
    reason="a dead engine ends its replica where stages/careful.py is (issue 6)",
)
def test_a_job_whose_engine_is_killed_is_done_all_the_same(
    cluster: RunningCluster, source: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many.parquet"
    pq.write_table(pa.table({"id": range(160), "text": ["Shares fell as the market closed."] * 160}), many)
    file = job(tmp_path, many, "vllm", {**TASKS["generate"], "stop": [], "min_new_tokens": 40, "max_new_tokens": 40})
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 240
        while not any((tmp_path / "vllm").rglob("*.parquet")) and time.monotonic() < until:
            time.sleep(0.02)
        killed.extend(engine_processes())  # some rows are done, the others wait or are being done
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = run(cluster, file)
    killer.join()
    assert killed and outcome.code == 0, outcome.stderr
    table = output_table(tmp_path / "vllm")
    assert sorted(table["id"].to_pylist()) == list(range(160)) and table["error"].null_count == 160


def engine_processes() -> list[int]:
    """Return the processes in which vLLM's engine runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"EngineCore" in (folder / "cmdline").read_bytes()[:64]:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_verify_finds_that_both_engines_agree(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = job(tmp_path, source, "vllm", TASKS["generate"])
    assert main(["verify", str(file), "--backends", "native,vllm", "--rows", "7"]) == 0
    printed = capsys.readouterr().out
    assert "rows that agree: 5 of 5 (100.0%)" in printed and "first differing token: none" in printed
    assert not (tmp_path / "vllm").exists()


def test_verify_tells_where_engines_differ_and_exits_with_3(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job(tmp_path, source, "vllm", TASKS["generate"])
    assert main(["verify", str(file), "--backends", "fake,vllm", "--rows", "7"]) == 3
    printed = capsys.readouterr().out
    assert "rows that agree: 0 of 5" in printed and "first differing token: token 1 of row in.parquet:0" in printed
