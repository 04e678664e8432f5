from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.bench import news
from jobs.bench.rows import geometric, lognormal_texts, questions, ragged, shared_instruction
from jobs.bench.work import Work
from jobs.bench.workloads import W1, W2, W3, W4, W5, W6, W12

MADE = [W1, W2, W3, W4, W5, W6]


@pytest.mark.parametrize("workload", MADE, ids=lambda workload: workload.id)
def test_rounds_have_the_same_lengths_and_other_tokens(workload) -> None:
    first, again, other = workload.make(6, 0), workload.make(6, 0), workload.make(6, 1)
    assert first == again
    assert [len(row.prompt) for row in first.rows] == [len(row.prompt) for row in other.rows]
    assert [row.max_new_tokens for row in first.rows] == [row.max_new_tokens for row in other.rows]
    assert not any(a.prompt[:8] == b.prompt[:8] for a, b in zip(first.rows, other.rows, strict=True))


@pytest.mark.parametrize("workload", MADE, ids=lambda workload: workload.id)
def test_fewer_rows_are_the_first_of_more(workload) -> None:
    assert workload.make(3, 0).rows == workload.make(8, 0).rows[:3]


@pytest.mark.parametrize("workload", MADE, ids=lambda workload: workload.id)
def test_work_survives_its_way_to_a_worker(workload, tmp_path: Path) -> None:
    work = workload.make(5, 0)
    work.write(tmp_path / "work.json")
    assert Work.read(str(tmp_path / "work.json")) == work


def test_prompts_are_ragged_within_their_bounds() -> None:
    lengths = [len(row.prompt) for row in ragged(256, 0, shortest=8, longest=96, new_tokens=32).rows]
    assert (min(lengths), max(lengths)) == (8, 96)
    assert 45 < sum(lengths) / len(lengths) < 59


def test_outputs_are_geometric_with_their_mean_and_cap() -> None:
    numbers = [row.max_new_tokens for row in geometric(4000, 0, prompt_tokens=4, mean=32, cap=256).rows]
    assert 30 < sum(numbers) / len(numbers) < 34
    assert min(numbers) == 1 and max(numbers) <= 256


def test_texts_are_about_98_tokens_long() -> None:
    lengths = [len(row.prompt) for row in lognormal_texts(2000, 0, shortest=8, longest=256).rows]
    assert 94 < sum(lengths) / len(lengths) < 102
    assert min(lengths) >= 8 and max(lengths) == 256


def test_rows_share_the_instruction_and_nothing_behind_it() -> None:
    work = shared_instruction(8, 0, shared=600, own=32, num_labels=8)
    assert len({tuple(row.prompt[:600]) for row in work.rows}) == 1
    assert len({row.prompt[600] for row in work.rows}) > 1
    assert all(len(row.prompt) == 632 and len(set(row.labels)) == 8 for row in work.rows)


def test_a_questions_context_begins_behind_it() -> None:
    rows = questions(64, 0, question=16, shortest=64, longest=480).rows
    assert all(row.first_token == 16 and 80 <= len(row.prompt) <= 496 for row in rows)


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Callable[[int, int], Work]:
    if (missing := news.missing()) is not None:
        pytest.skip(missing)
    return news.news


def test_articles_stand_behind_a_shared_instruction_of_about_600_tokens(real: Callable[[int, int], Work]) -> None:
    work = real(32, 0)
    shared = next(i for i in range(700) if len({row.prompt[i] for row in work.rows}) > 1)
    assert 500 < shared <= 610
    assert all(len(label) == 1 for label in work.rows[0].labels) and len(work.rows[0].labels) == 8
    assert len({tuple(row.prompt) for row in work.rows}) == 32
    assert max(len(row.prompt) for row in work.rows) < 1024


def test_another_seed_takes_other_articles(real: Callable[[int, int], Work]) -> None:
    one, other = real(8, 0), real(8, 1)
    assert one.rows[0].prompt[:100] != other.rows[0].prompt[:100]


def test_no_queue_of_w12_has_a_prompt_of_another_one_or_of_another_round() -> None:
    works = [W12.make(count, seed) for count in (64, 256) for seed in (0, 1, 1000)]
    prompts = [tuple(row.prompt) for work in works for row in work.rows]
    assert len(set(prompts)) == len(prompts)
