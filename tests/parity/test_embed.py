"""The task `embed` against transformers' hidden states in float32, each row by itself and without padding."""

from typing import Any

import pytest
import torch
from task_rows import TOKENIZER, added_columns

from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.model import GPTJWithoutHead
from gptj_batch.tasks.embed import EmbedSettings, EmbedTask

N_LAYER, WIDTH = 3, 128
TOLERANCE = 1e-5
CLASSES = ("GPTJModel", "GPTJForCausalLM", "GPTJForSequenceClassification", "GPTJForQuestionAnswering")
TEXTS = ["x", "the world news", "sports 🙂 and", "~" * 48, "Topic: World is in the weather of the news", "is"]


def task(**settings: Any) -> EmbedTask:
    return EmbedTask(EmbedSettings.model_validate({"kind": "embed", "text": "{{ text }}", **settings}), WIDTH, N_LAYER)


def vectors(made: EmbedTask, engine: Engine, texts: list[str]) -> torch.Tensor:
    """Return (rows, width)."""
    return torch.tensor([row["embedding"] for row in added_columns(made, engine, [{"text": text} for text in texts])])


@torch.no_grad()
def expected(theirs: Any, text: str, pooling: str, layer: int) -> torch.Tensor:
    (ids,) = TOKENIZER.encode_batch([text])
    hidden = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
    pooled: torch.Tensor = hidden.mean(0) if pooling == "mean" else hidden[-1]
    return pooled


def pair_and_engine(oracle: Any, class_name: str = "GPTJForCausalLM", max_step_tokens: int = 64) -> tuple[Any, Engine]:
    pair = oracle.pair(class_name, vocab_size=TOKENIZER.vocab_size, n_layer=N_LAYER, n_embd=WIDTH)
    body = GPTJWithoutHead.from_pretrained(pair.folder, allow_new_head=False)
    return pair, Engine(body, EngineConfig(max_step_tokens=max_step_tokens))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("max_step_tokens", [1, 64, 1024])
def test_every_layer_equals_transformers_whoever_shares_the_pass(
    oracle: Any, pooling: str, max_step_tokens: int
) -> None:
    pair, engine = pair_and_engine(oracle, max_step_tokens=max_step_tokens)
    for layer in range(-N_LAYER - 1, N_LAYER + 1):
        ours = vectors(task(pooling=pooling, layer=layer), engine, TEXTS)
        theirs = torch.stack([expected(pair.theirs, text, pooling, layer) for text in TEXTS])
        assert float((ours - theirs).abs().max()) <= TOLERANCE, layer


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_last_layer_behind_the_norm_is_what_is_asked_for_unless_said_otherwise(
    oracle: Any, class_name: str
) -> None:
    pair, engine = pair_and_engine(oracle, class_name)
    body = getattr(pair.theirs, "transformer", pair.theirs)
    ours = vectors(task(), engine, TEXTS)
    for text, vector in zip(TEXTS, ours, strict=True):
        (ids,) = TOKENIZER.encode_batch([text])
        with torch.no_grad():
            theirs = body(torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert float((vector - theirs).abs().max()) <= TOLERANCE


def test_padding_counts_nowhere_however_transformers_is_fed(oracle: Any) -> None:
    pair, engine = pair_and_engine(oracle)
    texts = TEXTS[:3]
    ids = TOKENIZER.encode_batch(texts)
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        hidden = pair.theirs(padded, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    theirs = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert float((vectors(task(), engine, texts) - theirs).abs().max()) <= TOLERANCE


def test_normalised_vectors_are_the_others_scaled_to_length_one(oracle: Any) -> None:
    pair, engine = pair_and_engine(oracle)
    ours = vectors(task(normalize=True, pooling="last"), engine, TEXTS)
    assert ours.norm(dim=1).tolist() == pytest.approx([1.0] * len(TEXTS), abs=1e-6)
    theirs = torch.stack([expected(pair.theirs, text, "last", -1) for text in TEXTS])
    assert float((ours - torch.nn.functional.normalize(theirs)).abs().max()) <= TOLERANCE


def test_a_text_that_is_cut_is_as_if_only_the_rest_were_there(oracle: Any) -> None:
    pair, engine = pair_and_engine(oracle)
    for side, rest in (("left", "~" * 44 + "abcd"), ("right", "abcd" + "~" * 44)):
        (ours,) = vectors(task(truncate=side), engine, ["abcd" + "~" * 60 + "abcd"])
        assert float((ours - expected(pair.theirs, rest, "mean", -1)).abs().max()) <= TOLERANCE
