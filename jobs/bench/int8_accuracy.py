"""What int8 costs in accuracy, against bfloat16 and float32: labels of AG News, perplexity of the demo corpus.

    python -m jobs.bench.int8_accuracy [--rows 1000]

The model is the demo model; it has read nothing like AG News, so its labels there are often wrong and close calls: a
hard test of agreement. Perplexity is that of its own corpus' held-out records. The articles lie in `../shared`,
beside the project. Writes JSON to jobs/bench/results/.
"""

import argparse
import math
import sys
from typing import Any, Final

import pyarrow.parquet as pq

from gptj_batch import Labelled, LabelRequest, Scored, ScoreRequest
from gptj_batch.demo import demo_folder, demo_records
from gptj_batch.engine import Engine
from gptj_batch.prompts.tokenizer import Tokenizer
from jobs.bench.news import ARTICLES
from jobs.bench.surroundings import surroundings, write_results

LABELS: Final = ("World", "Sports", "Business", "Sci/Tech")
DTYPES: Final = ("float32", "bfloat16", "int8")
MAX_TEXT_TOKENS: Final = 200


def measure(dtype: str, texts: list[list[int]], prompts: list[list[int]], labels: Any) -> tuple[list[int], float]:
    """Return the likeliest label of every prompt, and the perplexity of the texts."""
    engine = Engine.from_pretrained(demo_folder("causal-lm"), dtype=dtype)
    labelled = engine.run(
        [LabelRequest(key=str(i), prompt_token_ids=ids, label_token_ids=labels) for i, ids in enumerate(prompts)]
    )
    scored = engine.run([ScoreRequest(key=str(i), prompt_token_ids=ids, first_token=1) for i, ids in enumerate(texts)])
    best = [row.label_logprobs.index(max(row.label_logprobs)) for row in labelled if isinstance(row, Labelled)]
    logprobs = [logprob for row in scored if isinstance(row, Scored) for logprob in row.token_logprobs]
    assert len(best) == len(prompts), "every row must be labelled"
    return best, math.exp(-sum(logprobs) / len(logprobs))


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    arguments = parser.parse_args()
    if not ARTICLES.exists():
        print(f"{ARTICLES} is not here: nothing to measure")
        return 1
    articles = pq.read_table(ARTICLES).slice(0, arguments.rows).to_pylist()
    tokenizer = Tokenizer.from_folder(demo_folder("causal-lm"))
    news = [ids[:MAX_TEXT_TOKENS] for ids in tokenizer.encode_batch([row["text"] for row in articles])]
    texts = tokenizer.encode_batch(pq.read_table(demo_records()).column("text").to_pylist())
    ending = tokenizer.encode_batch(["\nTopic:"])[0]
    labels = tuple(tuple(ids) for ids in tokenizer.encode_batch([f" {label}" for label in LABELS]))
    found = {dtype: measure(dtype, texts, [ids + ending for ids in news], labels) for dtype in DTYPES}
    report: dict[str, Any] = {**surroundings(2), "model": "demo", "rows": len(articles), "results": {}}
    for dtype, (best, perplexity) in found.items():
        share = sum(a == b for a, b in zip(best, found["bfloat16"][0], strict=True)) / len(best)
        right = sum(LABELS[place] == row["label"] for place, row in zip(best, articles, strict=True)) / len(best)
        report["results"][dtype] = {
            "labels_as_bfloat16": round(share, 4),
            "labels_right": round(right, 4),
            "perplexity": round(perplexity, 3),
        }
        print(f"{dtype:<10} labels as bfloat16 {share:.1%}   right {right:.1%}   perplexity {perplexity:.2f}")
    file = write_results(report, "int8_accuracy")
    print(f"written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
