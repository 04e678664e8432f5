"""The report of a pipelines' workload, in the form of `jobs.bench.report`: for the JSON and the table."""

import statistics
from typing import Any

import pyarrow as pa

from jobs.bench.pipeline_plan import PipelineWorkload
from jobs.bench.pipeline_rounds import Measured

Report = dict[str, Any]


def report(workload: PipelineWorkload, measured: list[Measured]) -> Report:
    """Return everything about a workload; the first leg is compared with the others."""
    done = [one for one in measured if one.trials]
    subject = measured[0] if measured[0].trials else None
    return {
        "id": workload.id,
        "title": workload.title,
        "unit": "rows/s",
        "clock": workload.clock,
        "legs": [_leg(workload, one, subject) for one in done],
        "skipped": [{"name": one.leg.name, "reason": one.problem} for one in measured if one.problem is not None],
        "ratios": [] if subject is None else [_ratio(workload, one, subject) for one in done if one is not subject],
        "checks": [],
    }


def _rate(workload: PipelineWorkload, one: Measured) -> float:
    return statistics.median(trial.rate(workload.clock) for trial in one.trials)


def _leg(workload: PipelineWorkload, one: Measured, subject: Measured | None) -> Report:
    facts: Report = {
        "name": one.leg.name,
        "engine": one.leg.program,
        "options": one.leg.settings,
        "rows": one.num_rows,
        "rate": round(_rate(workload, one), 3),
        "rates": [round(trial.rate(workload.clock), 3) for trial in one.trials],
        "seconds": [round(trial.start_s + trial.steady_s, 2) for trial in one.trials],
        "gemm_gflops": [round(trial.gemm_gflops) for trial in one.trials],
        "cores_share": [round(trial.cores_share, 2) for trial in one.trials],
        "loaded": {"load_s": round(statistics.median(trial.start_s for trial in one.trials), 2)},
        "trials": [trial.facts() for trial in one.trials],
        "batch_sizes_tried": {str(size): round(rate, 2) for size, rate in one.tried.items()},
    }
    if subject is not None and one is not subject and one.output is not None and subject.output is not None:
        facts["against_first"] = agreement(subject.output, one.output)
    return facts


def agreement(ours: pa.Table, theirs: pa.Table) -> dict[str, int]:
    """Return in how many of the rows that both did the texts are the same, and whether the prompts had as many tokens.

    In bfloat16 and on random weights texts part at near ties.
    """
    rows = [{row["id"]: row for row in table.to_pylist()} for table in (ours, theirs)]
    both = [(rows[0][key], rows[1][key]) for key in rows[0] if key in rows[1]]
    return {
        "rows": len(both),
        "equal_rows": sum(a["generated_text"] == b["generated_text"] for a, b in both),
        "equal_prompt_tokens": sum(a["num_prompt_tokens"] == b["num_prompt_tokens"] for a, b in both),
    }


def _ratio(workload: PipelineWorkload, one: Measured, subject: Measured) -> Report:
    goal = workload.goals.get(one.leg.counts_for or "")
    ratio = _rate(workload, subject) / _rate(workload, one)
    return {
        "to": one.leg.name,
        "ratio": round(ratio, 3),
        "goal": goal,
        "met": None if goal is None else ratio >= goal,
    }
