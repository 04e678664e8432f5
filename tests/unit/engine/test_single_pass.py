import pytest
import torch

from gptj_batch import Embedded, EmbedRequest, Failed, Labelled, LabelRequest, Scored, ScoreRequest
from gptj_batch.engine.row import Row
from gptj_batch.engine.single_pass import SinglePass
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.requests import HeadRequest

from .single_passes import single_pass

LABELS = ((5, 6, 7), (5, 6, 8, 9), (4,), (5,), (5, 6, 7), (2, 6))


def make_row(prompt: list[int], labels: tuple[tuple[int, ...], ...] = LABELS, uid: int = 0) -> Row:
    return Row(uid, LabelRequest(key=str(uid), prompt_token_ids=prompt, label_token_ids=labels))


@torch.no_grad()
def score_alone(model: GPTJForCausalLM, prompt: list[int], label: tuple[int, ...]) -> float:
    logprobs = model(torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(label))


def scores_of(result: Labelled | Failed) -> tuple[float, ...]:
    assert isinstance(result, Labelled)
    return result.label_logprobs


def test_one_token_labels_add_no_token() -> None:
    assert make_row([1, 2, 3], ((4,), (5,), (6,))).num_tokens == 3


def test_labels_in_a_tree_score_as_each_does_alone(model: GPTJForCausalLM) -> None:
    prompts = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]
    scorer = single_pass(model, max_step_tokens=100)
    for uid, prompt in enumerate(prompts):
        scorer.add(make_row(prompt, uid=uid))
    results = {row.uid: scores_of(result) for row, result in scorer.step()}
    assert not scorer.has_unfinished
    for uid, prompt in enumerate(prompts):
        assert results[uid] == pytest.approx([score_alone(model, prompt, label) for label in LABELS], abs=1e-5)


def test_a_step_keeps_to_its_budget_shortest_first_and_a_longer_row_goes_alone(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=8)
    for uid, length in enumerate([20, 3, 5, 4]):
        scorer.add(make_row([2] * length, ((1,),), uid))
    assert [[row.uid for row, _ in scorer.step()] for _ in range(4)] == [[1, 3], [2], [0], []]


def test_rows_that_come_later_do_not_overtake_for_ever(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=4)
    scorer.add(make_row([2] * 9, ((1,),), 0))
    scorer.add(make_row([2] * 3, ((1,),), 1))
    assert [row.uid for row, _ in scorer.step()] == [1]
    scorer.add(make_row([2] * 3, ((1,),), 2))
    assert [row.uid for row, _ in scorer.step()] == [0]


def test_a_row_can_be_let_go(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=4)
    rows = [make_row([2] * 3, ((1,),), uid) for uid in range(3)]
    scorer.add(rows[0])
    scorer.add(rows[1])
    assert len(scorer.step()) == 1
    scorer.add(rows[2])
    for row in list(scorer):
        scorer.release(row)
    assert not scorer.has_unfinished


def test_a_row_that_is_not_finite_fails_alone(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=100)
    scorer.add(make_row([3, 4, 5], uid=0))
    scorer.add(make_row([3, 60, 5], uid=1))
    with torch.no_grad():
        kept = model.transformer.wte.weight[60].clone()
        model.transformer.wte.weight[60] = torch.nan
        results = {row.uid: result for row, result in scorer.step()}
        model.transformer.wte.weight[60] = kept
    assert isinstance(results[0], Labelled)
    assert isinstance(results[1], Failed)
    assert "not finite" in results[1].error


# Shared beginnings

BEGINNING = list(range(2, 32))


def answers(scorer: SinglePass, rows: list[Row]) -> dict[int, Labelled | Failed]:
    for row in rows:
        scorer.add(row)
    found: dict[int, Labelled | Failed] = {}
    while scorer.has_unfinished:
        found |= {row.uid: result for row, result in scorer.step()}
    return found


@pytest.mark.parametrize("max_step_tokens", [1, 45, 1000])
@pytest.mark.parametrize("max_prefix_bytes", [0, None])
def test_rows_score_alike_whether_their_beginning_is_shared_held_or_neither(
    model: GPTJForCausalLM, max_step_tokens: int, max_prefix_bytes: int | None
) -> None:
    tails = [[40], [40, 41], [], [42] * 9, [43], [44, 45, 46]]
    others = [[*reversed(BEGINNING), tail] for tail in range(5)] + [[7], [8] * 20]
    prompts = [BEGINNING + tail for tail in tails] + others
    scorer = single_pass(model, max_step_tokens, max_prefix_bytes)
    results = answers(scorer, [make_row(prompt, uid=uid) for uid, prompt in enumerate(prompts)])
    assert sorted(results) == list(range(len(prompts)))
    for uid, prompt in enumerate(prompts):
        alone = [score_alone(model, prompt, label) for label in LABELS]
        assert scores_of(results[uid]) == pytest.approx(alone, abs=1e-5)


