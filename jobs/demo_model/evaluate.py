"""Held-out figures of the demo model, taken from the saved float16 folders: `python -m jobs.demo_model.evaluate`.

Shape letters: B rows   S tokens   V vocabulary   C labels
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gptj_batch.demo import (
    QUESTION_ANSWERING_LAYOUT,
    QUESTION_ANSWERING_PREFIX,
    QUESTION_PROMPT,
    SENTIMENT_PROMPT,
    TOPIC_PROMPT,
    demo_folder,
)
from gptj_batch.model import GPTJForCausalLM, GPTJForQuestionAnswering, GPTJForSequenceClassification
from jobs.demo_model.corpus import SENTIMENTS, TOPICS, Item, items
from jobs.demo_model.tokenizer import END_OF_TEXT

EVALUATION_SEED: Final = 0
NUM_EVALUATED_ITEMS: Final = 800
MAX_ANSWER_TOKENS: Final = 30
BATCH_ROWS: Final = 32


def evaluate(folder: Path, num_items: int = NUM_EVALUATED_ITEMS) -> dict[str, float]:
    """Return the share that is right, per figure, over held-out items; `folder` holds the three model folders."""
    heldout = list(items("heldout", num_items, EVALUATION_SEED))
    tokenizer = Tokenizer.from_file(str(folder / "causal-lm" / "tokenizer.json"))
    model = GPTJForCausalLM.from_pretrained(folder / "causal-lm", dtype="float32")
    topics = predict_by_prompt(model, tokenizer, [TOPIC_PROMPT.format(text=item.text) for item in heldout], TOPICS)
    prompts = [SENTIMENT_PROMPT.format(text=item.text) for item in heldout]
    sentiments = predict_by_prompt(model, tokenizer, prompts, SENTIMENTS)
    classifier = GPTJForSequenceClassification.from_pretrained(folder / "sequence-classification", dtype="float32")
    labels = predict_by_head(classifier, tokenizer, [item.text for item in heldout])
    return {
        "topic_by_prompt": _share(item.topic == topic for item, topic in zip(heldout, topics, strict=True)),
        "topic_by_prompt_new_templates": _share(
            item.topic == topic for item, topic in zip(heldout, topics, strict=True) if item.new_templates
        ),
        "sentiment_by_prompt": _share(item.sentiment == guess for item, guess in zip(heldout, sentiments, strict=True)),
        "topic_by_head": _share(item.topic == label for item, label in zip(heldout, labels, strict=True)),
        "generated_answer_exact": _generated_answers(model, tokenizer, heldout),
        **_spans(folder, tokenizer, heldout),
    }


def predict_by_prompt(
    model: GPTJForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str], labels: Sequence[str]
) -> list[str]:
    """Return each prompt's label with the greatest log-likelihood, summed over the label's tokens."""
    endings = [tokenizer.encode(" " + label).ids for label in labels]
    heads = [tokenizer.encode(prompt).ids for prompt in prompts]
    pairs = [(head, ending) for head in heads for ending in endings]
    scores = torch.cat([_log_likelihoods(model, batch) for batch in _batches(pairs)])
    return [labels[index] for index in scores.view(len(prompts), len(labels)).argmax(-1).tolist()]


def predict_by_head(model: GPTJForSequenceClassification, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Return each text's label by the classification head."""
    rows = [tokenizer.encode(text).ids for text in texts]
    with torch.inference_mode():
        chosen = [model(input_ids=padded(batch, 0)).logits.argmax(-1) for batch in _batches(rows)]
    return [model.config.id2label[index] for index in torch.cat(chosen).tolist()]


