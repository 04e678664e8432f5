"""Contextual calibration of labels (Zhao et al. 2021, "Calibrate Before Use", ICML, arXiv:2102.09690).

A prompt favours some labels whatever it asks about. How much is measured with prompts that ask about nothing, the
paper's three: "N/A", "[MASK]" and the empty text in place of every column. Their probabilities of the labels, averaged,
are p_cf; a row's probabilities become diag(p_cf)^-1 p, normalised again. (The paper's equation has a softmax around
that, its code has not; the label chosen is the same.) All of it is done with logarithms, as p_cf of a long label may be
smaller than any float.
"""

import math
from collections.abc import Sequence
from typing import Literal

from gptj_batch.errors import ConfigError, RecordError
from gptj_batch.prompts.template import PromptTemplate
from gptj_batch.prompts.tokenizer import Tokenizer

Calibration = Literal["none", "content_free"]
CONTENT_FREE = ("N/A", "[MASK]", "")


def content_free_prompts(template: PromptTemplate, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the token ids of the prompts that ask about nothing, without those that have none at all.

    Raises ConfigError where there is no such prompt: the template uses no column, or one in a way that no text allows.
    """
    if not template.columns:
        raise ConfigError(
            "task.calibrate: content_free puts texts without content in place of the prompt's columns, and task.prompt "
            "uses no column; set it to none"
        )
    try:
        prompts = [template.render(dict.fromkeys(template.columns, text)) for text in CONTENT_FREE]
    except RecordError as error:
        raise ConfigError(
            "task.calibrate: content_free puts a text in place of every column of task.prompt, which then cannot be "
            f"rendered: {error}. Use columns of text, or set it to none"
        ) from None
    return [token_ids for token_ids in tokenizer.encode_batch(prompts) if token_ids]


def log_mean_probabilities(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the logarithm of the mean over rows of the softmax of each row's scores."""
    normalised = [[score - log_sum_exp(row) for score in row] for row in rows]
    return [log_sum_exp(of_label) - math.log(len(rows)) for of_label in zip(*normalised, strict=True)]


def log_sum_exp(values: Sequence[float]) -> float:
    """Return log(sum of exp(v)), of values of any size."""
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))