def test_a_beginning_is_fed_once_for_all_rows_and_steps(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=33)
    rows = [make_row([*BEGINNING, 40 + uid], ((1,),), uid) for uid in range(9)]
    answers(scorer, rows)
    assert scorer.num_fed_tokens == len(BEGINNING) + 9
    answers(scorer, [make_row([*BEGINNING, 50], ((1,),))])
    assert scorer.num_fed_tokens == len(BEGINNING) + 10


def test_memory_of_prefixes_is_bounded(model: GPTJForCausalLM) -> None:
    token_bytes = 2 * 2 * 32 * 4
    scorer = single_pass(model, max_step_tokens=10, max_prefix_bytes=50 * token_bytes)
    for first in range(2, 30):
        beginning = [first] * 20
        answers(scorer, [make_row([*beginning, 40 + uid], ((1,),), uid) for uid in range(3)])
        assert scorer.prefixes.num_bytes in (20 * token_bytes, 40 * token_bytes)


def test_a_row_that_is_not_finite_fails_alone_though_it_shares_a_beginning(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=1000)
    prompts = [[*BEGINNING, 40, 41], [*BEGINNING, 60, 41], [*BEGINNING, 42], [*BEGINNING, 43]]
    expected = answers(scorer, [make_row(prompt, uid=uid) for uid, prompt in enumerate(prompts)])
    with torch.no_grad():
        kept = model.transformer.wte.weight[60].clone()
        model.transformer.wte.weight[60] = torch.nan
        results = answers(scorer, [make_row(prompt, uid=uid) for uid, prompt in enumerate(prompts)])
        model.transformer.wte.weight[60] = kept
    assert isinstance(results[1], Failed)
    for uid in (0, 2, 3):
        assert scores_of(results[uid]) == pytest.approx(scores_of(expected[uid]), abs=1e-6)


def test_a_row_that_shares_can_be_let_go_between_steps(model: GPTJForCausalLM) -> None:
    scorer = single_pass(model, max_step_tokens=1)
    rows = [make_row([*BEGINNING, 40 + uid], ((1,),), uid) for uid in range(4)]
    for row in rows:
        scorer.add(row)
    (first,) = scorer.step()
    scorer.release(rows[1] if first[0] is not rows[1] else rows[2])
    rest = [row for row in rows if row is not first[0] and row in list(scorer)]
    assert len(rest) == 2
    found = answers(scorer, [])
    for row in rest:
        assert scores_of(found[row.uid]) == pytest.approx([score_alone(model, row.context, (1,))], abs=1e-5)


def test_labels_of_which_only_differences_matter_differ_as_they_should(model: GPTJForCausalLM) -> None:
    prompt = [3, 4, 5]
    request = LabelRequest(key="a", prompt_token_ids=prompt, label_token_ids=LABELS, relative=True)
    scorer = single_pass(model, max_step_tokens=100)
    results = answers(scorer, [make_row(prompt, uid=0), Row(1, request), make_row([9, 9], uid=2)])
    absolute, relative = scores_of(results[0]), scores_of(results[1])
    offsets = [one - other for one, other in zip(relative, absolute, strict=True)]
    assert offsets == pytest.approx([offsets[0]] * len(LABELS), abs=1e-5)
    assert scores_of(results[2]) == pytest.approx([score_alone(model, [9, 9], label) for label in LABELS], abs=1e-5)


def test_likelihoods_labels_and_embeddings_share_a_pass(model: GPTJForCausalLM) -> None:
    prompt = [*BEGINNING, 40, 41]
    requests: list[HeadRequest] = [
        EmbedRequest(key="e", prompt_token_ids=prompt, pooling="last"),
        ScoreRequest(key="s", prompt_token_ids=prompt, first_token=len(BEGINNING) + 1),
        LabelRequest(key="l", prompt_token_ids=prompt[:-1], label_token_ids=((41,),)),
        EmbedRequest(key="m", prompt_token_ids=prompt),
    ]
    scorer = single_pass(model, max_step_tokens=1000)
    for uid, request in enumerate(requests):
        scorer.add(Row(uid, request))
    results = {row.uid: result for row, result in scorer.step()}
    last, score, label, mean = (results[uid] for uid in range(4))
    assert isinstance(last, Embedded) and isinstance(mean, Embedded)
    assert isinstance(score, Scored) and isinstance(label, Labelled)
    assert score.token_logprobs == pytest.approx(label.label_logprobs, abs=1e-6)
    with torch.no_grad():
        hidden = model.transformer(torch.tensor([prompt])).last_hidden_state[0]
    assert list(last.vector) == pytest.approx(hidden[-1].tolist(), abs=1e-5)
    assert list(mean.vector) == pytest.approx(hidden.mean(0).tolist(), abs=1e-5)
    # The mean needs every token's hidden state, so its row feeds them all; the others feed one or two.
    assert scorer.num_fed_tokens == len(BEGINNING) + 2 + 1 + 1 + len(prompt)
