import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gptj_batch.errors import ConfigError
from gptj_batch.model import (
    GPTJConfig,
    GPTJForCausalLM,
    GPTJForQuestionAnswering,
    GPTJForSequenceClassification,
    GPTJModel,
)
from gptj_batch.model.heads import next_token_loss

BODY = list(inspect.signature(GPTJModel.forward).parameters)[1:]
INPUTS, CACHE, ASKED = BODY[:6], ["use_cache"], ["output_attentions", "output_hidden_states", "return_dict"]
DOCUMENTED = {
    GPTJForCausalLM: [*INPUTS, "labels", *CACHE, *ASKED, "cache_position", "logits_to_keep"],
    GPTJForSequenceClassification: [*INPUTS, "labels", *CACHE, *ASKED],
    GPTJForQuestionAnswering: [
        *("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"),
        *("start_positions", "end_positions", *ASKED),
    ],
}


@pytest.mark.parametrize("model_class", DOCUMENTED)
def test_the_arguments_and_their_order_are_those_of_the_documentation(model_class: Any) -> None:
    parameters = list(inspect.signature(model_class.forward).parameters.values())[1:]
    assert [p.name for p in parameters] == DOCUMENTED[model_class]
    assert {p.name: p.default for p in parameters if p.default is not None} == (
        {"logits_to_keep": 0} if model_class is GPTJForCausalLM else {}
    )


def test_labels_are_shifted_and_minus_100_does_not_count() -> None:
    logits = torch.randn(1, 4, 7)
    labels = torch.tensor([[5, 2, -100, 3]])
    by_hand = F.cross_entropy(logits[0, [0, 2]], torch.tensor([2, 3]))
    torch.testing.assert_close(next_token_loss(logits, labels), by_hand)


def test_the_loss_of_low_precision_logits_is_computed_in_float32() -> None:
    logits = torch.randn(2, 4, 7).half()
    labels = torch.randint(0, 7, (2, 4))
    assert torch.equal(next_token_loss(logits, labels), next_token_loss(logits.float(), labels))


@torch.no_grad()
def test_only_the_positions_asked_for_get_logits(config: GPTJConfig) -> None:
    model = GPTJForCausalLM(config).eval()
    input_ids = torch.randint(0, 31, (2, 5))
    whole = model(input_ids).logits
    torch.testing.assert_close(model(input_ids, logits_to_keep=2).logits, whole[:, -2:])
    chosen = torch.tensor([3, 0])
    torch.testing.assert_close(model(input_ids, logits_to_keep=chosen).logits, whole[:, chosen])


def test_tied_embeddings_are_one_parameter(tiny: dict[str, Any]) -> None:
    tied = GPTJForCausalLM(GPTJConfig(**tiny, tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert tied.num_parameters() == GPTJForCausalLM(GPTJConfig(**tiny)).num_parameters() - 31 * 16


@torch.no_grad()
@pytest.mark.parametrize(
    ("row", "place"),
    [([4, 5, 6, 7], 3), ([4, 5, 0, 0], 1), ([0, 0, 6, 7], 3), ([4, 0, 6, 0], 2), ([0, 0, 0, 0], 0)],
)
def test_a_row_is_classified_by_its_last_token_that_is_not_padding(
    tiny: dict[str, Any], row: list[int], place: int
) -> None:
    model = GPTJForSequenceClassification(GPTJConfig(**tiny, pad_token_id=0, num_labels=3)).eval()
    input_ids = torch.tensor([row, [1, 2, 3, 4]])
    every_position = model.score(model.transformer(input_ids).last_hidden_state)
    torch.testing.assert_close(model(input_ids).logits[0], every_position[0, place])


@torch.no_grad()
def test_without_a_pad_token_or_with_embeddings_the_last_position_counts(tiny: dict[str, Any]) -> None:
    input_ids = torch.tensor([[4, 5, 0, 0], [1, 2, 3, 4]])
    model = GPTJForSequenceClassification(GPTJConfig(**tiny)).eval()
    last = model.score(model.transformer(input_ids).last_hidden_state[:, -1])
    torch.testing.assert_close(model(input_ids).logits, last)
    model.config.pad_token_id = 0
    embedded = model.transformer.wte(input_ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, last)


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "labels", "by_hand"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, 2.0]), lambda x, y: ((x.squeeze() - y) ** 2).mean()),
        ({"num_labels": 3}, torch.tensor([2, 0]), F.cross_entropy),
        ({"num_labels": 3}, torch.tensor([[1.0, 0, 1], [0, 0, 1]]), F.binary_cross_entropy_with_logits),
        ({"num_labels": 3, "problem_type": "regression"}, torch.randn(2, 3), F.mse_loss),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, torch.tensor([2, 0]), F.cross_entropy),
    ],
)
def test_the_loss_follows_from_problem_type_or_from_the_labels(
    tiny: dict[str, Any], settings: dict[str, Any], labels: torch.Tensor, by_hand: Any
) -> None:
    model = GPTJForSequenceClassification(GPTJConfig(**tiny, **settings)).eval()
    output = model(torch.randint(1, 31, (2, 4)), labels=labels)
    torch.testing.assert_close(output.loss, by_hand(output.logits, labels))
    assert model.config.problem_type == settings.get("problem_type")


@torch.no_grad()
def test_a_span_behind_the_sequence_is_ignored_and_one_before_it_is_its_start(config: GPTJConfig) -> None:
    model = GPTJForQuestionAnswering(config).eval()
    input_ids = torch.randint(0, 31, (2, 5))
    output = model(input_ids, start_positions=torch.tensor([-3, 9]), end_positions=torch.tensor([4, 2]))
    start = F.cross_entropy(output.start_logits[:1], torch.tensor([0]))
    end = F.cross_entropy(output.end_logits, torch.tensor([4, 2]))
    torch.testing.assert_close(output.loss, (start + end) / 2)
    assert output.start_logits.shape == (2, 5)
    assert output.start_logits.is_contiguous()
    assert model(input_ids, start_positions=torch.tensor([1, 1])).loss is None


def test_a_span_has_a_start_and_an_end(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="num_labels must be 2"):
        GPTJForQuestionAnswering(GPTJConfig(**tiny, num_labels=3))


@torch.no_grad()
def test_the_tuple_form_leaves_out_what_was_not_asked_for(config: GPTJConfig) -> None:
    model = GPTJForQuestionAnswering(config).eval()
    input_ids = torch.randint(0, 31, (2, 5))
    spans = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])}
    start_logits, end_logits = model(input_ids, return_dict=False)
    loss, *_, attentions = model(input_ids, **spans, output_attentions=True, return_dict=False)
    assert start_logits.shape == end_logits.shape == (2, 5)
    assert math.isfinite(loss)
    assert len(attentions) == 2
    config.return_dict = False
    assert isinstance(model(input_ids), tuple)
    assert not isinstance(model(input_ids, return_dict=True), tuple)
