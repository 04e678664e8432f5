"""The notebook function `generate`: continue a prompt.

Reads: the columns that the template `prompt` names.
Adds: `generated_text` (string; a list with num_samples > 1), `finish_reason` ("stop" or "length"), `num_prompt_tokens`
and `num_generated_tokens` (integers); with `logprobs` `generated_logprobs` (list of doubles); `error` (string, null for
a row that is done; all others are null where it is not).
"""

from typing import Any


def generate(
    data: Any,
    *,
    model: str = "EleutherAI/gpt-j-6B",
    revision: str | None = None,
    dtype: str = "auto",
    backend: str | dict[str, Any] = "auto",
    replicas: int | dict[str, Any] | None = None,
    output: Any = None,
    on_exists: str = "resume",
    prefix: str = "",
    key: str | None = None,
    columns: list[str] | None = None,
    format: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Any:
    r"""Continue each record's prompt; see the module for the columns.

        summaries = generate(articles, prompt="{{ text }}\nSummary:", max_new_tokens=48, model="demo")

    data: a Ray Dataset, a pandas or polars DataFrame, a pyarrow Table, a `datasets.Dataset`, or a path (file, folder or
        glob), which gives a Ray Dataset. The result is of the same kind: the same rows in the same order, with the
        columns added. A Ray Dataset is executed when it is consumed, and again whenever it is.

    The task's settings:

    prompt: a template over the row's columns, such as "Summarize: {{ text }}\n"
    max_new_tokens, min_new_tokens: how long a text gets    stop: texts that end it
    temperature (0 is greedy), top_k, top_p, min_p, repetition_penalty, num_samples, seed: sampling
    num_beams, length_penalty, early_stopping: beam search
    choices, regex, json_schema: what the text is held to, one of them
    logprobs: whether to add them    settings_column: a column with settings of each row's own
    truncate: error, left or right, for a prompt that does not fit    deduplicate: compute equal prompts once

    How it is run:

    model: a folder in Hugging Face layout, a hub name, or "demo"    revision: of a hub name
    dtype: auto, float16, bfloat16, float32 or int8
    backend: auto, native or fake, or a dictionary of the settings that a job has in `backend`
    replicas: how many copies of the model, or a dictionary of those in `replicas`; None is what there is room for
    output: a folder; the result is also written there as a job writes it, a call that was cut off goes on from there,
        and one that was finished is read    on_exists: resume, overwrite or fail
    prefix: put before the name of every added column    key: the column that names a row, and that sampling draws from
    columns, format: of a path, which columns are read and kept, and as what
    progress: whether to show it

    Raises ConfigError for an argument that is wrong or unknown, CheckpointError for a model that cannot be used,
    InputError for a path that cannot be read. A row that fails has its reason in `error`, and stops no other.
    """
    from pipelines.notebook import add_columns

    run = {
        "model": model,
        "revision": revision,
        "dtype": dtype,
        "backend": backend,
        "replicas": replicas,
        "output": output,
        "on_exists": on_exists,
        "prefix": prefix,
        "key": key,
        "columns": columns,
        "format": format,
    }
    return add_columns("generate", data, progress, run | settings)
