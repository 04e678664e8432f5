"""The report: what was measured of one workload, as it goes into the JSON and into the table."""

import statistics
from typing import Any

from jobs.bench.checks import compare
from jobs.bench.legs import Leg, Skipped
from jobs.bench.roofline import roofline_share
from jobs.bench.workloads import Workload

Report = dict[str, Any]


def report(workload: Workload, legs: list[Leg], skipped: list[Skipped]) -> Report:
    """Return everything about a workload."""
    ours = next((leg for leg in legs if leg.spec.name == "ours"), None)
    return {
        "id": workload.id,
        "title": workload.title,
        "unit": workload.unit,
        "legs": [_leg(workload, leg, ours) for leg in legs],
        "skipped": [{"name": leg.spec.name, "reason": leg.reason} for leg in skipped],
        "ratios": _ratios(workload, legs, ours),
    }


def _leg(workload: Workload, leg: Leg, ours: Leg | None) -> Report:
    seconds = [run["seconds"] for run in leg.runs]
    gemm = [run["gemm_gflops"] for run in leg.runs]
    facts: Report = {
        "name": leg.spec.name,
        "engine": leg.spec.engine,
        "options": leg.spec.options,
        "rows": len(leg.work[0].rows),
        "prompt_tokens": leg.work[0].num_prompt_tokens,
        "new_tokens": leg.work[0].num_new_tokens,
        "rate": round(leg.rate(workload.unit), 2),
        "rates": [round(rate, 2) for rate in leg.rates(workload.unit)],
        "seconds": [round(value, 3) for value in seconds],
        "gemm_gflops": [round(value) for value in gemm],
        "rss_mib": [run["rss_mib"] for run in leg.runs],
        "counters": [run["counters"] for run in leg.runs],
        "loaded": leg.loaded,
        "batch_sizes_tried": {str(size): round(rate, 2) for size, rate in leg.probe.items()},
    }
    kind = leg.work[0].kind
    if kind == "generate":
        shares = [roofline_share(*one) for one in zip(leg.work, seconds, gemm, strict=True)]
        facts["roofline_share"] = round(statistics.median(shares), 3)
    if ours is not None and leg is not ours:
        facts["against_ours"] = compare(kind, ours.outputs[-1], leg.outputs[-1])
    return facts


def _ratios(workload: Workload, legs: list[Leg], ours: Leg | None) -> list[Report]:
    """Return our rate over each other leg's; the goal stands with the leg that decides it."""
    if ours is None:
        return []
    ratios = []
    for leg in legs:
        if leg is ours:
            continue
        ratio = ours.rate(workload.unit) / leg.rate(workload.unit)
        goal = workload.goals.get(leg.spec.counts_for or "")
        ratios.append({"to": leg.spec.name, "ratio": round(ratio, 3), "goal": goal, "met": goal and ratio >= goal})
    return ratios
