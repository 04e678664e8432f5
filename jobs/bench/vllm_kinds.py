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
    """Score labels token by token: a request for every beginning of a label, its next tokens' probabilities read.

    A label of one token so takes no more than the row's own request. The requests of a row follow each other: all but
    the first find the row's full blocks in the cache, even when they share a step.
    """
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


def prompt_labels(llm: LLM, rows: Sequence[WorkRow]) -> Run:
    """Score labels as the ends of prompts, a prompt per row and label, the way that vLLM documents.

    Such prompts are computed whole: a position found in the cache would get no log-probability. Told to read the cache
    all the same (the labels stand behind what is found), vLLM is faster, but not as fast as `labels`.
    """
    prompts = [_prompt([*row.prompt, *label]) for row in rows for label in row.labels]
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)

    def run() -> Numbers:
        outputs = iter(llm.generate(prompts, sampling, use_tqdm=False))
        return [[_tail(next(outputs).prompt_logprobs, label) for label in row.labels] for row in rows]

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
    "prompt-labels": prompt_labels,
    "classify": classify,
}
