"""Nothing that goes wrong in vLLM's engine is waited for, and nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gptj_batch import Failed, Generated, Request, SamplingParams
from gptj_batch.backends import make_backend
from gptj_batch.errors import BackendError, ConfigError
from tests.parity.on_vllm import N_POSITIONS, Draw, both, needs_vllm, running, save_checkpoint

pytestmark = [needs_vllm, pytest.mark.timeout(900)]

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"))


def long_requests(number: int = 40) -> list[Request]:
    draw = Draw(5)
    sampling = SamplingParams(max_new_tokens=80, ignore_eos=True)
    return [Request(key=str(n), prompt_token_ids=draw.tokens(4 + n % 9), sampling=sampling) for n in range(number)]


def is_alive(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def test_calls_of_many_threads_share_the_engine_and_each_gets_its_own(folder: Path) -> None:
    calls = [long_requests(6) for _ in range(5)]
    with running("vllm", folder) as backend, ThreadPoolExecutor(5) as threads:
        together = list(threads.map(backend.run, calls))
        assert backend.run([]) == []
        counts = backend.counts()
    assert together == [together[0]] * 5
    assert counts.num_generated_tokens == 5 * 6 * 80


def test_a_short_call_is_done_before_a_long_one_that_came_first(folder: Path) -> None:
    order: list[str] = []
    short = [Request(key="s", prompt_token_ids=[5, 6], sampling=SamplingParams(max_new_tokens=2, ignore_eos=True))]
    with running("vllm", folder) as backend:
        backend.run(short)
        long = threading.Thread(target=lambda: (backend.run(long_requests()), order.append("long")))
        long.start()
        wait_until(lambda: backend.num_steps > 40)  # type: ignore[attr-defined]
        backend.run(short)
        order.append("short")
        long.join()
    assert order == ["short", "long"]


def test_killing_the_engines_process_in_the_middle_fails_every_call(folder: Path) -> None:
    with running("vllm", folder) as backend, ThreadPoolExecutor(2) as threads:
        before = backend.num_steps  # type: ignore[attr-defined]
        waiting = [threads.submit(backend.run, long_requests(200)) for _ in range(2)]
        wait_until(lambda: backend.num_steps > before + 50)  # type: ignore[attr-defined]
        (pid,) = backend.process_ids  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
        for call in waiting:
            with pytest.raises(BackendError, match="vLLM's engine has died"):
                call.result(PATIENCE_S)
        with pytest.raises(BackendError, match="vLLM's engine has died"):
            backend.run(long_requests(1))


def test_closing_wakes_who_waits_and_ends_the_engines_process(folder: Path) -> None:
    with running("vllm", folder) as backend, ThreadPoolExecutor(1) as threads:
        (pid,) = backend.process_ids  # type: ignore[attr-defined]
        waiting = threads.submit(backend.run, long_requests(200))
        wait_until(lambda: backend.num_steps > 50)  # type: ignore[attr-defined]
        backend.close()
        with pytest.raises(BackendError, match="has been closed"):
            waiting.result(PATIENCE_S)
        with pytest.raises(BackendError, match="has been closed"):
            backend.run(long_requests(1))
        wait_until(lambda: not is_alive(pid))


REPLICA = """
import sys, time
from tests.parity.on_vllm import running
from pathlib import Path
if __name__ == "__main__":
    with running("vllm", Path(sys.argv[1])) as backend:
        print(backend.process_ids[0], flush=True)
        time.sleep(600)
"""


def test_an_engine_whose_replica_is_killed_does_not_outlive_it(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "replica.py"
    script.write_text(REPLICA)
    replica = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    assert replica.stdout is not None
    pid = int(replica.stdout.readline())
    assert is_alive(pid)
    replica.kill()
    replica.wait()
    wait_until(lambda: not is_alive(pid))


def test_a_small_cache_serves_all_rows_that_fit_and_refuses_the_others(folder: Path) -> None:
    # Four blocks of 32 tokens, one of which vLLM keeps: three sequences of 32 tokens, or one of 96.
    block_bytes = 32 * 2 * 2 * 128 * 4
    requests = long_requests(12)
    too_long = Request(key="x", prompt_token_ids=[5] * 60, sampling=SamplingParams(max_new_tokens=37))
    native, vllm = both(folder, [*requests, too_long], kv_cache_gb=4 * block_bytes / 2**30)
    assert vllm[:-1] == native[:-1]
    assert all(isinstance(one, Generated) for one in vllm[:-1])
    assert isinstance(vllm[-1], Failed) and str(N_POSITIONS) in vllm[-1].error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "model.dtype: int8 is the native engine's own"),
        ({"kv_cache_gb": 1e-6}, "backend.kv_cache_gb must hold at least two blocks"),
        ({"engine_kwargs": {"gpu_memory_utilisation": 0.5}}, "did you mean gpu_memory_utilization"),
        ({"engine_kwargs": {"max_model_len": 10**6}}, "backend: vLLM refuses its settings"),
        ({"engine_kwargs": {"quantization": "none-such"}}, "backend: vLLM refuses its settings"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_an_engine_starts(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_backend("vllm", model_path=folder, device="cpu", **settings)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cpu_takes_the_dtypes_of_a_gpu_as_the_native_engine_does(folder: Path, dtype: str) -> None:
    native, vllm = both(folder, long_requests(4), dtype=dtype)
    assert all(isinstance(one, Generated) for one in (*native, *vllm))
    # Only the first: two engines round differently, and what follows one other token is another text.
    first = [[one.token_ids[0] for one in answers if isinstance(one, Generated)] for answers in (native, vllm)]
    assert first[0] == first[1]


def test_a_folder_without_weights_is_an_engine_that_does_not_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    # The cause stands in the message, which vLLM itself only logs in the process that is gone.
    with pytest.raises(BackendError, match=r"did not start: .*(weights|safetensors)"), running("vllm", tmp_path):
        pass


def engine_of(pid: int) -> list[int]:
    """Return the children of a process in which vLLM's engine runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"EngineCore" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


class Killer(threading.Thread):
    """Kills this process's engines, the first `times` that it sees."""

    def __init__(self, times: int) -> None:
        super().__init__(daemon=True)
        self.killed: set[int] = set()
        self.is_over = False
        self._times = times

    def run(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.is_over and len(self.killed) < self._times and time.monotonic() < until:
            for pid in set(engine_of(os.getpid())) - self.killed:
                os.kill(pid, signal.SIGKILL)
                self.killed.add(pid)
            time.sleep(0.05)


def test_an_engine_that_is_killed_while_it_loads_is_started_once_more(folder: Path) -> None:
    killer = Killer(times=1)
    killer.start()
    with running("vllm", folder) as backend:
        assert all(isinstance(one, Generated) for one in backend.run(long_requests(2)))
    assert len(killer.killed) == 1


def test_an_engine_that_is_always_killed_while_it_loads_is_given_up_with_its_cause(folder: Path) -> None:
    killer = Killer(times=5)
    killer.start()
    with pytest.raises(BackendError, match="killed while it loaded the model, 2 times"):
        make_backend("vllm", model_path=folder, device="cpu", dtype="float32", kv_cache_gb=0.02, num_threads=1)
    killer.is_over = True
    assert len(killer.killed) == 2
