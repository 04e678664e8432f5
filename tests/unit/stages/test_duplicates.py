import threading
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from tiny_tokenizer import train_tokenizer

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.constraints.answers import AnswersConstraint
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.errors import BackendError
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import AnyRequest, ClassifyRequest, LabelRequest, Request, SamplingParams
from gptj_batch.results import AnyResult, Failed, Generated
from gptj_batch.stages.duplicates import ENTRY_BYTES, Duplicates, request_identity

WAIT_S = 20.0


class Counting(FakeBackend):
    """A fake that remembers which requests it was asked, and fails those with a key of `failing`."""

    def __init__(self, *failing: str) -> None:
        super().__init__(300)
        self.asked: list[str] = []
        self._failing = failing

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        self.asked += [request.key for request in requests]
        return [
            Failed(key=request.key, error="no luck") if request.key in self._failing else result
            for request, result in zip(requests, super().run(requests), strict=True)
        ]


def greedy(key: str, *token_ids: int, **sampling: Any) -> Request:
    return Request(key=key, prompt_token_ids=token_ids, sampling=SamplingParams(max_new_tokens=3, **sampling))


def test_what_is_the_same_is_computed_once_and_answers_under_every_key() -> None:
    backend = Counting()
    requests = [greedy("a", 1, 2), greedy("b", 3), greedy("c", 1, 2), greedy("d", 1, 2)]
    answers = Duplicates().run(requests, backend.run)
    assert backend.asked == ["a", "b"]
    assert [answer.is_shared for answer in answers] == [False, False, True, True]
    assert [answer.result for answer in answers] == FakeBackend(300).run(requests), "as without"


def test_what_an_earlier_table_had_is_remembered() -> None:
    backend, duplicates = Counting(), Duplicates()
    duplicates.run([greedy("a", 1)], backend.run)
    (answer,) = duplicates.run([greedy("b", 1)], backend.run)
    assert backend.asked == ["a"]
    assert answer.is_shared and answer.result.key == "b"


def stop(_: Sequence[int]) -> bool:
    return False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (greedy("k", 1, 2), greedy("k", 1, 3)),
        (greedy("k", 1), greedy("k", 1, min_new_tokens=1)),
        (greedy("k", 1), greedy("k", 1, repetition_penalty=2.0)),
        (greedy("k", 1, temperature=1.0, seed=1), greedy("k", 1, temperature=1.0, seed=2)),
        (greedy("k", 1, temperature=1.0), greedy("k", 1, temperature=1.0, top_k=3)),
        (greedy("k", 1), Request(key="k", prompt_token_ids=[1], sampling=greedy("k", 1).sampling, stop=stop)),
        (LabelRequest(key="k", prompt_token_ids=[1], label_token_ids=((1,), (2,))),
         LabelRequest(key="k", prompt_token_ids=[1], label_token_ids=((1,), (3,)))),
        (LabelRequest(key="k", prompt_token_ids=[1], label_token_ids=((1,), (2,))),
         ClassifyRequest(key="k", prompt_token_ids=[1])),
    ],
)  # fmt: skip
def test_what_differs_in_anything_is_computed_for_itself(one: AnyRequest, other: AnyRequest) -> None:
    assert request_identity(one) != request_identity(other)


def held_to(text: str, **options: Any) -> Request:
    vocabulary = Vocabulary(Tokenizer(train_tokenizer()))
    constraint = AnswersConstraint(text, vocabulary, **{"max_answer_tokens": 4, **options})
    return Request(key="k", prompt_token_ids=[1], sampling=SamplingParams(), constraint=constraint)


