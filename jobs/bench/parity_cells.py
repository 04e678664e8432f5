"""The cells of the table of tasks: settings, and what transformers says of a row that was done with them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from jobs.bench.parity_models import CAUSAL, MULTI, REGRESSION, SINGLE, SPAN
from jobs.bench.parity_oracle import Oracle
from jobs.bench.parity_spans import (
    MAX_ANSWER_TOKENS,
    STRIDE_TOKENS,
    WINDOW_TOKENS,
    Answer,
    best_of_all,
    best_of_pipeline,
)

Record = Mapping[str, Any]
Found = tuple[bool, float]
"""Whether what was decided is the same (a text, a label, a place), and the largest difference of a number."""
Check = Callable[[Oracle, Record, dict[str, Any], dict[str, Any]], Found]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to set a task.

    kind: which checkpoints it is run on    texts: where its records come from    check: takes the settings as well
    """

    task: str
    settings: str
    oracle: str
    number: str
    kind: str
    texts: str
    block: dict[str, Any]
    check: Check


LABELS: Final = ["World", "Sports", "Business", "Sci/Tech"]
TEXTS: Final = {"World": " news of the world", "Sports": " sports", "Business": " business and money"}
TOPIC: Final = "{{ text }}\nTopic:"
EMPTY: Final = ("N/A", "[MASK]", "")
_GENERATION: Final = (
    "max_new_tokens", "min_new_tokens", "repetition_penalty", "num_beams", "length_penalty", "early_stopping",
)  # fmt: skip


