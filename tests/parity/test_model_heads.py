"""The heads against transformers', float32: losses, gradients, and the tuple form."""

from typing import Any

import pytest
import torch
from torch import Tensor

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
PAD = 0


def classification_labels(problem: str | None, num_labels: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if problem == "multi_label_classification":
        return torch.randint(0, 2, (5, num_labels), generator=generator).float()
    if problem == "regression" or num_labels == 1:
        return torch.randn(5, generator=generator) if num_labels == 1 else torch.randn(5, num_labels)
    return torch.randint(0, num_labels, (5,), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_the_language_modelling_loss_equals_transformers(oracle: Any, padding: str) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    batch = oracle.tokens(5, 9, padding)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[2, 3:5] = -100
    oracle.assert_equal(pair.ours(**batch, labels=labels), pair.theirs(**batch, labels=labels))


@torch.no_grad()
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(
    ("num_labels", "problem"),
    [
        (3, None),
        (1, None),
        (3, "single_label_classification"),
        (3, "multi_label_classification"),
        (1, "regression"),
        (3, "regression"),
    ],
)
def test_every_classification_loss_equals_transformers(
    oracle: Any, padding: str, num_labels: int, problem: str | None
) -> None:
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=num_labels, problem_type=problem, pad_token_id=PAD)
    batch = oracle.tokens(5, 9, padding)
    labels = classification_labels(problem, num_labels)
    oracle.assert_equal(pair.ours(**batch, labels=labels), pair.theirs(**batch, labels=labels))


@torch.no_grad()
def test_float_labels_of_several_classes_mean_several_labels_at_once(oracle: Any) -> None:
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=3, pad_token_id=PAD)
    batch = oracle.tokens(5, 9)
    labels = classification_labels("multi_label_classification", 3)
    oracle.assert_equal(pair.ours(**batch, labels=labels), pair.theirs(**batch, labels=labels))
    assert pair.theirs.config.problem_type == "multi_label_classification"


@torch.no_grad()
def test_without_a_pad_token_the_last_position_counts_in_every_row(oracle: Any) -> None:
    """The documentation says so for any batch; transformers' code computes it for one row only."""
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=3)
    input_ids = oracle.tokens(5, 9)["input_ids"]
    ours = pair.ours(input_ids).logits
    theirs = torch.cat([pair.theirs(input_ids[row : row + 1]).logits for row in range(5)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_with_embeddings_the_last_position_counts_even_with_a_pad_token(oracle: Any) -> None:
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=3, pad_token_id=PAD)
    embedded = torch.randn(5, 9, 128)
    oracle.assert_equal(pair.ours(inputs_embeds=embedded), pair.theirs(inputs_embeds=embedded))


@torch.no_grad()
def test_a_row_of_nothing_but_padding_is_classified_as_transformers_does(oracle: Any) -> None:
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=3, pad_token_id=PAD)
    input_ids = oracle.tokens(5, 9)["input_ids"].index_fill(0, torch.tensor([1]), PAD)
    oracle.assert_equal(pair.ours(input_ids), pair.theirs(input_ids))


@torch.no_grad()
@pytest.mark.parametrize("padding", ["none", "right"])
def test_the_question_answering_loss_equals_transformers(oracle: Any, padding: str) -> None:
    pair = oracle.pair("GPTJForQuestionAnswering", use_cache=False)
    batch = oracle.tokens(5, 9, padding)
    for start, end in (([0, 3, 8, 4, 2], [1, 3, 8, 6, 2]), ([-4, 3, 9, 500, 2], [1, 30, 8, 6, -1])):
        spans = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
        everything = {"output_attentions": True, "output_hidden_states": True}
        oracle.assert_equal(pair.ours(**batch, **spans, **everything), pair.theirs(**batch, **spans, **everything))
    columns = {name: positions[:, None] for name, positions in spans.items()}
    oracle.assert_equal(pair.ours(**batch, **columns), pair.theirs(**batch, **columns))


@torch.no_grad()
@pytest.mark.parametrize(
    "class_name", ["GPTJModel", "GPTJForCausalLM", "GPTJForSequenceClassification", "GPTJForQuestionAnswering"]
)
@pytest.mark.parametrize("everything", [False, True])
def test_the_tuple_form_equals_transformers_element_by_element(oracle: Any, class_name: str, everything: bool) -> None:
    pair = oracle.pair(class_name, pad_token_id=PAD, use_cache=False)
    call = oracle.tokens(5, 9, "right")
    call |= {"output_attentions": everything, "output_hidden_states": everything, "return_dict": False}
    for labels in ({}, labels_of(class_name, call)):
        ours = pair.ours(**call, **labels)
        theirs = pair.theirs(**call, **labels)
        if class_name == "GPTJForQuestionAnswering" and everything:
            # transformers drops the element behind the body's first, which is the cache only where there is one;
            # the documented order is loss, start, end, hidden states, attentions
            fields = pair.theirs(**{**call, "return_dict": True}, **labels)
            theirs = tuple(fields.values())
        assert isinstance(ours, tuple)
        assert len(ours) == len(theirs)
        oracle.assert_equal(ours, theirs)


def labels_of(class_name: str, call: dict[str, Any]) -> dict[str, Tensor]:
    rows = torch.tensor([0, 1, 0, 1, 1])
    return {
        "GPTJModel": {},
        "GPTJForCausalLM": {"labels": call["input_ids"]},
        "GPTJForSequenceClassification": {"labels": rows},
        "GPTJForQuestionAnswering": {"start_positions": rows, "end_positions": rows + 2},
    }[class_name]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_gradients_of_the_language_modelling_loss_equal_transformers(oracle: Any, padding: str, tied: bool) -> None:
    pair = oracle.pair("GPTJForCausalLM", tie_word_embeddings=tied)
    batch = oracle.tokens(5, 9, padding)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert_gradients_equal(pair, {**batch, "labels": labels})


@pytest.mark.parametrize(
    ("num_labels", "problem"), [(3, "single_label_classification"), (3, "multi_label_classification"), (1, None)]
)
def test_gradients_of_the_classification_losses_equal_transformers(
    oracle: Any, num_labels: int, problem: str | None
) -> None:
    pair = oracle.pair("GPTJForSequenceClassification", num_labels=num_labels, problem_type=problem, pad_token_id=PAD)
    labels = classification_labels(problem, num_labels)
    assert_gradients_equal(pair, {**oracle.tokens(5, 9, "right"), "labels": labels})


def test_gradients_of_the_question_answering_loss_equal_transformers(oracle: Any) -> None:
    pair = oracle.pair("GPTJForQuestionAnswering")
    spans = {"start_positions": torch.tensor([0, 3, 9, 4, 2]), "end_positions": torch.tensor([1, 3, 8, 6, 50])}
    # The same number added to every position's logit changes no loss.
    unseen = ("transformer.ln_f.bias", "qa_outputs.bias")
    assert_gradients_equal(pair, {**oracle.tokens(5, 9, "right"), **spans}, unseen)


def assert_gradients_equal(pair: Any, call: dict[str, Tensor], unseen: tuple[str, ...] = ()) -> None:
    for model in (pair.ours, pair.theirs):
        model.train()
        model(**call).loss.backward()
    theirs = dict(pair.theirs.named_parameters())
    found = {}
    for name, parameter in pair.ours.named_parameters():
        expected = theirs[name].grad
        assert name in unseen or expected.abs().max() > 10 * GRADIENT_TOLERANCE, f"the test cannot see {name}"
        found[name] = float((parameter.grad - expected).abs().max())
    assert found.keys() == theirs.keys()
    assert max(found.values()) <= GRADIENT_TOLERANCE
