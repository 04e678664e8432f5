"""The notebook function `score`: how likely a model finds each text.

Reads: the columns that the templates `text` and `context` name.
Adds: `logprob_sum` (double, natural logarithm), `num_scored_tokens` (integer), `perplexity` (double); `error` (string,
null for a row that is done; all others are null where it is not).
"""

from typing import Any

from pipelines.run_arguments import with_run_arguments


@with_run_arguments
def score(data: Any, *, progress: bool = True, **arguments: Any) -> Any:
    """Score each record's text, given its context where there is one; see the module for the columns.

        scored = score(sentences, text="{{ text }}", model="demo")

    text: a template over the row's columns    context: one for what stands before it and is not scored
    stride_tokens: how far the windows of a long text are apart    score_first_token: whether the first one counts
    truncate: error or left, for a text that does not fit    deduplicate: compute equal texts once
    """
    from pipelines.notebook import add_columns

    return add_columns("score", data, progress, arguments)
