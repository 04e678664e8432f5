import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch import errors
from gptj_batch.errors import BackendError, GPTJBatchError, shorten

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, Exception) and kind is not GPTJBatchError
]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {
        line.split()[1]: "(retryable: yes)" in line
        for line in (errors.__doc__ or "").splitlines()
        if line.startswith(("├", "└"))
    }
    assert drawn == {kind.__name__: kind.retryable for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_catches_the_base_catches_all(kind: type[GPTJBatchError]) -> None:
    assert kind.__mro__[1] is GPTJBatchError
    assert (kind.__doc__ or "").strip().endswith(".")


def test_only_what_failed_on_good_input_is_worth_another_try() -> None:
    assert [kind for kind in KINDS if kind.retryable] == [BackendError]
    assert not GPTJBatchError.retryable


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_can_be_sent_from_a_worker(kind: type[GPTJBatchError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("message")))
    assert type(sent) is kind and str(sent) == "message"


def test_a_short_value_stays_and_a_long_one_is_cut() -> None:
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 79 + "…"
    assert shorten([1, None], 100) == "[1, None]"


@given(st.text(), st.integers(1, 50))
def test_nothing_is_longer_than_its_limit(text: str, limit: int) -> None:
    assert len(shorten(text, limit)) <= limit
