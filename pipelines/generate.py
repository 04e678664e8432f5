"""The notebook function `generate`: continue a prompt.

Reads: the columns that the template `prompt` names.
Adds: `generated_text` (string), `finish_reason` ("stop" or "length"), `num_prompt_tokens` and `num_generated_tokens`
(integers); with `logprobs` `generated_logprobs` (list of float32); `error` (string, null for a row that is done; all
others are null where it is not). With num_samples > 1 all but `num_prompt_tokens` and `error` are lists, one a sample.
"""

from typing import Any

from pipelines.run_arguments import with_run_arguments


@with_run_arguments
def generate(data: Any, *, progress: bool = True, **arguments: Any) -> Any:
    r"""Continue each record's prompt; see the module for the columns.

        summaries = generate(articles, prompt="{{ text }}\nSummary:", max_new_tokens=48, model="demo")

    prompt: a template over the row's columns, such as "Summarize: {{ text }}\n"
    max_new_tokens, min_new_tokens: how long a text gets    stop: texts that end it
    temperature (0 is greedy), top_k, top_p, min_p, repetition_penalty, num_samples, seed: sampling
    num_beams, length_penalty, early_stopping: beam search
    choices, regex, json_schema: what the text is held to, one of them
    logprobs: whether to add them    settings_column: a column with settings of each row's own
    truncate: error, left or right, for a prompt that does not fit    deduplicate: compute equal prompts once
    """
    from pipelines.notebook import add_columns

    return add_columns("generate", data, progress, arguments)
