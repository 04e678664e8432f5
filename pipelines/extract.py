"""The notebook function `extract`: take the span of a text that answers a question.

Reads: the columns that the templates `question` and `context`, or with `method="prompt"` `prompt` and `context`, name.
Adds: `answer_text` (string, null where there is no answer), `answer_start` and `answer_end` (characters of the rendered
context; context[start:end] is the text), `answer_score` (its probability), `answers` (the likeliest, a list); `error`
(string, null for a row that is done; all others are null where it is not).
"""

from typing import Any

from pipelines.run_arguments import with_run_arguments


@with_run_arguments
def extract(data: Any, *, progress: bool = True, **arguments: Any) -> Any:
    """Take the answer to a question from each record; see the module for the columns.

        facts = extract(articles, question="Who won?", context="{{ text }}", model="demo")

    method: head, by a trained question-answering head, or prompt, by decoding that is held to the context
    question, context: templates over the row's columns    allow_no_answer: whether a row may be answered by null
    top_k: the length of `answers`    max_answer_tokens, max_question_tokens: the most of each
    stride_tokens: what two windows of a long context share    window_tokens: the most of one
    scoring, align_to_words: how spans are compared, and whether they begin and end with words
    prompt, max_answers, separator, whole_words, one_line, truncate: with method prompt
    deduplicate: compute equal questions and contexts once
    """
    from pipelines.notebook import add_columns

    return add_columns("extract", data, progress, arguments)
