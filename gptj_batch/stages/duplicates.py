"""Duplicates: equal requests are computed once within what a replica remembers, over its tables and threads."""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import Any, NamedTuple

from gptj_batch.requests import AnyRequest, SamplingParams
from gptj_batch.results import AnyResult, Failed

Run = Callable[[Sequence[AnyRequest]], list[AnyResult]]

MAX_REMEMBERED_BYTES = 64 * 2**20
# Roughly what a remembered request takes besides its tokens, and a number of its result.
ENTRY_BYTES, NUMBER_BYTES, CHAR_BYTES = 1024, 36, 4


class Answer(NamedTuple):
    """A request's result, and whether another request's computation gave it."""

    result: AnyResult
    is_shared: bool


class Duplicates:
    """Remember what was computed, exactly: requests are compared by all their tokens and settings.

    Requests are equal where a backend must answer them alike: all but their keys is the same, and where decoding is
    greedy, the seed and what filters samples play no part. Samples of different rows have different seeds, so they are
    never equal. A failure is nobody else's: what waited for it is computed for itself.
    """

    def __init__(self, max_remembered_bytes: int = MAX_REMEMBERED_BYTES) -> None:
        self._max_bytes = max_remembered_bytes
        self._lock = threading.Lock()
        self._in_flight: dict[Hashable, Future[AnyResult | None]] = {}
        self._done: OrderedDict[Hashable, tuple[AnyResult, int]] = OrderedDict()
        self._num_bytes = 0

    def run(self, requests: Sequence[AnyRequest], run: Run) -> list[Answer]:
        """Return an answer per request, in their order, having run those that nobody else has or is running.

        Raises what `run` raises.
        """
        names = [request_identity(request) for request in requests]
        known, waited, own = self._claim(names)
        try:
            for place, result in zip(own, run([requests[place] for place in own]) if own else [], strict=True):
                known[place] = Answer(result, False)
                self._finish(names[place], result)
        finally:
            self._release([names[place] for place in own])
        # Only now: what is waited for is another call's own, which waits for nothing before it is done.
        for place, future in waited.items():
            if (found := future.result()) is not None:
                known[place] = Answer(found, True)
        rest = [place for place in waited if place not in known]
        for place, result in zip(rest, run([requests[place] for place in rest]) if rest else [], strict=True):
            known[place] = Answer(result, False)
        return [
            Answer(replace(answer.result, key=request.key), True) if answer.is_shared else answer
            for request, answer in zip(requests, (known[place] for place in range(len(requests))), strict=True)
        ]

    def _claim(
        self, names: Sequence[Hashable]
    ) -> tuple[dict[int, Answer], dict[int, "Future[AnyResult | None]"], list[int]]:
        """Return what is known already, what somebody is computing, and what this call has to."""
        known: dict[int, Answer] = {}
        waited: dict[int, Future[AnyResult | None]] = {}
        own: list[int] = []
        with self._lock:
            for place, name in enumerate(names):
                if name in self._done:
                    self._done.move_to_end(name)
                    known[place] = Answer(self._done[name][0], True)
                elif name in self._in_flight:
                    waited[place] = self._in_flight[name]
                else:
                    self._in_flight[name] = Future()
                    own.append(place)
        return known, waited, own

    def _finish(self, name: Hashable, result: AnyResult) -> None:
        """Give a result to those that wait for it, and remember it unless it is a failure."""
        with self._lock:
            future = self._in_flight.pop(name)
            if not isinstance(result, Failed):
                num_bytes = _num_bytes(name, result)
                self._done[name] = (result, num_bytes)
                self._num_bytes += num_bytes
                while self._num_bytes > self._max_bytes:
                    _, (_, dropped) = self._done.popitem(last=False)
                    self._num_bytes -= dropped
        future.set_result(None if isinstance(result, Failed) else result)

    def _release(self, names: Sequence[Hashable]) -> None:
        """Let nobody wait for what will not come, as `run` has raised."""
        with self._lock:
            left = [self._in_flight.pop(name) for name in names if name in self._in_flight]
        for future in left:
            future.set_result(None)


def request_identity(request: AnyRequest) -> Hashable:
    """Return a value that is equal for requests that must be answered alike. It keeps hold of what it is made of."""
    values = (
        getattr(request, field.name) for field in fields(request) if field.name not in ("key", "prompt_token_ids")
    )
    tokens = array("i", request.prompt_token_ids).tobytes()
    return (type(request), tokens, *map(_comparable, values))


def _comparable(value: Any) -> Hashable:
    """Return a value that is equal where a request's settings are, also where each row has a constraint of its own."""
    identity: Hashable = getattr(value, "identity", value)
    return _decoding(value) if isinstance(value, SamplingParams) else identity


def _decoding(sampling: SamplingParams) -> SamplingParams:
    """Return the parameters without those that play no part."""
    return sampling if sampling.temperature > 0 else replace(sampling, seed=0, top_k=0, top_p=1.0, min_p=0.0)


def _num_bytes(name: Any, result: AnyResult) -> int:
    numbers = sum(len(value) for value in vars(result).values() if isinstance(value, tuple | array))
    texts = sum(len(part) for value in name if isinstance(value, tuple) for part in value if isinstance(part, str))
    return ENTRY_BYTES + len(name[1]) + CHAR_BYTES * texts + NUMBER_BYTES * numbers
