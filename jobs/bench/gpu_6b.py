"""Measure a GPT-J of 6 B parameters on a GPU, in float16 with random weights made there: no checkpoint is needed.

    python -m jobs.bench.gpu_6b [--workloads 512x128x1024,128x128x1024,512x1x1024] [--rounds 3] [--batch 64] [--tiny]

It needs torch (2.11 or later, with CUDA) and safetensors; transformers, where it can be imported, is measured beside us
on the same weights and prompts, rounds alternating. A workload is prompt tokens x new tokens x rows. Before each leg a
matrix product shows what the device gives at that moment. Writes JSON to jobs/bench/results/.

Without a GPU it measures nothing, says so and ends with 1. `--tiny` runs all of it on a CPU with a model of a few
thousand weights, to check the script; its figures mean nothing, and no JSON is written.
"""

import argparse
import importlib.util
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptj_batch import Generated, Request, SamplingParams
from gptj_batch.engine import Engine
from gptj_batch.model import GPTJConfig, GPTJForCausalLM

RESULTS = Path(__file__).parent / "results"
WORKLOADS = "512x128x1024,128x128x1024,512x1x1024"
SIX_B = {"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64}
TINY = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}
# What was asked of an H200 before any GPU was at hand: output tokens/s, or rows/s where one token is made.
GOALS = {(512, 128): "6000 tokens/s", (128, 128): "14000 tokens/s", (512, 1): "110 rows/s"}


@dataclass(frozen=True)
class Workload:
    """So many rows of so many prompt tokens, each continued by so many."""

    prompt_tokens: int
    new_tokens: int
    num_rows: int

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Return random prompts; every round has its own, so that no prefix is known already."""
        draw = random.Random(seed)  # noqa: S311 - not for secrets
        return [[draw.randrange(vocab_size) for _ in range(self.prompt_tokens)] for _ in range(self.num_rows)]


@dataclass
class Leg:
    """One side of the comparison: how to run it, and what was measured."""

    name: str
    run: Callable[[list[list[int]], int], list[list[int]]]
    seconds: list[float] = field(default_factory=list)
    gemm_tflops: list[float] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)

    def measure(self, prompts: list[list[int]], new_tokens: int, device: torch.device) -> None:
        """Run once; the outputs must have the right lengths."""
        self.gemm_tflops.append(gemm_tflops(device))
        start = time.perf_counter()
        self.outputs = self.run(prompts, new_tokens)
        self.seconds.append(time.perf_counter() - start)
        assert [len(output) for output in self.outputs] == [new_tokens] * len(prompts), f"{self.name}: wrong lengths"

    def summary(self, workload: Workload) -> dict[str, Any]:
        """Return what goes into the JSON."""
        median = statistics.median(self.seconds)
        return {
            "seconds": [round(s, 3) for s in self.seconds],
            "gemm_tflops": [round(t, 1) for t in self.gemm_tflops],
            "output_tokens_per_s": round(workload.num_rows * workload.new_tokens / median, 1),
            "rows_per_s": round(workload.num_rows / median, 2),
        }


def make_model(device: torch.device, is_tiny: bool) -> GPTJForCausalLM:
    """Make the weights where they are used, in their final dtype: 12.1 GB, drawn from N(0, 0.02)."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if is_tiny else torch.float16)
    try:
        with torch.device(device):
            return GPTJForCausalLM(GPTJConfig(**(TINY if is_tiny else SIX_B))).eval()  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(default)


