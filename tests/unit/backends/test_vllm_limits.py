from typing import Any

import pytest

from gptj_batch import LabelRequest, Request, SamplingParams
from gptj_batch.backends.vllm_limits import refuse, why_not
from gptj_batch.requests import AnyRequest, ConstraintState, EmbedRequest, Language


class Anything:
    def start(self) -> ConstraintState:
        raise NotImplementedError


class Letters(Anything):
    language = Language(regex="[a-z]+")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"kind": "generate", "num_beams": 4}, "task.num_beams"),
        ({"kind": "generate", "choices": ("a", "b"), "logprobs": True}, "task.logprobs"),
        ({"kind": "generate", "regex": "a+", "min_new_tokens": 2}, "task.min_new_tokens"),
        ({"kind": "generate", "temperature": 0.001}, "task.temperature"),
        ({"kind": "generate", "temperature": 3.0}, "task.temperature"),
        ({"kind": "extract", "method": "prompt"}, "task.method"),
        ({"kind": "embed", "layer": 3}, "task.layer"),
    ],
)
def test_settings_that_vllm_lacks_are_named_with_the_backend_that_has_them(task: dict[str, Any], name: str) -> None:
    problem = why_not(task, "auto")
    assert problem is not None and problem.startswith(f"{name}: ") and "set backend.kind to native" in problem


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "generate", "num_beams": 1, "choices": None, "regex": None, "json_schema": None, "temperature": 0.0},
        {"kind": "generate", "temperature": 0.7, "min_new_tokens": 5, "stop": ("x",), "num_samples": 3},
        {"kind": "generate", "choices": ("a", "b")},
        {"kind": "generate", "regex": "a+"},
        {"kind": "generate", "json_schema": {}, "temperature": 0.7},
        {"kind": "classify", "method": "prompt"},
        {"kind": "classify", "method": "head"},
        {"kind": "extract", "method": "head"},
        {"kind": "score"},
        {"kind": "embed", "layer": None},
        {"kind": "embed", "layer": -1},
    ],
)
def test_everything_else_is_possible(task: dict[str, Any]) -> None:
    assert why_not(task, "auto") is None


def test_int8_is_not() -> None:
    assert "int8 is the native engine's own" in str(why_not({"kind": "score"}, "int8"))


def test_requests_are_refused_alike() -> None:
    refused: list[AnyRequest] = [
        Request(key="a", prompt_token_ids=[1], sampling=SamplingParams(num_beams=2)),
        Request(key="b", prompt_token_ids=[1], constraint=Anything()),
        Request(key="b2", prompt_token_ids=[1], constraint=Letters(), sampling=SamplingParams(logprobs=True)),
        Request(key="b3", prompt_token_ids=[1], constraint=Letters(), sampling=SamplingParams(min_new_tokens=1)),
        Request(key="c", prompt_token_ids=[1], sampling=SamplingParams(temperature=0.005)),
        EmbedRequest(key="d", prompt_token_ids=[1], layer=1),
    ]
    assert all("set backend.kind to native" in str(refuse(one, n_layer=2)) for one in refused)
    possible: list[AnyRequest] = [
        Request(key="a", prompt_token_ids=[1], sampling=SamplingParams(temperature=1.0)),
        LabelRequest(key="b", prompt_token_ids=[1], label_token_ids=((2,),)),
        EmbedRequest(key="c", prompt_token_ids=[1], layer=2),
        EmbedRequest(key="d", prompt_token_ids=[1], layer=-1),
    ]
    assert [refuse(one, n_layer=2) for one in possible] == [None] * 4
