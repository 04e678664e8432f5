"""What `run` says a token of KV cache takes is what vLLM makes of the same memory, by its own log."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_batch.backends.vllm_memory import MemoryPlan
from tests.parity.on_vllm import needs_vllm, save_checkpoint

pytestmark = [needs_vllm, pytest.mark.timeout(600)]

KV_CACHE_BYTES = 20 << 20
START = """
import sys
from pathlib import Path
from tests.parity.on_vllm import running
if __name__ == "__main__":
    with running("vllm", Path(sys.argv[1]), dtype=sys.argv[2], kv_cache_gb=int(sys.argv[3]) / 2**30):
        pass
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_finds_room_for_as_many_tokens_as_the_arithmetic_says(tmp_path: Path, dtype: str) -> None:
    folder = save_checkpoint(tmp_path / "model", head_size=256)
    script = tmp_path / "start.py"
    script.write_text(START)
    log = subprocess.run(
        [sys.executable, str(script), str(folder), dtype, str(KV_CACHE_BYTES)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_LOGGING_LEVEL": "INFO"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    (tokens,) = {int(number.replace(",", "")) for number in re.findall(r"KV cache size: ([\d,]+) tokens", log)}
    plan = MemoryPlan.of(json.loads((folder / "config.json").read_text()), dtype, {})
    most = KV_CACHE_BYTES // plan.kv_bytes_per_token
    assert most - 32 <= tokens <= most  # vLLM takes whole blocks of 32
