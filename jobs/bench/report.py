"""The report: what was measured of one workload, as it goes into the JSON and into the table."""

import statistics
from typing import Any

from jobs.bench.checks import compare
from jobs.bench.legs import Leg, Measured
from jobs.bench.plan import Workload
from jobs.bench.roofline import num_positions, roofline_share

Report = dict[str, Any]


def report(workload: Workload, measured: Measured) -> Report:
    """Return everything about a workload."""
    subject = _subject(workload, measured.legs)
    facts: Report = {
        "id": workload.id,
        "title": workload.title,
        "unit": workload.unit,
        # Legs of different lengths end with different rows.
        "legs": [_leg(leg, None if workload.max_spread else subject) for leg in measured.legs],
        "skipped": [{"name": skipped.spec.name, "reason": skipped.reason} for skipped in measured.skipped],
        "ratios": [] if subject is None or workload.max_spread else _ratios(workload, measured.legs, subject),
    }
    return {**facts, "checks": _checks(workload, facts["legs"])}


def _subject(workload: Workload, legs: list[Leg]) -> Leg | None:
    """Return the leg that the others are compared with, if it could be measured."""
    return next((leg for leg in legs if leg.spec.engine == "ours" and leg.spec.name == workload.legs[0].name), None)


def _leg(leg: Leg, subject: Leg | None) -> Report:
    seconds = [run["seconds"] for run in leg.runs]
    gemm = [run["gemm_gflops"] for run in leg.runs]
    facts: Report = {
        "name": leg.spec.name,
        "engine": leg.spec.engine,
        "options": leg.spec.options,
        "rows": len(leg.work[0].rows),
        "prompt_tokens": leg.work[0].num_prompt_tokens,
        "new_tokens": leg.work[0].num_new_tokens,
        "rate": round(leg.rate, 2),
        "rates": [round(rate, 2) for rate in leg.rates],
        "seconds": [round(value, 3) for value in seconds],
        "gemm_gflops": [round(value) for value in gemm],
        "cores_share": [round(run["cores_share"], 2) for run in leg.runs],
        "rss_mib": [run["rss_mib"] for run in leg.runs],
        "counters": leg.runs[-1]["counters"],
        "loaded": leg.loaded,
        "batch_sizes_tried": {str(size): round(rate, 2) for size, rate in leg.probe.items()},
    }
    if leg.work[0].kind == "generate":
        shares = [
            roofline_share(work, work.num_new_tokens / rate, gflops)
            for work, rate, gflops in zip(leg.work, leg.rates, gemm, strict=True)
        ]
        facts["roofline_share"] = round(statistics.median(shares), 3)
        facts["recomputed_tokens"] = _recomputed_tokens(leg)
    if subject is not None and leg is not subject:
        facts["against_first"] = compare(leg.work[0].kind, subject.outputs[-1], leg.outputs[-1])
    return facts


def _recomputed_tokens(leg: Leg) -> int | None:
    """Return how many tokens an engine that counts them computed more often than once; None for one that does not."""
    counters = leg.runs[-1]["counters"]
    if "computed_tokens" not in counters:
        return None
    # Prompts of a round may begin alike by chance; what one of them found computed was not computed for it.
    found = counters.get("cached_prompt_tokens", 0)
    return int(counters["computed_tokens"] + found - num_positions(leg.work[-1]))


def _ratios(workload: Workload, legs: list[Leg], subject: Leg) -> list[Report]:
    """Return the first leg's rate over each other's, and the goal where a leg counts for one."""
    ratios = []
    for leg in legs:
        if leg is subject:
            continue
        goal = workload.goals.get(leg.spec.counts_for or "")
        ratio = subject.rate / leg.rate
        is_met = None if goal is None else ratio >= goal
        ratios.append({"to": leg.spec.name, "ratio": round(ratio, 3), "goal": goal, "met": is_met})
    return ratios


def _checks(workload: Workload, legs: list[Report]) -> list[Report]:
    """Return what should hold of a workload's answers and rates, whether it does, and whether it must."""
    compared = [(leg["name"], leg["against_first"]) for leg in legs if "against_first" in leg]
    checks: list[Report] = []
    if workload.must_equal:
        checks += [
            {
                "what": f"{facts['equal_rows']} of {facts['rows']} rows of {name} equal ours, token for token",
                "holds": facts["equal_rows"] == facts["rows"],
                "must": True,
            }
            for name, facts in compared
        ]
    if workload.min_agreement is not None:
        checks += [
            {
                "what": f"{facts['same_choice']:.2%} of the labels as in {name}, at least {workload.min_agreement:.0%}",
                "holds": facts["same_choice"] >= workload.min_agreement,
                "must": False,
            }
            for name, facts in compared
        ]
    if workload.max_spread is not None and legs:
        rates = [leg["rate"] for leg in legs]
        memory = [after for leg in legs for _, after in leg["rss_mib"]]
        checks += [
            _flat("rates", min(rates), max(rates), workload.max_spread),
            _flat("resident MiB", min(memory), max(memory), workload.max_spread),
        ]
    return checks


def _flat(what: str, least: float, most: float, max_spread: float) -> Report:
    spread = 1 - least / most
    return {
        "what": f"{what} of {least:.0f} to {most:.0f} differ by {spread:.1%}, at most {max_spread:.0%}",
        "holds": spread <= max_spread,
        "must": False,
    }
