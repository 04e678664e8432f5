"""The benchmark suite: our engine and its peers on the same work, in turn, on this machine.

    python -m jobs.bench.suite [--only W1,W3] [--rounds 3] [--peers ours,transformers,vllm] [--quick]

Every engine lives in a process of its own and they take turns, round after round; before each leg a matrix product
shows how fast the machine is at that moment, since it may be shared. The figures are medians. Loading is timed apart.
Prints a table, and writes JSON and a plot to jobs/bench/results/.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from gptj_batch.backends.native import resolve_dtype
from jobs.bench import table
from jobs.bench.fleet import Fleet
from jobs.bench.legs import measure, pairs
from jobs.bench.plan import EngineName, Plan, Workload
from jobs.bench.plot import bars, draw
from jobs.bench.report import report
from jobs.bench.surroundings import surroundings, write_results
from jobs.bench.workloads import WORKLOADS

QUICK_SHARE = 1 / 16


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    share = QUICK_SHARE if arguments.quick else arguments.share
    config = {"rounds": arguments.rounds, "share_of_rows": share, "peers": arguments.peers, "dtype": arguments.dtype}
    whole = {**surroundings(arguments.threads), "config": config, "minutes": 0.0, "workloads": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gptj-bench-") as folder:
        plan = Plan(rounds=arguments.rounds, share=share, folder=Path(folder))
        fleet = Fleet(threads=arguments.threads, dtype=arguments.dtype, folder=Path(folder))
        for one in run(chosen(arguments.only, arguments.peers), fleet, plan):
            whole["workloads"].append(one)
            whole["minutes"] = round((time.monotonic() - began) / 60, 1)
            file = write_results(
                whole, arguments.name
            )  # after each: what is measured stays, whatever happens to the rest
    tell("\n" + "\n".join(table.lines(whole["workloads"])))
    tell(f"\n{whole['minutes']} minutes; written to {file} and {_plot(whole, file.with_suffix('.png'))}")
    if not all(check["holds"] for one in whole["workloads"] for check in one["checks"] if check["must"]):
        raise SystemExit(1)


def run(workloads: tuple[Workload, ...], fleet: Fleet, plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure one workload after the other; workers that none of the rest uses are ended."""
    try:
        for index, workload in enumerate(workloads):
            fleet.keep_only(pairs(workloads[index:]))
            yield report(workload, measure(workload, fleet, plan, tell))
    finally:
        fleet.close()


def chosen(only: str, peers: str) -> tuple[Workload, ...]:
    """Return the workloads named (all, where nothing is), with the legs of the engines named."""
    names, engines = set(filter(None, only.split(","))), set(peers.split(","))
    unknown = names - {workload.id for workload in WORKLOADS}
    if unknown:
        raise SystemExit(f"--only: no workload {', '.join(sorted(unknown))}; there are {[w.id for w in WORKLOADS]}")
    strangers = engines - set(get_args(EngineName))
    if strangers:
        raise SystemExit(f"--peers: no engine {', '.join(sorted(strangers))}; there are {list(get_args(EngineName))}")
    return tuple(
        replace(workload, legs=tuple(leg for leg in workload.legs if leg.engine in engines))
        for workload in WORKLOADS
        if not names or workload.id in names
    )


def _plot(whole: dict[str, Any], picture: Path) -> str:
    """Draw the plot; return where it is, or why there is none."""
    hardware = whole["hardware"]
    if not bars(whole["workloads"]):
        return "no plot: nothing was compared with a peer"
    try:
        draw(whole["workloads"], picture, f"{hardware['cpu']}, threads each: {hardware['threads_each']}")
    except ImportError as error:
        return f"no plot: {error}"
    return str(picture)


def tell(line: str) -> None:
    """Print at once: a leg takes minutes."""
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="workloads, separated by commas; all where it is empty")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="ours,transformers,vllm", help="engines that take part")
    parser.add_argument("--threads", type=int, default=2, help="for every engine")
    parser.add_argument(
        "--dtype",
        default=resolve_dtype("auto", "cpu"),
        help="where a leg names none; as a job chooses it: a CPU that has no bfloat16 is no measure of it",
    )
    parser.add_argument("--share", type=float, default=1.0, help="part of each workload's rows")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the rows: to see that everything runs")
    parser.add_argument("--name", default="suite", help="of the files in jobs/bench/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
