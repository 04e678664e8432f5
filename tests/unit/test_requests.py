import dataclasses
import math
import pickle
from array import array
from typing import Any

import pytest

from gptj_batch.requests import EmbedRequest, LabelRequest, Request, SamplingParams, ScoreRequest
from gptj_batch.results import Embedded, Failed, Generated, Labelled, Scored


def test_without_parameters_decoding_is_greedy() -> None:
    sampling = SamplingParams()
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.0, 0, 1.0, 0.0)
    assert sampling.repetition_penalty == 1.0 and not sampling.ignore_eos and not sampling.logprobs


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"min_new_tokens": -1}, "min_new_tokens must be between 0 and max_new_tokens, got -1"),
        ({"min_new_tokens": 65}, "min_new_tokens must be between 0 and max_new_tokens, got 65"),
        ({"temperature": -0.5}, "temperature must be 0.0 (greedy) or more, got -0.5"),
        ({"temperature": math.inf}, "temperature must be 0.0 (greedy) or more, got inf"),
        ({"temperature": math.nan}, "temperature must be 0.0 (greedy) or more, got nan"),
        ({"top_k": -1}, "top_k must be 0 (off) or more, got -1"),
        ({"top_p": 0.0}, "top_p must be above 0.0, at most 1.0, got 0.0"),
        ({"top_p": 1.01}, "top_p must be above 0.0, at most 1.0, got 1.01"),
        ({"top_p": math.nan}, "top_p must be above 0.0, at most 1.0, got nan"),
        ({"min_p": -0.1}, "min_p must be between 0.0 and 1.0, got -0.1"),
        ({"min_p": 1.1}, "min_p must be between 0.0 and 1.0, got 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0.0, got 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be above 0.0, got inf"),
        ({"num_beams": 0}, "num_beams must be 1 (no beam search) or more, got 0"),
        ({"length_penalty": math.nan}, "length_penalty must be within 10.0 of 0, got nan"),
        ({"length_penalty": -11.0}, "length_penalty must be within 10.0 of 0, got -11.0"),
        ({"early_stopping": "always"}, 'early_stopping must be True, False or "never", got always'),
        ({"early_stopping": 1}, 'early_stopping must be True, False or "never", got 1'),
        ({"num_return_sequences": 2}, "num_return_sequences must be between 1 and num_beams (1), got 2"),
        (
            {"num_beams": 4, "num_return_sequences": 5},
            "num_return_sequences must be between 1 and num_beams (4), got 5",
        ),
        (
            {"num_beams": 4, "temperature": 0.7},
            "num_beams 4 is beam search, which draws nothing: temperature must then be 0.0, got 0.7; set it to 0.0, "
            "or num_beams to 1 to sample",
        ),
    ],
)
def test_what_no_decoding_could_honour_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        SamplingParams(**parameters)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": 1, "min_new_tokens": 1},
        {"min_new_tokens": 64},
        {"top_p": 1e-9, "min_p": 1.0, "temperature": 1e9, "top_k": 10**9, "repetition_penalty": 1e-9},
        {"seed": 2**63 - 1},
        {"seed": -1},
        {"num_beams": 4, "num_return_sequences": 4, "early_stopping": "never", "length_penalty": -10.0},
    ],
)
def test_what_is_on_the_border_is_taken(parameters: dict[str, Any]) -> None:
    assert SamplingParams(**parameters)


def test_mlperf_prescribes_four_beams_and_30_to_128_tokens() -> None:
    sampling = SamplingParams.mlperf_gptj()
    assert (sampling.num_beams, sampling.min_new_tokens, sampling.max_new_tokens) == (4, 30, 128)
    assert (sampling.early_stopping, sampling.length_penalty, sampling.temperature) == (True, 1.0, 0.0)


@pytest.mark.parametrize(
    "value",
    [
        SamplingParams(),
        Request(key="k", prompt_token_ids=[1]),
        LabelRequest(key="k", prompt_token_ids=[1], label_token_ids=((1,),)),
        Generated(key="k", token_ids=(1,), finish_reason="stop", num_prompt_tokens=1),
        Labelled(key="k", label_logprobs=(-1.0,), num_prompt_tokens=1),
        ScoreRequest(key="k", prompt_token_ids=[1, 2]),
        EmbedRequest(key="k", prompt_token_ids=[1]),
        Scored(key="k", token_logprobs=(-1.0,), num_prompt_tokens=2),
        Embedded(key="k", vector=array("f", [0.5]), num_prompt_tokens=1),
        Failed(key="k", error="why"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_requests_and_results_are_plain_values_that_nobody_changes(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, "other")
    with pytest.raises(TypeError, match="positional"):
        type(value)("k")


def test_a_pooling_that_there_is_not_is_refused() -> None:
    pooling: Any = "max"
    with pytest.raises(ValueError, match="pooling must be one of mean, last, got 'max'"):
        EmbedRequest(key="k", prompt_token_ids=[1], pooling=pooling)


def test_a_vector_is_read_as_float32_without_a_copy() -> None:
    memory = memoryview(Embedded(key="k", vector=array("f", [0.5, 0.25]), num_prompt_tokens=1).vector)
    assert (memory.format, memory.nbytes) == ("f", 8)