def test_rows_held_to_the_same_text_are_the_same_and_their_texts_are_counted() -> None:
    name = request_identity(held_to("the world"))
    assert name == request_identity(held_to("the world"))
    others = [held_to("the news"), held_to("the world", max_answer_tokens=3), held_to("the world", allow_none=True)]
    assert not [other for other in others if request_identity(other) == name]
    backend, duplicates = Counting(), Duplicates(3 * ENTRY_BYTES)
    for text in ("w" * 9000, "the world", "w" * 9000):
        duplicates.run([held_to(text)], lambda requests: backend.run([greedy(r.key, 1) for r in requests]))
    assert len(backend.asked) == 3, "a long text is forgotten first"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (greedy("a", 1, seed=1), greedy("b", 1, seed=2)),
        (greedy("a", 1, top_k=3, top_p=0.5, min_p=0.1), greedy("b", 1)),
        (greedy("a", 1, temperature=1.0, seed=1), greedy("b", 1, temperature=1.0, seed=1)),
        (greedy("a", 1, num_beams=2), greedy("b", 1, num_beams=2, seed=5)),
        (ClassifyRequest(key="a", prompt_token_ids=[1]), ClassifyRequest(key="b", prompt_token_ids=array("i", [1]))),
    ],
)
def test_what_plays_no_part_makes_no_difference(one: AnyRequest, other: AnyRequest) -> None:
    assert request_identity(one) == request_identity(other)
    assert hash(request_identity(one)) == hash(request_identity(other))


def test_a_failure_is_nobody_elses() -> None:
    backend, duplicates = Counting("a"), Duplicates()
    answers = duplicates.run([greedy("a", 1), greedy("b", 1), greedy("c", 1)], backend.run)
    assert isinstance(answers[0].result, Failed)
    assert [type(answer.result) for answer in answers[1:]] == [Generated, Generated]
    assert not any(answer.is_shared for answer in answers)
    duplicates.run([greedy("d", 1)], backend.run)
    assert backend.asked == ["a", "b", "c", "d"], "nor is it remembered"


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    backend, duplicates = Counting(), Duplicates(2 * (ENTRY_BYTES + 200))
    for key, token in (("a", 1), ("b", 2), ("a again", 1), ("c", 3), ("a", 1), ("b", 2)):
        duplicates.run([greedy(key, token)], backend.run)
    assert backend.asked == ["a", "b", "c", "b"]


def test_another_thread_waits_for_what_is_being_computed() -> None:
    duplicates, backend = Duplicates(), Counting()
    is_running, may_end = threading.Event(), threading.Event()
    answers: dict[str, bool] = {}

    def slow(requests: Sequence[AnyRequest]) -> list[AnyResult]:
        is_running.set()
        assert may_end.wait(WAIT_S)
        return backend.run(requests)

    def call(key: str, run: Any, *more: Request) -> None:
        (answer, *_) = duplicates.run([greedy(key, 1), *more], run)
        answers[key] = answer.is_shared

    first = threading.Thread(target=call, args=("first", slow))
    first.start()
    assert is_running.wait(WAIT_S)
    second = threading.Thread(target=call, args=("second", backend.run, greedy("own", 2)))
    second.start()
    may_end.set()
    first.join(WAIT_S)
    second.join(WAIT_S)
    assert answers == {"first": False, "second": True}
    assert sorted(backend.asked) == ["first", "own"]


def test_where_the_backend_dies_those_that_wait_ask_for_themselves() -> None:
    duplicates, backend = Duplicates(), Counting()
    is_running, may_end = threading.Event(), threading.Event()
    ended: list[str] = []

    def dying(_: Sequence[AnyRequest]) -> list[AnyResult]:
        is_running.set()
        assert may_end.wait(WAIT_S)
        raise BackendError("the engine stopped")

    def call_dying() -> None:
        with pytest.raises(BackendError):
            duplicates.run([greedy("first", 1)], dying)
        ended.append("first")

    def call() -> None:
        (answer,) = duplicates.run([greedy("second", 1)], backend.run)
        ended.append("shared" if answer.is_shared else "own")

    threads = [threading.Thread(target=call_dying)]
    threads[0].start()
    assert is_running.wait(WAIT_S)
    threads.append(threading.Thread(target=call))
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(ended) == ["first", "own"]
