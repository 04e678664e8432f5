"""Answers: a continuation held to one or several parts of a text, and where in the text they stand.

Between two answers stands a separator. Where an answer may end, tokens that begin the separator are the separator, so
no answer holds it; behind the last answer it ends the continuation. What an answer says is taken out of the text for
the next: no two answers share a character or are the same text.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from gptj_batch.constraints.verbatim import VerbatimConstraint
from gptj_batch.constraints.vocabulary import Vocabulary
from gptj_batch.requests import Allowed


class Answer(NamedTuple):
    """A part of the text, characters [start, end), and the tokens of the continuation, [first, stop), that made it."""

    start: int
    end: int
    first: int
    stop: int


class AnswersConstraint:
    """Hold a continuation to at most `max_answers` parts of `text`; made once per text.

    max_answer_tokens: an answer is over with its so-manieth token, one space before it not counted. It then loses what
    is no whole word; a first word that is cut is completed instead, so that there is always an answer.
    separator: what stands between two answers; spaces at its end are the next answer's to generate
    whole_words, allow_none: see `VerbatimConstraint`

    Raises RecordError for a text that is no Unicode, or that holds no answer where there must be one.
    """

    def __init__(
        self,
        text: str,
        vocabulary: Vocabulary,
        *,
        max_answer_tokens: int,
        max_answers: int = 1,
        separator: str = "",
        whole_words: bool = True,
        allow_none: bool = False,
    ) -> None:
        self.separator = separator.rstrip(" ").encode()
        assert max_answers == 1 or self.separator, "something must stand between two answers"
        self.verbatim = VerbatimConstraint(text, vocabulary, whole_words=whole_words, allow_none=allow_none)
        self.vocabulary = vocabulary
        self.max_answers = max_answers
        self.max_answer_tokens = max_answer_tokens
        self._identity = (text, max_answer_tokens, max_answers, self.separator, whole_words, allow_none)

    @property
    def identity(self) -> Hashable:
        """Return what is equal for constraints that allow the same, where the vocabulary is the same."""
        return self._identity

    def start(self) -> "AnswersState":
        """Return the state of a sequence that has generated nothing yet."""
        return AnswersState(self)

    def locate(self, token_ids: Sequence[int]) -> list[Answer]:
        """Return the answers that a continuation gives, in its order, each at the first place that it may stand at.

        Raises ValueError for tokens that the constraint does not allow.
        """
        state = self.start()
        for token_id in token_ids:
            if self.vocabulary.bytes_of[token_id]:  # an end of text has none
                state.accept(token_id)
        return state.answers()


class AnswersState:
    """Where one sequence stands in its answers; see `ConstraintState`."""

    def __init__(self, constraint: AnswersConstraint) -> None:
        self._constraint = constraint
        self._verbatim = constraint.verbatim  # what is left of the text for the answer that is being generated
        self._state = self._verbatim.start()
        self._given: list[Answer] = []
        self._num_tokens = 0
        self._first = 0  # the token that the answer began with
        self._num_answer_tokens = 0
        self._num_separator_bytes = 0
        self._is_over = False

    def allowed(self) -> Allowed:
        """Return the tokens that go on with the answer or with the separator."""
        if self._is_over:
            return ()
        if self._num_separator_bytes:
            return self._constraint.vocabulary.compact(self._separator_tokens())
        going_on: Allowed = () if self._is_full else self._state.allowed()
        if self._constraint.max_answers == 1 or not self._is_answer:
            return going_on
        return self._constraint.vocabulary.with_ids(going_on, self._separator_tokens())

    def accept(self, token_id: int) -> None:
        """Go on by one token. Raises ValueError for one that was not allowed."""
        more = self._constraint.vocabulary.bytes_of[token_id]
        if self._begins_separator(more):
            self._separate(more)
        elif self._is_over or self._num_separator_bytes or self._is_full:
            raise ValueError(f"the token {token_id} goes on with an answer that is over")
        else:
            self._state.accept(token_id)
            self._num_answer_tokens += self._state.num_bytes > 0
        self._num_tokens += 1

    @property
    def may_end(self) -> bool:
        """Say whether what there is are whole answers, or none where none is allowed."""
        if self._num_separator_bytes:
            return self._is_over
        return self._is_full or self._state.may_end

    @property
    def is_complete(self) -> bool:
        """Say whether nothing can follow."""
        is_last = len(self._given) + 1 == self._constraint.max_answers
        return self._is_over or (
            is_last and not self._num_separator_bytes and (self._is_full or self._state.is_complete)
        )

    def answers(self) -> list[Answer]:
        """Return the answers so far; one that was cut in a word is made whole, see `AnswersConstraint`."""
        answer = self._answer()
        return self._given if answer is None else [*self._given, self._located(answer)]

    @property
    def _is_full(self) -> bool:
        return self._num_answer_tokens >= self._constraint.max_answer_tokens

    @property
    def _is_answer(self) -> bool:
        """Say whether there is an answer that may be over."""
        return self._state.num_bytes > 0 and (self._is_full or self._state.may_end)

    def _separator_tokens(self) -> Iterator[int]:
        left = self._constraint.separator[self._num_separator_bytes :]
        for num_bytes in range(1, len(left) + 1):
            yield from self._constraint.vocabulary.ids(left[:num_bytes])

    def _begins_separator(self, more: bytes) -> bool:
        """Say whether bytes are the separator, or its next part."""
        left = self._constraint.separator[self._num_separator_bytes :]
        is_place = self._num_separator_bytes > 0 or self._is_answer
        return self._constraint.max_answers > 1 and is_place and bool(more) and left.startswith(more)

    def _separate(self, more: bytes) -> None:
        """Take in a part of the separator: with the first the answer is over, with the last the next one begins."""
        if not self._num_separator_bytes:
            answer = self._answer()
            assert answer is not None, "a separator follows an answer"
            self._given.append(self._located(answer))
            self._verbatim = self._verbatim.without(answer)
            self._state = self._verbatim.start()
            self._num_answer_tokens = 0
            self._is_over = len(self._given) == self._constraint.max_answers or not self._verbatim.passage.limits
        self._num_separator_bytes += len(more)
        if not self._is_over and self._num_separator_bytes == len(self._constraint.separator):
            self._num_separator_bytes = 0
            self._first = self._num_tokens + 1

    def _answer(self) -> bytes | None:
        """Return the answer as far as it is whole; its first word is completed."""
        return (self._state.answer() or self._state.completed()) if self._state.num_bytes else None

    def _located(self, answer: bytes) -> Answer:
        start, end = self._verbatim.passage.first(answer)
        return Answer(start, end, self._first, self._num_tokens)
