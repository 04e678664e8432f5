"""Measure the engine against transformers' `generate` on the same random checkpoint and the same ragged prompts.

    python jobs/bench/engine_vs_transformers.py [--dtype float32] [--prompts 256] [--batches 1,16,64] [--rounds 3]

Legs alternate (transformers, engine, transformers, engine, ...); before each, a matrix product shows how fast the
machine is at that moment, since it may be shared. Loading is timed apart. Writes JSON to jobs/bench/results/.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine
from gptj_batch.model import GPTJConfig, GPTJForCausalLM

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
CACHE = Path.home() / ".cache" / "gptj_batch" / "bench-204m"
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS, NEW_TOKENS = 8, 96, 32
SHAPE = {"vocab_size": 50400, "n_positions": 1024, "n_embd": 1024, "n_layer": 8, "n_head": 8, "rotary_dim": 64}


@dataclass
class Leg:
    """One side of the comparison: how to run it, and what was measured."""

    name: str
    run: Callable[[], list[list[int]]]
    seconds: list[float] = field(default_factory=list)
    gemm_gflops: list[float] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)

    def measure(self, dtype: torch.dtype) -> None:
        """Run once."""
        self.gemm_gflops.append(gemm_gflops(dtype))
        start = time.perf_counter()
        self.outputs = self.run()
        self.seconds.append(time.perf_counter() - start)

    def summary(self, num_tokens: int) -> dict[str, Any]:
        """Return what goes into the JSON."""
        return {
            "seconds": [round(s, 3) for s in self.seconds],
            "gemm_gflops": [round(g) for g in self.gemm_gflops],
            "tokens_per_s": round(num_tokens / statistics.median(self.seconds), 1),
        }


def make_checkpoint(path: Path) -> None:
    """Write the 204 M parameter checkpoint, once; weights spread enough for tokens to differ clearly."""
    if (path / "config.json").exists():
        return
    torch.manual_seed(0)
    GPTJForCausalLM(GPTJConfig(**SHAPE, initializer_range=0.04)).save_pretrained(path)  # type: ignore[arg-type]


def make_prompts(count: int) -> list[list[int]]:
    """Return ragged random prompts, the same in every run."""
    draw = random.Random(0)  # noqa: S311 - not for secrets
    lengths = [draw.randint(MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS) for _ in range(count)]
    return [[draw.randrange(SHAPE["vocab_size"] - 400) for _ in range(length)] for length in lengths]


def gemm_gflops(dtype: torch.dtype, size: int = 1024) -> float:
    """Return the best of a few matrix products: what the machine gives at this moment."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def transformers_leg(model: Any, prompts: list[list[int]], batch_size: int) -> Leg:
    """Return `generate` on left-padded batches, of about equally long prompts, which favours it."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))

    @torch.inference_mode()
    def run() -> list[list[int]]:
        outputs: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            width = max(len(prompts[index]) for index in batch)
            input_ids = torch.zeros(len(batch), width, dtype=torch.int64)
            mask = torch.zeros_like(input_ids)
            for row, index in enumerate(batch):
                input_ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, width - len(prompts[index]) :] = 1
            generated = model.generate(
                input_ids,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            for row, index in enumerate(batch):
                outputs[index] = generated[row, width:].tolist()
        return outputs

    return Leg(f"transformers, batch {batch_size}", run)


def engine_leg(engine: Engine, prompts: list[list[int]]) -> Leg:
    """Return our engine, given all prompts at once."""
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    requests = [
        Request(key=str(index), prompt_token_ids=prompt, sampling=sampling) for index, prompt in enumerate(prompts)
    ]

    def run() -> list[list[int]]:
        return [list(result.token_ids) for result in engine.run(requests) if isinstance(result, Generated)]

    return Leg("engine", run)


def timed(make: Callable[[], T]) -> tuple[T, float]:
    """Return what `make` returns, and the seconds it took."""
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


def surroundings() -> dict[str, Any]:
    """Return commit, hardware and versions."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "commit": git.stdout.strip() if git.returncode == 0 else None,
        "hardware": {"cpu": model, "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
    }


def count_equal(ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Return in how many rows both gave the same tokens."""
    return sum(a == b for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=CACHE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    make_checkpoint(arguments.checkpoint)
    prompts = make_prompts(arguments.prompts)

    load: Any = transformers.GPTJForCausalLM.from_pretrained
    peer, peer_load_s = timed(lambda: load(arguments.checkpoint, dtype=dtype).eval())
    engine, engine_load_s = timed(lambda: Engine.from_pretrained(arguments.checkpoint, dtype=dtype))
    ours = engine_leg(engine, prompts)
    peers = [transformers_leg(peer, prompts, int(size)) for size in arguments.batches.split(",")]

    ours.run()  # warm-up: first calls choose kernels
    transformers_leg(peer, prompts[:8], 8).run()
    for _ in range(arguments.rounds):
        for leg in peers:
            leg.measure(dtype)
            ours.measure(dtype)
    for leg in (ours, *peers):
        assert [len(output) for output in leg.outputs] == [NEW_TOKENS] * len(prompts), f"{leg.name}: wrong lengths"

    num_tokens = NEW_TOKENS * len(prompts)
    best = min(peers, key=lambda leg: statistics.median(leg.seconds))
    ratio = statistics.median(best.seconds) / statistics.median(ours.seconds)
    report = {
        **surroundings(),
        "config": {
            "dtype": arguments.dtype,
            "num_prompts": len(prompts),
            "prompt_tokens": sum(map(len, prompts)),
            "new_tokens_each": NEW_TOKENS,
            "model": SHAPE,
            "rounds": arguments.rounds,
            "bounds": vars(engine.bounds),
        },
        "load_s": {"transformers": round(peer_load_s, 2), "engine": round(engine_load_s, 2)},
        "legs": {leg.name: leg.summary(num_tokens) for leg in (ours, *peers)},
        "rows_equal_to_best_peer": count_equal(ours.outputs, best.outputs),
        "ratio_to_best_peer": round(ratio, 2),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"engine_vs_transformers-{arguments.dtype}-{len(prompts)}.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'leg':<26}{'tokens/s':>10}{'seconds':>9}{'GEMM GF/s':>11}{'engine is':>11}")
    for leg in (ours, *peers):
        seconds = statistics.median(leg.seconds)
        times = seconds / statistics.median(ours.seconds)
        gemm = statistics.median(leg.gemm_gflops)
        print(f"{leg.name:<26}{num_tokens / seconds:>10.1f}{seconds:>9.2f}{gemm:>11.0f}{times:>10.2f}x")
    print(f"rows equal to {best.name}: {report['rows_equal_to_best_peer']} of {len(prompts)}; written to {file}")


if __name__ == "__main__":
    main()
