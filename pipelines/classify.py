"""The notebook function `classify`: give each record a label.

Reads: the columns that the template `prompt`, or with `method="head"` `text`, names.
Adds: `label` (string; a list where a trained head gives several; for a regression a double `value` instead),
`label_score` (its probability), `label_scores` (every label's probability: a map; in pandas dictionaries,
in `datasets` and polars structures); `error` (string, null for a row that is done; all others are null where it is
not).
"""

from typing import Any


def classify(
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
    r"""Give each record a label; see the module for the columns.

        labelled = classify(articles, labels=["World", "Sports"], prompt="{{ text }}\nTopic:", model="demo")

    data: a Ray Dataset, a pandas or polars DataFrame, a pyarrow Table, a `datasets.Dataset`, or a path (file, folder or
        glob), which gives a Ray Dataset. The result is of the same kind: the same rows in the same order, with the
        columns added. A Ray Dataset is executed when it is consumed, and again whenever it is.

    The task's settings:

    method: prompt, by the likelihood of each label behind a prompt, or head, by a trained classifier
    prompt: a template over the row's columns, such as "{{ text }}\nTopic:"
    labels: a list, or a dictionary from each label to the text that is scored    likelihood: sum or mean
    calibrate: none or content_free    abstain_below: no label below this probability
    text, multi_label_threshold, top_k: with method head, whose labels are the checkpoint's
    truncate: error, left or right, for a text that does not fit    deduplicate: compute equal prompts once

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
    return add_columns("classify", data, progress, run | settings)
