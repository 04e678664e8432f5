"""How vLLM answers all rows, for every kind of work; each the cheapest exact way that was found.

Runs in vLLM's environment.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm import LLM, PoolingParams, SamplingParams

from jobs.bench.work import Numbers, WorkRow

Run = Callable[[], Numbers]


def generate(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Decode greedily."""
    sampling = [
        SamplingParams(temperature=0.0, max_tokens=row.max_new_tokens, ignore_eos=True, detokenize=False)
        for row in rows
    ]
    prompts = [_prompt(row.prompt) for row in rows]
    return lambda: [list(output.outputs[0].token_ids) for output in llm.generate(prompts, sampling, use_tqdm=False)]


def labels(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Read one-token labels from the first token that would be generated; score longer ones as part of a prompt."""
    if all(len(label) == 1 for row in rows for label in row.labels):
        return _next_token_labels(llm, rows)
    return _prompt_labels(llm, rows)


def _next_token_labels(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    sampling = [
        SamplingParams(
            temperature=0.0, max_tokens=1, logprob_token_ids=[label[0] for label in row.labels], detokenize=False
        )
        for row in rows
    ]
    prompts = [_prompt(row.prompt) for row in rows]

    def run() -> Numbers:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        return [
            [output.outputs[0].logprobs[0][label[0]].logprob for label in row.labels]
            for row, output in zip(rows, outputs, strict=True)
        ]

    return run


def _prompt_labels(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Score labels by the log-probabilities of prompts, one prompt per row and label.

    vLLM computes such prompts whole unless told that it may read its cache; then positions found there get no
    log-probabilities, which is no loss: the labels stand at the end. The labels of a row follow each other, so that all
    but the first find the row's full blocks, even when they share a step.
    """
    prompts = [_prompt([*row.prompt, *label]) for row in rows for label in row.labels]
    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=False, detokenize=False
    )

    def run() -> Numbers:
        outputs = iter(llm.generate(prompts, sampling, use_tqdm=False))
        return [[_tail(next(outputs).prompt_logprobs, label) for label in row.labels] for row in rows]

    return run


def labels_whole(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Score labels as `prompt_logprobs` does unless told otherwise: every prompt whole."""
    prompts = [_prompt([*row.prompt, *label]) for row in rows for label in row.labels]
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)

    def run() -> Numbers:
        outputs = iter(llm.generate(prompts, sampling, use_tqdm=False))
        return [[_tail(next(outputs).prompt_logprobs, label) for label in row.labels] for row in rows]

    return run


def labels_by_token(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Score labels token by token: a request for every beginning of a label, its next tokens' probabilities read."""
    prompts: list[Any] = []
    sampling: list[SamplingParams] = []
    places: list[tuple[int, dict[int, list[int]]]] = []  # the row, and for each next token the labels it belongs to
    for index, row in enumerate(rows):
        for beginning, follow in _beginnings(row.labels).items():
            prompts.append(_prompt([*row.prompt, *beginning]))
            sampling.append(
                SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=list(follow), detokenize=False)
            )
            places.append((index, follow))

    def run() -> Numbers:
        scores = [[0.0] * len(row.labels) for row in rows]
        for (index, follow), output in zip(places, llm.generate(prompts, sampling, use_tqdm=False), strict=True):
            for token, members in follow.items():
                for member in members:
                    scores[index][member] += output.outputs[0].logprobs[0][token].logprob
        return scores

    return run


def classify(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Return the logits of the classification head."""
    prompts = [_prompt(row.prompt) for row in rows]
    pooling = PoolingParams(use_activation=False)
    return lambda: [
        output.outputs.data.float().tolist()
        for output in llm.encode(prompts, pooling_params=pooling, pooling_task="classify", use_tqdm=False)
    ]


def _prompt(token_ids: Sequence[int]) -> Any:
    return {"prompt_token_ids": list(token_ids)}


def _tail(logprobs: Any, label: Sequence[int]) -> float:
    return float(sum(logprobs[place - len(label)][token].logprob for place, token in enumerate(label)))


def _beginnings(labels: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Return, for every beginning of a label, the tokens that follow it and the labels that go on with each."""
    tree: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for member, label in enumerate(labels):
        for place, token in enumerate(label):
            tree.setdefault(label[:place], {}).setdefault(token, []).append(member)
    return tree


KINDS: dict[str, Callable[[LLM, Sequence[WorkRow]], Run]] = {
    "generate": generate,
    "labels": labels,
    "labels-whole": labels_whole,
    "labels-by-token": labels_by_token,
    "classify": classify,
}
