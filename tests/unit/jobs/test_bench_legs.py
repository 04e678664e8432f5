from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.legs import Leg, Measured, measure
from jobs.bench.plan import LegSpec, Plan, Workload
from jobs.bench.protocol import WorkerError
from jobs.bench.report import report
from jobs.bench.table import lines
from jobs.bench.work import Work, WorkRow

Speed = Callable[[Work, dict[str, Any]], float]


def prompts(count: int, seed: int) -> Work:
    return Work(kind="generate", rows=[WorkRow(prompt=[seed, index], max_new_tokens=2) for index in range(count)])


class InstantWorker:
    """Says how long it would have taken, at so many seconds a row, and keeps a diary."""

    def __init__(self, name: str, diary: list[str], seconds: Speed, width: int = 2) -> None:
        self._name, self._diary, self._seconds, self._width = name, diary, seconds, width

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        work = Work.read(message["work"])
        outputs = {"outputs": [[1.0] * self._width for _ in work.rows]} if message["want_outputs"] else {}
        if outputs:
            self._diary.append(self._name)
        seconds = self._seconds(work, message["options"])
        run = {"seconds": seconds, "gemm_gflops": 100.0, "cores_share": 0.9, "rss_mib": [1.0, 2.0], "counters": {}}
        return {**run, **outputs}


class InstantFleet:
    """Workers by the name of their leg; a leg without one cannot start."""

    def __init__(self, workers: dict[str, InstantWorker]) -> None:
        self._workers = workers

    def get(self, workload: Workload, leg: LegSpec) -> tuple[Any, dict[str, Any]]:
        if leg.name not in self._workers:
            raise WorkerError("it is not installed")
        return self._workers[leg.name], {"load_s": 1.0}


def leg(name: str, **settings: Any) -> LegSpec:
    return LegSpec(name=name, engine="ours" if name.startswith("ours") else "vllm", **settings)


def workload(*legs: LegSpec, **settings: Any) -> Workload:
    values: dict[str, Any] = {"unit": "rows/s", "num_rows": 8, "goals": {}, "make": prompts} | settings
    return Workload(id="T", title="a test", legs=legs, **values)


def at(seconds_per_row: float) -> Speed:
    return lambda work, options: seconds_per_row * len(work.rows)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(rounds=3, share=1.0, folder=tmp_path)


def run(work: Workload, workers: dict[str, InstantWorker], plan: Plan) -> Measured:
    return measure(work, InstantFleet(workers), plan, lambda line: None)


def two(ours: float, theirs: float, diary: list[str] | None = None) -> dict[str, InstantWorker]:
    diary = [] if diary is None else diary
    return {"ours": InstantWorker("ours", diary, at(ours)), "peer": InstantWorker("peer", diary, at(theirs))}


# Measuring


def test_legs_take_turns_round_after_round(plan: Plan) -> None:
    diary: list[str] = []
    run(workload(leg("ours"), leg("peer")), two(1, 1, diary), plan)
    assert diary == ["ours", "peer"] * 3


def test_the_rate_is_the_median_of_the_rounds(plan: Plan) -> None:
    durations = iter([0.0, 0.0, 1.0, 2.0, 100.0])  # two to warm up
    worker = InstantWorker("ours", [], lambda work, options: next(durations))
    (measured,) = run(workload(leg("ours")), {"ours": worker}, plan).legs
    assert measured.rates == [8.0, 4.0, 0.08]
    assert measured.rate == 4.0


def test_a_leg_that_cannot_start_is_skipped_with_its_reason_and_the_others_run(plan: Plan) -> None:
    measured = run(workload(leg("ours"), leg("peer")), {"ours": two(1, 1)["ours"]}, plan)
    assert [one.spec.name for one in measured.legs] == ["ours"]
    assert [(one.spec.name, one.reason) for one in measured.skipped] == [("peer", "it is not installed")]


def test_a_leg_whose_answers_have_the_wrong_length_is_skipped(plan: Plan) -> None:
    workers = two(1, 1) | {"peer": InstantWorker("peer", [], at(1), width=3)}
    measured = run(workload(leg("ours"), leg("peer")), workers, plan)
    assert "wrong output: row 0 has 3 numbers, not 2" in measured.skipped[0].reason


def test_the_best_batch_size_is_kept(plan: Plan) -> None:
    cost = {1: 5.0, 16: 1.0, 64: 3.0}
    worker = InstantWorker("peer", [], lambda work, options: cost[options["batch_size"]] * len(work.rows))
    (measured,) = run(workload(leg("peer", batch_sizes=(1, 16, 64))), {"peer": worker}, plan).legs
    assert measured.spec.options == {"batch_size": 16}
    assert measured.probe == {1: 0.2, 16: 1.0, 64: pytest.approx(1 / 3)}


def test_a_slow_peer_may_get_fewer_rows_and_a_fast_one_repeats_them(plan: Plan) -> None:
    workers = two(1, 1)
    measured = run(workload(leg("ours", repeats=3), leg("peer", max_rows=4)), workers, plan)
    assert [len(one.work[0].rows) for one in measured.legs] == [8, 4]
    assert [one.runs[0]["seconds"] for one in measured.legs] == [24, 4]
    assert [one.rate for one in measured.legs] == [1.0, 1.0]


