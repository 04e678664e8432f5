"""The notebook function `classify`: give each record a label.

Reads: the columns that the template `prompt`, or with `method="head"` `text`, names.
Adds: `label` (string; a list where a trained head gives several; for a regression a double `value` instead),
`label_score` (its probability), `label_scores` (every label's probability: a map; in pandas dictionaries,
in `datasets` and polars structures); `error` (string, null for a row that is done; all others are null where it is
not).
"""

from typing import Any

from pipelines.run_arguments import with_run_arguments


@with_run_arguments
def classify(data: Any, *, progress: bool = True, **arguments: Any) -> Any:
    r"""Give each record a label; see the module for the columns.

        labelled = classify(articles, labels=["World", "Sports"], prompt="{{ text }}\nTopic:", model="demo")

    method: prompt, by the likelihood of each label behind a prompt, or head, by a trained classifier
    prompt: a template over the row's columns, such as "{{ text }}\nTopic:"
    labels: a list, or a dictionary from each label to the text that is scored    likelihood: sum or mean
    calibrate: none or content_free    abstain_below: no label below this probability
    top_k: keep so many of the likeliest labels in `label_scores`
    text, multi_label_threshold: with method head, whose labels are the checkpoint's
    truncate: error, left or right, for a text that does not fit    deduplicate: compute equal prompts once
    """
    from pipelines.notebook import add_columns

    return add_columns("classify", data, progress, arguments)
