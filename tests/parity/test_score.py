"""The task `score` against transformers' loss in float32, long texts against its recipe for perplexity."""

import math
import random
from typing import Any

import pytest
import torch
from task_rows import TOKENIZER, added_columns

from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.prompts.tokenizer import END_OF_TEXT
from gptj_batch.tasks.score import ScoreSettings, ScoreTask

N_POSITIONS, IGNORED = 48, -100
TOLERANCE = 1e-5
WORDS = [
    "the",
    "world",
    "news",
    "is",
    "in",
    "sports",
    "and",
    "business",
    "Topic:",
    "~",
    "weather",
    "🙂",
    "of",
    "é",
    "Zürich",
]


def text(seed: int, num_words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


# Texts of one window, then of many; the engine gets all of them at once.
TEXTS = [text(seed, num_words) for seed, num_words in enumerate((1, 2, 5, 9, 4, 3, 60, 150, 8, 33))]


def task(**settings: Any) -> ScoreTask:
    return ScoreTask(ScoreSettings.model_validate({"kind": "score", "text": "{{ text }}", **settings}))


@pytest.fixture
def pair(oracle: Any) -> Any:
    return oracle.pair("GPTJForCausalLM", vocab_size=TOKENIZER.vocab_size, n_positions=N_POSITIONS)


@torch.no_grad()
def loss(theirs: Any, token_ids: list[int], first_label: int = 0) -> float:
    """Return transformers' loss, with labels from a token on."""
    labels = torch.tensor([token_ids])
    labels[:, :first_label] = IGNORED
    return float(theirs(torch.tensor([token_ids]), labels=labels).loss)


def sliding_windows(theirs: Any, token_ids: list[int], stride: int, first_label: int = 0) -> tuple[float, int]:
    """Return the summed loss and the number of tokens that it is of.

    As in huggingface.co/docs/transformers/perplexity, but that every window's mean is taken times the labels that it is
    the mean of: there it is one less in all windows, which is right in the first alone, whose first token has no label
    left once labels are shifted.
    """
    total, count, previous_end = 0.0, 0, first_label
    for begin in range(0, len(token_ids), stride):
        end = min(begin + N_POSITIONS, len(token_ids))
        num_labels = min(end - previous_end, end - begin - 1)
        if num_labels > 0:
            total += num_labels * loss(theirs, token_ids[begin:end], end - num_labels - begin)
            count += num_labels
        previous_end = end
        if end == len(token_ids):
            break
    return total, count


@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
def test_a_text_that_fits_is_scored_as_transformers_loss_whoever_shares_the_pass(
    pair: Any, max_step_tokens: int
) -> None:
    engine = Engine(pair.ours, EngineConfig(max_step_tokens=max_step_tokens))
    rows = added_columns(task(), engine, [{"text": text} for text in TEXTS])
    num_compared = 0
    for text_, row in zip(TEXTS, rows, strict=True):
        (ids,) = TOKENIZER.encode_batch([text_])
        if 1 < len(ids) <= N_POSITIONS:
            expected = loss(pair.theirs, ids)
            assert row["num_scored_tokens"] == len(ids) - 1
            assert -row["logprob_sum"] / (len(ids) - 1) == pytest.approx(expected, abs=TOLERANCE)
            assert math.log(row["perplexity"]) == pytest.approx(expected, abs=TOLERANCE)
            num_compared += 1
    assert num_compared >= 5


@pytest.mark.parametrize("stride", [None, 1, 7, 24, 47])
def test_long_texts_are_scored_as_by_transformers_recipe(pair: Any, stride: int | None) -> None:
    rows = added_columns(task(stride_tokens=stride), Engine(pair.ours), [{"text": text} for text in TEXTS])
    for text_, row in zip(TEXTS, rows, strict=True):
        (ids,) = TOKENIZER.encode_batch([text_])
        total, count = sliding_windows(pair.theirs, ids, stride or N_POSITIONS // 2)
        assert row["num_scored_tokens"] == count == len(ids) - 1
        assert -row["logprob_sum"] / max(1, count) == pytest.approx(total / max(1, count), abs=TOLERANCE)


@pytest.mark.parametrize("stride", [None, 5])
def test_behind_a_context_the_text_alone_has_labels(pair: Any, stride: int | None) -> None:
    records = [{"context": text(seed, 1 + seed % 3), "text": " " + text_} for seed, text_ in enumerate(TEXTS)]
    made = task(context="{{ context }}", stride_tokens=stride)
    for record, row in zip(records, added_columns(made, Engine(pair.ours), records), strict=True):
        context, ids = TOKENIZER.encode_batch([record["context"], record["text"]])
        total, count = sliding_windows(pair.theirs, context + ids, stride or N_POSITIONS // 2, len(context))
        assert row["num_scored_tokens"] == count == len(ids)
        assert -row["logprob_sum"] / count == pytest.approx(total / count, abs=TOLERANCE)
        if len(context + ids) <= N_POSITIONS:
            expected = loss(pair.theirs, context + ids, len(context))
            assert math.log(row["perplexity"]) == pytest.approx(expected, abs=TOLERANCE)


def test_a_context_that_is_cut_is_as_if_only_its_end_were_there(pair: Any) -> None:
    made = task(context="{{ context }}", truncate="left")
    record = {"context": text(1, 100), "text": " world news"}
    (row,) = added_columns(made, Engine(pair.ours), [record])
    context, ids = TOKENIZER.encode_batch([record["context"], record["text"]])
    kept = context[len(ids) - N_POSITIONS :]
    assert len(kept) + len(ids) == N_POSITIONS
    assert math.log(row["perplexity"]) == pytest.approx(loss(pair.theirs, kept + ids, len(kept)), abs=TOLERANCE)


def test_a_first_token_behind_the_end_of_text_is_scored_as_transformers_does_with_it(pair: Any) -> None:
    end_of_text = TOKENIZER.token_id(END_OF_TEXT)
    assert end_of_text is not None
    rows = added_columns(task(score_first_token=True), Engine(pair.ours), [{"text": text} for text in TEXTS])
    for text_, row in zip(TEXTS, rows, strict=True):
        (ids,) = TOKENIZER.encode_batch([text_])
        assert row["num_scored_tokens"] == len(ids)
        if len(ids) < N_POSITIONS:
            expected = loss(pair.theirs, [end_of_text, *ids])
            assert math.log(row["perplexity"]) == pytest.approx(expected, abs=TOLERANCE)