def test_a_workload_that_lacks_its_material_is_skipped_whole(plan: Plan) -> None:
    measured = run(workload(leg("ours"), missing=lambda: "no articles here"), two(1, 1), plan)
    assert (measured.legs, measured.skipped[0].reason) == ([], "no articles here")


# Reporting


def ratios(work: Workload, measured: Measured) -> list[tuple[str, float, float | None, bool | None]]:
    return [(r["to"], r["ratio"], r["goal"], r["met"]) for r in report(work, measured)["ratios"]]


@pytest.mark.parametrize(("theirs", "met"), [(2.0, True), (1.0, False)])
def test_a_ratio_is_held_against_its_goal(plan: Plan, theirs: float, met: bool) -> None:
    work = workload(leg("ours"), leg("peer", counts_for="vllm"), goals={"vllm": 1.5})
    assert ratios(work, run(work, two(1, theirs), plan)) == [("peer", theirs, 1.5, met)]


def test_the_goal_stands_with_every_leg_that_counts_for_it(plan: Plan) -> None:
    tuned, beside = leg("peer, tuned", counts_for="vllm"), leg("beside")
    work = workload(leg("ours"), leg("peer", counts_for="vllm"), tuned, beside, goals={"vllm": 3.0})
    workers = two(1, 4) | {name: InstantWorker(name, [], at(2)) for name in ("peer, tuned", "beside")}
    assert ratios(work, run(work, workers, plan)) == [
        ("peer", 4.0, 3.0, True),
        ("peer, tuned", 2.0, 3.0, False),
        ("beside", 2.0, None, None),
    ]


def test_without_the_first_leg_nothing_is_compared(plan: Plan) -> None:
    work = workload(leg("ours"), leg("peer", counts_for="vllm"), goals={"vllm": 1.5})
    assert ratios(work, run(work, {"peer": two(1, 1)["peer"]}, plan)) == []


@pytest.mark.parametrize(("slow", "holds"), [(1.04, True), (1.1, False)])
def test_rates_that_should_be_flat_are_checked(plan: Plan, slow: float, holds: bool) -> None:
    work = workload(leg("ours"), leg("ours, more"), max_spread=0.05)
    workers = {"ours": two(1, 1)["ours"], "ours, more": InstantWorker("ours, more", [], at(slow))}
    facts = report(work, run(work, workers, plan))
    assert [check["holds"] for check in facts["checks"]] == [holds, True]
    assert facts["ratios"] == []


def test_memory_that_should_be_flat_is_checked(plan: Plan) -> None:
    work = workload(leg("ours"), leg("peer"), max_spread=0.05)
    measured = run(work, two(1, 1), plan)
    measured.legs[1].runs[-1]["rss_mib"] = [2.0, 2.2]
    assert [check["holds"] for check in report(work, measured)["checks"]] == [True, False]


def test_answers_that_must_be_equal_fail_where_one_is_not(plan: Plan) -> None:
    work = workload(leg("ours"), leg("peer"), must_equal=True)
    measured = run(work, two(1, 1), plan)
    assert report(work, measured)["checks"][0]["holds"]
    measured.legs[1].outputs[-1][3] = [1.0, 2.0]
    check = report(work, measured)["checks"][0]
    assert (check["holds"], check["must"]) == (False, True)
    assert "7 of 8 rows" in check["what"]


def test_tokens_computed_twice_are_counted_where_the_engine_counts(plan: Plan) -> None:
    work = workload(leg("ours"))
    measured = run(work, two(1, 1), plan)
    measured.legs[0].runs[-1]["counters"] = {"computed_tokens": 8 * 3 + 5}
    assert report(work, measured)["legs"][0]["recomputed_tokens"] == 5


def test_tokens_found_in_the_cache_are_not_missing_from_what_is_computed(plan: Plan) -> None:
    work = workload(leg("ours"))
    measured = run(work, two(1, 1), plan)
    measured.legs[0].runs[-1]["counters"] = {"computed_tokens": 8 * 3 - 2, "cached_prompt_tokens": 2}
    assert report(work, measured)["legs"][0]["recomputed_tokens"] == 0


def test_the_table_has_a_line_for_every_leg_and_every_reason(plan: Plan) -> None:
    work = workload(leg("ours"), leg("peer", counts_for="vllm"), leg("gone"), goals={"vllm": 1.5})
    text = "\n".join(lines([report(work, run(work, two(1, 2), plan))]))
    assert "2.00x  >= 1.5  met" in text
    assert "gone" in text and "skipped: it is not installed" in text


def test_a_legs_spec_is_not_changed_for_the_next_run(plan: Plan) -> None:
    spec = leg("peer", batch_sizes=(1,))
    work = workload(spec)
    run(work, {"peer": two(1, 1)["peer"]}, plan)
    assert replace(work).legs[0].options == {} and isinstance(Leg(spec, None, {}).probe, dict)
