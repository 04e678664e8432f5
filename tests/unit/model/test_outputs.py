import pytest
import torch

from gptj_batch.model.outputs import CausalLMOutputWithPast, QuestionAnsweringModelOutput


def test_a_field_is_read_by_name_by_key_and_by_place() -> None:
    logits = torch.zeros(1, 2, 3)
    output = CausalLMOutputWithPast(loss=None, logits=logits, hidden_states=(logits,))
    assert output.logits is output["logits"] is output[0] is output.to_tuple()[0]
    assert output.keys() == list(output) == ["logits", "hidden_states"]
    assert len(output) == 2
    assert "loss" not in output
    assert output[:1] == (logits,)
    assert dict(output.items())["logits"] is logits
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(KeyError):
        output["keys"]


def test_the_order_of_question_answering_is_the_documented_one() -> None:
    numbers = [torch.tensor(float(i)) for i in range(3)]
    states, attentions = (numbers[0],), (numbers[1],)
    output = QuestionAnsweringModelOutput(*numbers, hidden_states=states, attentions=attentions)
    assert output.to_tuple() == (*numbers, states, attentions)
