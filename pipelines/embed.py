"""The notebook function `embed`: turn each text into a vector.

Reads: the columns that the template `text` names.
Adds: `embedding` (a list of float32, all of one length); `error` (string, null for a row that is done; the other is
null where it is not).
"""

from typing import Any

from pipelines.run_arguments import with_run_arguments


@with_run_arguments
def embed(data: Any, *, progress: bool = True, **arguments: Any) -> Any:
    """Turn each record's text into a vector; see the module for the columns.

        vectors = embed(sentences, text="{{ text }}", pooling="mean", model="demo")

    text: a template over the row's columns    pooling: mean or last    normalize: whether to length 1
    layer: whose hidden states are pooled    truncate: error, left or right, for a text that does not fit
    deduplicate: compute equal texts once
    """
    from pipelines.notebook import add_columns

    return add_columns("embed", data, progress, arguments)
