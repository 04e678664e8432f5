"""What the demo model is trained on: items laid out as documents, as texts to classify and as questions to answer."""

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tokenizers import Tokenizer

from gptj_batch.demo import (
    QUESTION_ANSWERING_LAYOUT,
    QUESTION_ANSWERING_PREFIX,
    QUESTION_FIRST_PROMPT,
    QUESTION_PROMPT,
    SENTIMENT_PROMPT,
    SUMMARIZE_PROMPT,
    SUMMARY_PROMPT,
    TOPIC_PROMPT,
)
from jobs.demo_model.corpus import Item, Question
from jobs.demo_model.tokenizer import END_OF_TEXT

NO_ANSWER_SHARE: Final = 0.12
LONG_SHARE: Final = 0.02
MAX_LONG_ITEMS: Final = 10  # about 600 tokens
TASKS: Final = {
    "topic": 16,
    "sentiment": 12,
    "question": 28,
    "question first": 24,
    "summary": 8,
    "summarize": 8,
    "text": 4,
}


class SpanExample(NamedTuple):
    """Token ids of a question and its context, with the first and last token of the answer."""

    token_ids: list[int]
    start: int
    end: int


def document(item: Item, rng: random.Random) -> str:
    """Return an item as one document of the language model, laid out for a task drawn at random."""
    task = rng.choices(list(TASKS), list(TASKS.values()))[0]
    asked = rng.choice(item.questions)
    if task == "topic":
        body = TOPIC_PROMPT.format(text=item.text) + " " + item.topic
    elif task == "sentiment":
        body = SENTIMENT_PROMPT.format(text=item.text) + " " + item.sentiment
    elif task == "question":
        body = QUESTION_PROMPT.format(text=item.text, question=asked.question) + " " + asked.answer
    elif task == "question first":
        body = QUESTION_FIRST_PROMPT.format(context=item.text, question=asked.question) + " " + asked.answer
    elif task == "summary":
        body = SUMMARY_PROMPT.format(text=item.text) + " " + item.summary
    elif task == "summarize":
        body = SUMMARIZE_PROMPT.format(text=item.text) + item.summary
    else:
        body = item.text
    return body + END_OF_TEXT


def documents(items: Sequence[Item], rng: random.Random) -> Iterator[str]:
    """Yield a document per item; a few are several in a row, so that later positions are trained too."""
    waiting: list[str] = []
    num_wanted = 1
    for item in items:
        waiting.append(document(item, rng))
        if len(waiting) >= num_wanted:
            yield "".join(waiting)
            waiting = []
            num_wanted = rng.randint(2, MAX_LONG_ITEMS) if rng.random() < LONG_SHARE else 1
    if waiting:
        yield "".join(waiting)


def span_examples(items: Sequence[Item], tokenizer: Tokenizer, rng: random.Random) -> Iterator[SpanExample]:
    """Yield a question per item with its answer's tokens; a few contexts are several texts in a row."""
    for index, item in enumerate(items):
        context, shift = item.text, 0
        if rng.random() < LONG_SHARE:
            first = max(0, index - rng.randrange(MAX_LONG_ITEMS))
            before = [other.text for other in items[first:index] if other.topic != item.topic]
            context = "\n".join([*before, item.text])
            shift = len(context) - len(item.text)
        if rng.random() < NO_ANSWER_SHARE and shift == 0:
            yield span_example(tokenizer, item.unanswerable, context, None)
        else:
            asked = rng.choice(item.questions)
            yield span_example(
                tokenizer, asked.question, context, asked._replace(answer_start=asked.answer_start + shift)
            )


def span_example(tokenizer: Tokenizer, question: str, context: str, answer: Question | None) -> SpanExample:
    """Encode a question and its context; without an answer, the span is the last token of the prefix."""
    encoding = tokenizer.encode(QUESTION_ANSWERING_LAYOUT.format(question=question, context=context))
    prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=question))
    num_prefix = sum(end <= prefix_chars for _, end in encoding.offsets)
    if answer is None:
        return SpanExample(encoding.ids, num_prefix - 1, num_prefix - 1)
    first_char = prefix_chars + 1 + answer.answer_start
    end_char = first_char + len(answer.answer)
    inside = [
        index
        for index, (start, end) in enumerate(encoding.offsets)
        if index >= num_prefix and start < end_char and end > first_char
    ]
    return SpanExample(encoding.ids, inside[0], inside[-1])
