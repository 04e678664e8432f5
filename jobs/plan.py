"""`gptj-batch plan`: what a job will read, cut, refuse, need and take, before anything runs."""

import json
import time
from dataclasses import dataclass
from typing import Any

from gptj_batch.results import Failed
from pipelines.config import Job
from pipelines.forecast import Forecast, forecast
from pipelines.prepare import Run, prepare
from pipelines.progress import duration
from pipelines.replica import start_here

GIB = 1 << 30
# Shares of what a matrix product reaches that the engine was seen to reach (jobs/bench), and of a GPU's data sheet.
CPU_SHARE, GPU_SHARE = 0.75, 0.4
A100_OPERATIONS_PER_S = 312e12
MEASURED_REQUESTS = 64
DEVICE_MEMORY_GIB = (16, 24, 40, 80)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a run will take on one replica, and what that was found from."""

    seconds: float
    source: str


def run_plan(job: Job, *, measure: bool = False, as_json: bool = False) -> int:
    """Print the plan of a job and return 0. Raises what `prepare` raises."""
    run = prepare(job)
    found = forecast(run)
    dtype, device = _dtype_and_device(job)
    pace = _measured(run, found) if measure else _estimated(found, dtype, device)
    gpu_hours = found.operations / (A100_OPERATIONS_PER_S * GPU_SHARE) / 3600
    if as_json:
        print(json.dumps(_facts(found, dtype, pace, gpu_hours), indent=2))
    else:
        print("\n".join([*_rows(run, found), *_memory(found, dtype), *_time(job, pace, gpu_hours)]))
    return 0


def _rows(run: Run, found: Forecast) -> list[str]:
    added = [*(run.job.output.prefix + name for name in run.task.adds.names), run.error_column]
    lines = [
        f"{found.rows:,} rows of {found.files:,} files, in {found.units:,} units; {found.sampled:,} rows were read",
        f"columns added: {', '.join(added)}",
        f"prompts: {found.percentile(0.5):,} tokens in the middle, 95 % within {found.percentile(0.95):,}, longest "
        f"{found.percentile(1.0):,}, context {run.model.n_positions:,}; {found.prompt_tokens:,.0f} tokens in all",
    ]
    most = max((count for _, count in found.histogram()), default=1)
    lines += [f"  {name:>14} {'#' * round(40 * count / most):<40} {count:,}" for name, count in found.histogram()]
    if found.new_tokens:
        lines.append(f"generated: at most {found.new_tokens:,.0f} tokens")
    lines.append(f"cut to fit: about {found.scaled(found.cut):,.0f} rows (task.truncate)")
    lines.append(f"refused: about {found.scaled(sum(found.errors.values())):,.0f} rows")
    lines += [f"  {count:,} of the sample: {reason}" for reason, count in found.errors.items()]
    lines += [f"skipped, cannot be read: {file}" for file in run.inputs.skipped]
    return lines


def _memory(found: Forecast, dtype: str) -> list[str]:
    weights, a_token = found.sizes.weight_bytes(dtype), found.sizes.cache_bytes_per_token(dtype)
    lines = [
        f"a replica: {found.sizes.parameters:,} parameters, {_size(weights)} in {dtype}; KV cache "
        f"{a_token / 1024:,.0f} KiB a token"
    ]
    longest = max((cost.longest for cost in found.costs), default=0)
    for memory in DEVICE_MEMORY_GIB:
        left = 0.9 * memory * GIB - weights
        if left <= 0:
            lines.append(f"  {memory} GiB: too small for the weights")
        elif found.new_tokens and longest:
            tokens = int(left // a_token)
            lines.append(
                f"  {memory} GiB (90 % used): {tokens:,} tokens of cache, {tokens // longest:,} longest rows at once"
            )
        else:
            lines.append(f"  {memory} GiB (90 % used): {left / GIB:,.1f} GiB beside the weights")
    return lines


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / (1 << 20):,.1f} MiB"


def _time(job: Job, pace: Pace, gpu_hours: float) -> list[str]:
    replicas = job.replicas.min
    lines = [
        f"time: about {duration(pace.seconds / replicas)} on {replicas} replica{'s' * (replicas > 1)} ({pace.source})"
    ]
    lines.append(
        f"on GPUs: about {gpu_hours:,.2f} GPU-hours of an A100, if {GPU_SHARE:.0%} of its data sheet's 312 TFLOP/s are "
        "reached: an assumption, not a measurement; what prompts share is not subtracted"
    )
    return lines


def _facts(found: Forecast, dtype: str, pace: Pace, gpu_hours: float) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "files": found.files,
        "units": found.units,
        "sampled_rows": found.sampled,
        "prompt_tokens": round(found.prompt_tokens),
        "prompt_tokens_median": found.percentile(0.5),
        "prompt_tokens_p95": found.percentile(0.95),
        "prompt_tokens_max": found.percentile(1.0),
        "histogram": dict(found.histogram()),
        "max_new_tokens": round(found.new_tokens),
        "rows_cut": round(found.scaled(found.cut)),
        "rows_refused": round(found.scaled(sum(found.errors.values()))),
        "refused_in_sample": found.errors,
        "parameters": found.sizes.parameters,
        "dtype": dtype,
        "weight_bytes": found.sizes.weight_bytes(dtype),
        "cache_bytes_per_token": found.sizes.cache_bytes_per_token(dtype),
        "seconds_on_one_replica": round(pace.seconds, 1),
        "time_from": pace.source,
        "a100_gpu_hours_assumed": round(gpu_hours, 4),
    }


def _dtype_and_device(job: Job) -> tuple[str, str]:
    """Return what a replica on this machine would compute in, and on what."""
    import torch

    from gptj_batch.backends.native import resolve_dtype

    device = "cuda" if torch.cuda.is_available() and job.replicas.gpus_each != 0 else "cpu"
    return resolve_dtype(job.model.dtype, device), device


def _estimated(found: Forecast, dtype: str, device: str) -> Pace:
    """Time a matrix product here, which takes a second, and assume that the engine reaches a share of that."""
    import torch

    kind = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)
    size = 2048 if device == "cpu" else 8192
    a = torch.ones(size, size, dtype=kind, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    speed = 2 * size**3 / best
    share = CPU_SHARE if device == "cpu" else GPU_SHARE
    source = (
        f"a matrix product here reaches {speed / 1e9:,.0f} GFLOP/s, and {share:.0%} of that is assumed; --measure runs "
        "some rows"
    )
    return Pace(seconds=found.operations / (speed * share), source=source)


def _measured(run: Run, found: Forecast) -> Pace:
    """Start the model in this process and time some of the sample; loading is not counted."""
    requests = list(found.requests[:MEASURED_REQUESTS])
    if not requests:
        return Pace(seconds=0.0, source="no row of the sample can be done")
    backend = start_here(run)
    try:
        start = time.perf_counter()
        results = backend.run(requests)
        seconds = time.perf_counter() - start
    finally:
        backend.close()
    failed = sum(isinstance(result, Failed) for result in results)
    per_request = seconds / len(requests) * len(found.requests) / max(found.sampled, 1)
    source = f"{len(requests)} requests took {duration(seconds)} here{f', {failed} failed' if failed else ''}"
    return Pace(seconds=per_request * found.rows, source=source)
