import pytest
import torch

from gptj_batch import Failed, Labelled, LabelRequest
from gptj_batch.engine.prepare import prepare_body
from gptj_batch.engine.row import Row
from gptj_batch.engine.single_pass import SinglePass
from gptj_batch.model import GPTJForCausalLM

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
    scorer = SinglePass(model, prepare_body(model, take_weights=False), max_step_tokens=100)
    for uid, prompt in enumerate(prompts):
        scorer.add(make_row(prompt, uid=uid))
    results = {row.uid: scores_of(result) for row, result in scorer.step()}
    assert not scorer.has_unfinished
    for uid, prompt in enumerate(prompts):
        assert results[uid] == pytest.approx([score_alone(model, prompt, label) for label in LABELS], abs=1e-5)


def test_a_step_keeps_to_its_budget_shortest_first_and_a_longer_row_goes_alone(model: GPTJForCausalLM) -> None:
    scorer = SinglePass(model, prepare_body(model, take_weights=False), max_step_tokens=8)
    for uid, length in enumerate([20, 3, 5, 4]):
        scorer.add(make_row([2] * length, ((1,),), uid))
    assert [[row.uid for row, _ in scorer.step()] for _ in range(4)] == [[1, 3], [2], [0], []]


def test_rows_that_come_later_do_not_overtake_for_ever(model: GPTJForCausalLM) -> None:
    scorer = SinglePass(model, prepare_body(model, take_weights=False), max_step_tokens=4)
    scorer.add(make_row([2] * 9, ((1,),), 0))
    scorer.add(make_row([2] * 3, ((1,),), 1))
    assert [row.uid for row, _ in scorer.step()] == [1]
    scorer.add(make_row([2] * 3, ((1,),), 2))
    assert [row.uid for row, _ in scorer.step()] == [0]


def test_a_row_can_be_let_go(model: GPTJForCausalLM) -> None:
    scorer = SinglePass(model, prepare_body(model, take_weights=False), max_step_tokens=4)
    rows = [make_row([2] * 3, ((1,),), uid) for uid in range(3)]
    scorer.add(rows[0])
    scorer.add(rows[1])
    assert len(scorer.step()) == 1
    scorer.add(rows[2])
    for row in list(scorer):
        scorer.release(row)
    assert not scorer.has_unfinished


def test_a_row_that_is_not_finite_fails_alone(model: GPTJForCausalLM) -> None:
    scorer = SinglePass(model, prepare_body(model, take_weights=False), max_step_tokens=100)
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