def predict_span(
    model: GPTJForQuestionAnswering, tokenizer: Tokenizer, question: str, context: str, allow_no_answer: bool = True
) -> str | None:
    """Return the best span of the context, or None where the null position scores higher."""
    encoding = tokenizer.encode(QUESTION_ANSWERING_LAYOUT.format(question=question, context=context))
    prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=question))
    num_prefix = sum(end <= prefix_chars for _, end in encoding.offsets)
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([encoding.ids]))
    starts, ends = output.start_logits[0], output.end_logits[0]
    pairs = starts[num_prefix:, None] + ends[None, num_prefix:]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu() & torch.ones_like(pairs, dtype=torch.bool).tril(
        MAX_ANSWER_TOKENS - 1
    )
    pairs = pairs.masked_fill(~allowed, -torch.inf)
    best = int(pairs.argmax())
    start, end = divmod(best, pairs.shape[1])
    if allow_no_answer and starts[num_prefix - 1] + ends[num_prefix - 1] > pairs.flatten()[best]:
        return None
    shift = prefix_chars + 1
    first = encoding.offsets[num_prefix + start][0] - shift
    return context[first : encoding.offsets[num_prefix + end][1] - shift]


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return rows of different lengths as one tensor, padded on the right: (B, S), int64."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


def _spans(folder: Path, tokenizer: Tokenizer, heldout: Sequence[Item]) -> dict[str, float]:
    """Score the first question of each item in turn, with its place in the item moving on."""
    model = GPTJForQuestionAnswering.from_pretrained(folder / "question-answering", dtype="float32")
    right, right_forced, right_new = [], [], []
    for index, item in enumerate(heldout):
        asked = item.questions[index % len(item.questions)]
        right.append(predict_span(model, tokenizer, asked.question, item.text) == asked.answer)
        right_forced.append(predict_span(model, tokenizer, asked.question, item.text, False) == asked.answer)
        if item.new_templates:
            right_new.append(right[-1])
    no_answers = [predict_span(model, tokenizer, item.unanswerable, item.text) is None for item in heldout]
    return {
        "span_exact": _share(right),
        "span_exact_without_no_answer": _share(right_forced),
        "span_exact_new_templates": _share(right_new),
        "no_answer_found": _share(no_answers),
    }


def _generated_answers(model: GPTJForCausalLM, tokenizer: Tokenizer, heldout: Sequence[Item]) -> float:
    """Return the share of questions whose greedy continuation is the answer and the end of the text."""
    right: list[bool] = []
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    pairs = []
    for index, item in enumerate(heldout):
        asked = item.questions[index % len(item.questions)]
        prompt = QUESTION_PROMPT.format(text=item.text, question=asked.question)
        pairs.append((tokenizer.encode(prompt).ids, [*tokenizer.encode(" " + asked.answer).ids, end_of_text]))
    for batch in _batches(pairs):
        with torch.inference_mode():
            best = model(input_ids=padded([head + ending for head, ending in batch], 0)).logits.argmax(-1)
        for row, (head, ending) in zip(best.tolist(), batch, strict=True):
            right.append(row[len(head) - 1 : len(head) - 1 + len(ending)] == ending)
    return _share(right)


def _log_likelihoods(model: GPTJForCausalLM, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Return the log-likelihood of each ending after its head: (B,)."""
    with torch.inference_mode():
        logits = model(input_ids=padded([head + ending for head, ending in pairs], 0)).logits.log_softmax(-1)
    sums = []
    for row, (head, ending) in zip(logits, pairs, strict=True):
        steps = row[len(head) - 1 : len(head) - 1 + len(ending)]
        sums.append(steps.gather(-1, torch.tensor(ending)[:, None]).sum())
    return torch.stack(sums)


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(rows), BATCH_ROWS):
        yield rows[first : first + BATCH_ROWS]


def _share(right: Iterable[bool]) -> float:
    outcomes = list(right)
    return round(sum(outcomes) / len(outcomes), 4)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=demo_folder("causal-lm").parent)
    parser.add_argument("--items", type=int, default=NUM_EVALUATED_ITEMS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(evaluate(arguments.folder, arguments.items), indent=2))


if __name__ == "__main__":
    main()
