"""The demo model in the package: transformers reads it, and it does on held-out items what README says."""

from pathlib import Path

import pytest
import torch
import transformers

import gptj_batch.model as ours
from gptj_batch.demo import demo_folder, demo_records
from gptj_batch.prompts.tokenizer import Tokenizer
from jobs.demo_model.corpus import items
from jobs.demo_model.evaluate import evaluate

HEADS = {
    "causal-lm": "GPTJForCausalLM",
    "sequence-classification": "GPTJForSequenceClassification",
    "question-answering": "GPTJForQuestionAnswering",
}
MAX_BYTES = 12_000_000
TEXTS = [item.text for item in items("heldout", 5, seed=5)]


@pytest.mark.parametrize("head", HEADS)
def test_transformers_reads_the_folder_and_computes_the_same(head: str) -> None:
    folder, name = demo_folder(head), HEADS[head]
    mine = getattr(ours, name).from_pretrained(folder, dtype="float32")
    theirs = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32)
    for ids in Tokenizer.from_folder(folder).encode_batch(TEXTS):
        batch = torch.tensor([ids])
        with torch.no_grad():
            pairs = zip(mine(batch).to_tuple()[:1], theirs(batch).to_tuple()[:1], strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_transformers_reads_the_tokenizer_and_gives_the_same_ids(head: str) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(demo_folder(head))
    texts = [*TEXTS, "naïve café 👩‍🚀\r\n\t<|endoftext|>", ""]
    assert Tokenizer.from_folder(demo_folder(head)).encode_batch(texts) == [theirs(text).input_ids for text in texts]


def test_the_weights_are_at_most_twelve_megabytes_of_safetensors() -> None:
    files = list(demo_records().parent.rglob("*.safetensors"))
    assert len(files) == len(HEADS)
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    assert not list(demo_records().parent.rglob("*.bin"))


@pytest.mark.slow
def test_held_out_items_are_labelled_and_their_spans_found() -> None:
    torch.set_num_threads(2)
    figures = evaluate(Path(demo_folder("causal-lm")).parent, num_items=120)
    assert figures["topic_by_prompt"] >= 0.90, figures
    assert figures["topic_by_head"] >= 0.95, figures
    assert figures["span_exact"] >= 0.80, figures


def test_every_article_of_ag_news_fits_the_context() -> None:
    import pyarrow.parquet as pq

    articles = Path(__file__).parents[3] / "shared" / "data" / "ag_news" / "articles.parquet"
    if not articles.exists():
        pytest.skip(f"{articles} is not there")
    texts = pq.read_table(articles, columns=["text"]).column("text").to_pylist()
    assert max(map(len, Tokenizer.from_folder(demo_folder("causal-lm")).encode_batch(texts))) < 1000