def gemm_tflops(device: torch.device) -> float:
    """Return the best of a few large matrix products."""
    size = 8192 if device.type == "cuda" else 256
    a = torch.ones(size, size, dtype=torch.float16 if device.type == "cuda" else torch.float32, device=device)
    best = float("inf")
    for _ in range(8):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def engine_leg(engine: Engine) -> Leg:
    """Return our engine, given all prompts at once."""

    def run(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        requests = [
            Request(key=str(row), prompt_token_ids=prompt, sampling=sampling) for row, prompt in enumerate(prompts)
        ]
        return [list(result.token_ids) for result in engine.run(requests) if isinstance(result, Generated)]

    return Leg("engine", run)


def transformers_leg(model: GPTJForCausalLM, batch_size: int) -> Leg:
    """Return transformers' `generate` over the same weights: none is copied."""
    transformers: Any = importlib.import_module("transformers")
    shape = TINY if model.config.n_embd == TINY["n_embd"] else SIX_B
    with torch.device("meta"):
        peer = transformers.GPTJForCausalLM(transformers.GPTJConfig(**shape)).to(model.dtype)
    peer.load_state_dict(model.state_dict(), assign=True, strict=False)
    # What is no weight has no value yet.
    for _, module in peer.named_modules():
        if getattr(module, "embed_positions", None) is not None:
            fresh = transformers.models.gptj.modeling_gptj.create_sinusoidal_positions(
                shape["n_positions"], shape["rotary_dim"]
            )
            module.embed_positions = fresh.to(model.device)
    left = [name for name, x in [*peer.named_parameters(), *peer.named_buffers()] if x.device.type == "meta"]
    assert not left, f"transformers' model has values that were not given: {left[:5]}"
    peer = peer.eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        outputs: list[list[int]] = []
        for first in range(0, len(prompts), batch_size):
            input_ids = torch.tensor(prompts[first : first + batch_size], device=model.device)
            made = peer.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            outputs += made[:, input_ids.shape[1] :].tolist()
        return outputs

    return Leg(f"transformers, batch {batch_size}", run)


def measure(legs: list[Leg], workload: Workload, rounds: int, vocab_size: int, device: torch.device) -> dict[str, Any]:
    """Let the legs take turns over one workload, after a short run of each that is not counted."""
    legs = [Leg(leg.name, leg.run) for leg in legs]
    few = Workload(workload.prompt_tokens, min(4, workload.new_tokens), min(8, workload.num_rows))
    for leg in legs:
        leg.run(few.prompts(vocab_size, seed=-1), few.new_tokens)
    equal = 0
    for turn in range(rounds):
        prompts = workload.prompts(vocab_size, seed=turn)
        for leg in legs:
            leg.measure(prompts, workload.new_tokens, device)
        equal = sum(ours == theirs for ours, theirs in zip(legs[0].outputs, legs[-1].outputs, strict=True))
    ratio = None if len(legs) == 1 else statistics.median(legs[1].seconds) / statistics.median(legs[0].seconds)
    return {
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": workload.new_tokens,
        "rows": workload.num_rows,
        "goal_on_an_h200": GOALS.get((workload.prompt_tokens, workload.new_tokens)),
        "legs": {leg.name: leg.summary(workload) for leg in legs},
        "ratio_to_transformers": None if ratio is None else round(ratio, 2),
        "rows_equal_in_the_last_round": None if ratio is None else equal,
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return commit, hardware and versions."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    for name in ("triton", "transformers"):
        versions[name] = importlib.import_module(name).__version__ if importlib.util.find_spec(name) else None
    hardware: dict[str, Any] = {"device": str(device)}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        hardware = {"gpu": found.name, "gib": round(found.total_memory / 2**30, 1), "sms": found.multi_processor_count}
    return {
        "commit": git.stdout.strip() if git.returncode == 0 else None,
        "hardware": hardware,
        "versions": versions,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="transformers' batch size")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="check this script on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_6b.json")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        print("not measured: torch sees no GPU here; `--tiny` checks this script on a CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if arguments.tiny else "cuda")
    workloads = [Workload(*map(int, text.split("x"))) for text in arguments.workloads.split(",")]
    model = make_model(device, arguments.tiny)
    legs: list[Leg] = []
    if not arguments.no_transformers and importlib.util.find_spec("transformers"):
        legs.append(transformers_leg(model, arguments.batch))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    start = time.perf_counter()
    # What is joined is a copy; the peer keeps its own. That is 2.8 GB more, which the cache does not get.
    engine = Engine(model, take_weights=True)
    engine_s = time.perf_counter() - start
    report: dict[str, Any] = {
        **surroundings(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": TINY if arguments.tiny else SIX_B,
        "engine": {"seconds_to_build": round(engine_s, 2), **engine.facts} | vars(engine.bounds),
        "workloads": [],
    }
    for workload in workloads:
        result = measure([engine_leg(engine), *legs], workload, arguments.rounds, model.config.vocab_size, device)
        report["workloads"].append(result)
        print(json.dumps(result, indent=2), flush=True)
        if not arguments.tiny:  # after each: a run that is cut off leaves what it has
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
