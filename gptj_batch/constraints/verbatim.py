"""Verbatim: a continuation held to a part of a given text, and where in the text it stands.

It is decided on bytes, so a character that several tokens share is no special case. White space around an answer is
not part of it. One space before it may be generated whether or not the text has one there: words' tokens begin with
one, and behind "Answer:" a model goes on with " Paris", be "Paris" the text's first word or not.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Self

from gptj_batch.constraints.passage import Passage
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.errors import RecordError
from gptj_batch.requests import Allowed

SPACE = b" "


class VerbatimConstraint:
    """Hold a continuation to a part of `text`, of any length, from anywhere; made once per text.

    whole_words: the answer cuts no word (see `gptj_batch.constraints.passage`)
    max_chars: the most characters of an answer
    allow_none: the continuation may be empty, which says that the text holds no answer

    Raises RecordError for a text that is no Unicode, or that holds no answer where there must be one.
    """

    def __init__(
        self,
        text: str,
        vocabulary: Vocabulary,
        *,
        whole_words: bool = False,
        max_chars: int | None = None,
        allow_none: bool = False,
    ) -> None:
        self.passage = Passage(text, whole_words=whole_words, max_chars=max_chars)
        self.vocabulary = vocabulary
        self.allow_none = allow_none
        if not self.passage.limits and not allow_none:
            what = "is empty" if not text.strip() else f"has no word of at most {max_chars} characters"
            raise RecordError(f"the text that the answer is to be taken from {what}, so it holds no answer")
        self._next: dict[int, list[tuple[int, int]]] = {}
        self._first: dict[bool, Allowed] = {}

    def start(self) -> "VerbatimState":
        """Return the state of a sequence that has generated nothing yet."""
        return VerbatimState(self)

    def locate(self, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """Return the characters of the text, [start, end), that the tokens stand for; None where they are no answer.

        Of several such places it is the first. An answer that was cut by its length loses what is no whole character
        or, with `whole_words`, no whole word. Raises ValueError for tokens that the constraint does not allow.
        """
        state = self.start()
        for token_id in token_ids:
            if self.vocabulary.bytes_of[token_id]:  # an end of text has none
                state.accept(token_id)
        answer = state.answer()
        return None if answer is None else self.passage.first(answer)

    def without(self, answer: bytes) -> Self:
        """Return the constraint to what is left of the text once an answer is taken out; see `Passage.without`."""
        rest = copy.copy(self)
        rest.passage = self.passage.without(answer)
        rest.allow_none = False
        rest._first = {}  # what `_next` has stays true: it is the text's
        return rest

    def next_tokens(self, place: int) -> list[tuple[int, int]]:
        """Return the tokens that the text goes on with from a place, each as (where it ends, id)."""
        if place not in self._next:
            self._next[place] = self.vocabulary.beginning(self.passage.data, place)
        return self._next[place]

    def first_tokens(self, after_space: bool) -> Allowed:
        """Return the tokens that an answer begins with; the same for every sequence, so it is kept."""
        if after_space not in self._first:
            self._first[after_space] = self.vocabulary.compact(self._beginnings(after_space))
        return self._first[after_space]

    def _beginnings(self, after_space: bool) -> Iterable[int]:
        for start, limit in self.passage.limits.items():
            yield from (token for stop, token in self.next_tokens(start) if stop <= limit)
            if not after_space:
                with_space = self.vocabulary.beginning(self.passage.data, start, SPACE)
                yield from (token for stop, token in with_space if stop <= limit)
        if not after_space and self.passage.limits:
            yield from self.vocabulary.ids(SPACE)


class VerbatimState:
    """Where in the text one sequence may be; see `ConstraintState`.

    starts: where the answer may have begun: wherever the text goes on with the bytes so far
    num_bytes: the bytes so far, without a space before the answer
    """

    def __init__(self, constraint: VerbatimConstraint) -> None:
        self._constraint = constraint
        self._limits = constraint.passage.limits
        self._has_space = False
        self.starts = list(self._limits)
        self.num_bytes = 0

    def allowed(self) -> Allowed:
        """Return the tokens with which some part of the text goes on. None of them leads into a dead end.

        Every byte is a token, and from each of `starts` there is an end of an answer within its limit.
        """
        if self.num_bytes == 0:
            return self._constraint.first_tokens(self._has_space)
        return self._constraint.vocabulary.compact(
            token
            for start in self.starts
            for stop, token in self._constraint.next_tokens(start + self.num_bytes)
            if stop <= self._limits[start]
        )

    def accept(self, token_id: int) -> None:
        """Go on by one token. Raises ValueError for one that was not allowed."""
        more = self._constraint.vocabulary.bytes_of[token_id]
        if self.num_bytes == 0 and not self._has_space and more.startswith(SPACE):
            more, self._has_space = more[1:], True
            if not more:
                return
        data, stop = self._constraint.passage.data, self.num_bytes + len(more)
        self.starts = [
            start
            for start in self.starts
            if start + stop <= self._limits[start] and data.startswith(more, start + self.num_bytes)
        ]
        if not self.starts or not more:
            raise ValueError(f"the token {token_id} does not go on with any part of the text")
        self.num_bytes = stop

    @property
    def may_end(self) -> bool:
        """Say whether the bytes so far are an answer, or none where none is allowed."""
        if self.num_bytes == 0:
            return self._constraint.allow_none
        return any(self._constraint.passage.may_end(start + self.num_bytes) for start in self.starts)

    @property
    def is_complete(self) -> bool:
        """Say whether the answer has come to the end of the text, or of what it may hold."""
        is_over = all(self._limits[start] == start + self.num_bytes for start in self.starts)
        return self.num_bytes > 0 and is_over

    def answer(self) -> bytes | None:
        """Return the longest answer that the bytes so far begin with; None where they hold no whole one."""
        passage = self._constraint.passage
        answers = [
            passage.data[start:end]
            for start in (self.starts if self.num_bytes else ())
            if (end := passage.last_end(start, start + self.num_bytes)) is not None
        ]
        return max(answers, key=len) if answers else None

    def completed(self) -> bytes:
        """Return the shortest answer that begins with the bytes so far, at the first place where they stand."""
        passage, start = self._constraint.passage, self.starts[0]
        return passage.data[start : passage.next_end(start + self.num_bytes)]
