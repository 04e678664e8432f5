"""The notebook function `extract`: take the span of a text that answers a question.

Reads: the columns that the templates `question` and `context`, or with `method="prompt"` `prompt` and `context`, name.
Adds: `answer_text` (string, null where there is no answer), `answer_start` and `answer_end` (characters of the rendered
context; context[start:end] is the text), `answer_score` (its probability), `answers` (the likeliest, a list); `error`
(string, null for a row that is done; all others are null where it is not).
"""

from typing import Any


def extract(
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
    """Take the answer to a question from each record; see the module for the columns.

        facts = extract(articles, question="Who won?", context="{{ text }}", model="demo")

    data: a Ray Dataset, a pandas or polars DataFrame, a pyarrow Table, a `datasets.Dataset`, or a path (file, folder or
        glob), which gives a Ray Dataset. The result is of the same kind: the same rows in the same order, with the
        columns added. A Ray Dataset is executed when it is consumed, and again whenever it is.

    The task's settings:

    method: head, by a trained question-answering head, or prompt, by decoding that is held to the context
    question, context: templates over the row's columns    allow_no_answer: whether a row may be answered by null
    top_k: the length of `answers`    max_answer_tokens, max_question_tokens: the most of each
    stride_tokens: what two windows of a long context share    window_tokens: the most of one
    scoring, align_to_words: how spans are compared, and whether they begin and end with words
    prompt, max_answers, separator, whole_words, one_line, truncate: with method prompt

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
    return add_columns("extract", data, progress, run | settings)