def generated(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
    """Compare the text, its length, and the log-probability of every token."""
    prompt = oracle.encode(f"{record['text']}\nSummary:")
    theirs = oracle.generate(prompt, **{name: block[name] for name in _GENERATION if name in block})
    text = oracle.tokenizer.decode(theirs, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ours = row["generated_logprobs"]
    is_same = (row["generated_text"], row["num_generated_tokens"]) == (text, len(theirs)) and len(ours) == len(theirs)
    return is_same, largest(ours, oracle.logprobs(prompt, theirs)) if is_same else 0.0


def labelled(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
    """Compare the label, and every label's probability, each likelihood computed by itself."""
    scores = _label_scores(oracle, record["text"], block)
    if block.get("calibrate") == "content_free":
        of_nothing = torch.stack([_label_scores(oracle, text, block).softmax(0) for text in EMPTY]).mean(0)
        scores = scores - of_nothing.log()
    return _same_labels(block["labels"], scores.softmax(0).tolist(), row)


def _label_scores(oracle: Oracle, text: str, block: dict[str, Any]) -> torch.Tensor:
    labels = block["labels"]
    texts = labels.values() if isinstance(labels, dict) else [f" {label}" for label in labels]
    prompt = oracle.encode(f"{text}\nTopic:")
    found = []
    for label in texts:
        logprobs = oracle.logprobs(prompt, oracle.encode(label))
        found.append(sum(logprobs) / (len(logprobs) if block.get("likelihood") == "mean" else 1))
    return torch.tensor(found, dtype=torch.double)


def _same_labels(labels: Any, expected: list[float], row: dict[str, Any]) -> Found:
    scores = [score for _, score in row["label_scores"]]
    return row["label"] == list(labels)[expected.index(max(expected))], largest(scores, expected)


def of_head(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
    """Compare a trained classifier's labels and probabilities, or its value."""
    logits = oracle.logits(oracle.encode(record["text"]))
    names = [oracle.model.config.id2label[place] for place in range(len(logits))]
    if len(names) == 1:
        return True, abs(row["value"] - float(logits[0]))
    if oracle.model.config.problem_type != "multi_label_classification":
        return _same_labels(names, logits.softmax(0).tolist(), row)
    expected = logits.sigmoid().tolist()
    ranked = sorted(zip(names, expected, strict=True), key=lambda item: -item[1])
    chosen = [name for name, score in ranked if score >= block["multi_label_threshold"]]
    return row["label"] == chosen, largest([score for _, score in row["label_scores"]], expected)


def spans_of(best: Callable[[Oracle, str, str], Answer]) -> Check:
    """Return what compares the place of an answer, and its score."""

    def check(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
        start, end, score = best(oracle, record["question"], record["context"])
        is_same = (row["answer_start"], row["answer_end"]) == (start, end)
        return is_same, abs(row["answer_score"] - score) if is_same else 0.0

    return check


def verbatim(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
    """Look whether every answer is what its context holds at its offsets."""
    return all(record["context"][a["start"] : a["end"]] == a["text"] != "" for a in row["answers"]), 0.0


def scored(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
    """Compare the mean log-likelihood with the loss; a long text's with the recipe for perplexity."""
    context = oracle.encode(f"{record['title']}\n") if "context" in block else []
    ids = [*context, *oracle.encode(record["text"])]
    size, stride = oracle.model.config.n_positions, block.get("stride_tokens", 0)
    total, scored_until, first = 0.0, max(1, len(context)), 0
    while scored_until < len(ids):
        window = ids[first : first + size]
        fresh = first + len(window) - scored_until
        total -= oracle.loss(window, scored_until - first) * fresh
        first, scored_until = first + stride, first + len(window)
    number = len(ids) - max(1, len(context))
    per_token = abs(row["logprob_sum"] - total) / number
    perplexity = math.exp(-total / number)
    is_same = row["num_scored_tokens"] == number and math.isclose(row["perplexity"], perplexity, rel_tol=1e-4)
    return is_same, per_token


def embedded(oracle: Oracle, record: Record, row: dict[str, Any], block: dict[str, Any]) -> Found:
    """Compare every coordinate with the hidden states."""
    states = oracle.hidden(oracle.encode(record["text"]), block.get("layer", -1))
    vector = states[-1] if block["pooling"] == "last" else states.mean(0)
    vector = vector / vector.norm() if block.get("normalize") else vector
    return True, largest(row["embedding"], vector.tolist())


def largest(ours: list[float], theirs: list[float]) -> float:
    """Return the largest difference, infinite where there are not as many numbers."""
    if len(ours) != len(theirs):
        return math.inf
    return max((abs(one - other) for one, other in zip(ours, theirs, strict=True)), default=0.0)


def _cell(
    task: str, settings: str, oracle: str, number: str, kind: str, texts: str, check: Check, /, **block: Any
) -> Cell:
    return Cell(
        task=task, settings=settings, oracle=oracle, number=number, kind=kind, texts=texts, block=block, check=check
    )


def _generate(settings: str, oracle: str, **block: Any) -> Cell:
    block = {"kind": "generate", "prompt": "{{ text }}\nSummary:", "logprobs": True, "max_new_tokens": 24, **block}
    return _cell("generate", settings, oracle, "log-probability of a token", CAUSAL, "news", generated, **block)


def _classify(settings: str, **block: Any) -> Cell:
    block = {"kind": "classify", "prompt": TOPIC, "labels": LABELS, **block}
    return _cell("classify by prompt", settings, "log_softmax, each label alone", "probability", CAUSAL, "news",
                 labelled, **block)  # fmt: skip


def _head(settings: str, oracle: str, number: str, kind: str, **block: Any) -> Cell:
    block = {"kind": "classify", "method": "head", "text": "{{ text }}", **block}
    return _cell("classify by head", settings, oracle, number, kind, "news", of_head, **block)


def _extract(settings: str, oracle: str, check: Check, **block: Any) -> Cell:
    sizes = {"window_tokens": WINDOW_TOKENS, "stride_tokens": STRIDE_TOKENS, "max_answer_tokens": MAX_ANSWER_TOKENS}
    block = {"kind": "extract", "question": "{{ question }}", "context": "{{ context }}", "allow_no_answer": True,
             "max_question_tokens": 128, **sizes, **block}  # fmt: skip
    return _cell("extract by head", settings, oracle, "score", SPAN, "questions", check, **block)


def _score(settings: str, oracle: str, texts: str, **block: Any) -> Cell:
    block = {"kind": "score", "text": "{{ text }}", **block}
    return _cell("score", settings, oracle, "log-likelihood a token", CAUSAL, texts, scored, **block)


def _embed(settings: str, **block: Any) -> Cell:
    block = {"kind": "embed", "text": "{{ text }}", **block}
    return _cell("embed", settings, "hidden_states", "coordinate", CAUSAL, "reviews", embedded, **block)


CELLS: Final = (
    _generate("greedy", "generate"),
    _generate("repetition_penalty 1.3, min_new_tokens 8", "generate", repetition_penalty=1.3, min_new_tokens=8),
    _generate("num_beams 4, length_penalty 0.6, early_stopping", "generate", num_beams=4, length_penalty=0.6,
              early_stopping=True, max_new_tokens=16),
    _classify("sum"),
    _classify("mean, labels with texts", likelihood="mean", labels=TEXTS),
    _classify("calibrate content_free", calibrate="content_free"),
    _head("single label", "softmax of the logits", "probability", SINGLE),
    _head("several labels", "sigmoid of the logits", "probability", MULTI, multi_label_threshold=0.4),
    _head("regression", "logits", "value", REGRESSION),
    _extract("global_softmax, windows", "all spans from the logits", spans_of(best_of_all)),
    _extract("scoring pipeline, windows", "the pipeline of 4.57.6 by hand", spans_of(best_of_pipeline),
             scoring="pipeline", align_to_words=False),
    _cell("extract by prompt", "max_answers 2", "the context itself", "offsets", CAUSAL, "questions", verbatim,
          kind="extract", method="prompt", prompt="{{ context }}\nQuestion: {{ question }}\nAnswer:",
          context="{{ context }}", max_answers=2, max_answer_tokens=12, truncate="left"),
    _score("a text", "loss", "reviews"),
    _score("a text behind a context", "loss", "news", context="{{ title }}\n"),
    _score("long texts, stride_tokens 200", "the recipe for perplexity", "long", stride_tokens=200),
    _embed("mean", pooling="mean"),
    _embed("last, normalize", pooling="last", normalize=True),
    _embed("mean, layer 1", pooling="mean", layer=1),
)  # fmt: skip
