"""How transformers answers one batch, for every kind of work; each the fastest exact way that its users have.

Shape letters: B rows of a batch, W the longest of them, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from jobs.bench.batches import pad_left, pad_right
from jobs.bench.work import Numbers, WorkRow

Answer = Callable[[Any, Sequence[WorkRow], dict[str, Any]], Numbers]


def generate(model: Any, rows: Sequence[WorkRow], state: dict[str, Any]) -> Numbers:
    """Decode greedily until the longest answer of the batch is done, which is what a batch costs; cut the others."""
    padded = pad_left([row.prompt for row in rows])
    generated = model.generate(
        padded.input_ids,
        attention_mask=padded.mask,
        max_new_tokens=max(row.max_new_tokens for row in rows),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    new = generated[:, padded.input_ids.shape[1] :].tolist()
    return [tokens[: row.max_new_tokens] for row, tokens in zip(rows, new, strict=True)]


def labels(model: Any, rows: Sequence[WorkRow], state: dict[str, Any]) -> Numbers:
    """Read labels of one token from the last position's logits; longer ones are continuations, a row for each."""
    if all(len(label) == 1 for row in rows for label in row.labels):
        padded = pad_left([row.prompt for row in rows])
        logits = model(
            padded.input_ids,
            attention_mask=padded.mask,
            position_ids=padded.position_ids,
            use_cache=False,
            logits_to_keep=1,
        ).logits
        return one_token_labels(logits[:, -1], rows)
    return [_continuations(model, row) for row in rows]


def one_token_labels(logits: Tensor, rows: Sequence[WorkRow]) -> Numbers:
    """Return every label's log-probability.

    logits: (B, V)
    """
    logprobs = logits.float().log_softmax(-1)
    return [logprobs[index, [label[0] for label in row.labels]].tolist() for index, row in enumerate(rows)]


def _continuations(model: Any, row: WorkRow) -> list[float]:
    """Score every label of a row by a pass over prompt and label; the labels are the batch."""
    padded = pad_left([[*row.prompt, *label[:-1]] for label in row.labels])
    longest = max(len(label) for label in row.labels)
    logits = model(
        padded.input_ids,
        attention_mask=padded.mask,
        position_ids=padded.position_ids,
        use_cache=False,
        logits_to_keep=longest,
    ).logits
    logprobs = logits.float().log_softmax(-1)
    return [
        sum(float(logprobs[index, longest - len(label) + place, token]) for place, token in enumerate(label))
        for index, label in enumerate(row.labels)
    ]


def labels_after_own(model: Any, rows: Sequence[WorkRow], state: dict[str, Any]) -> Numbers:
    """Score labels with each row's prompt computed once, by hand: its cache is copied for every label."""
    return [_after_own_prompt(model, row) for row in rows]


def _after_own_prompt(model: Any, row: WorkRow) -> list[float]:
    computed: Any = transformers.DynamicCache()
    prompt = torch.tensor([row.prompt])
    first = model(prompt, past_key_values=computed, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
    scores = [float(first[label[0]]) for label in row.labels]
    longest = max(len(label) for label in row.labels)
    if longest == 1:
        return scores
    # Padded behind: what stands after a label's end is seen by nothing that is read.
    ids = torch.tensor([[*label[:-1], *[0] * (longest - len(label))] for label in row.labels])
    cache = _copies([(layer.keys, layer.values) for layer in computed.layers], len(row.labels))
    positions = torch.arange(len(row.prompt), len(row.prompt) + longest - 1).expand(len(row.labels), -1)
    rest = model(ids, position_ids=positions, past_key_values=cache).logits.float().log_softmax(-1)
    return [
        score + sum(float(rest[index, place, token]) for place, token in enumerate(label[1:]))
        for index, (score, label) in enumerate(zip(scores, row.labels, strict=True))
    ]


def _copies(layers: Sequence[tuple[Tensor, Tensor]], count: int) -> transformers.DynamicCache:
    """Return a cache that holds one row's keys and values so many times.

    layers: (1, H, T, D) each, for H heads, T tokens, D channels
    """
    cache = transformers.DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), index)
    return cache


def labels_after_shared(model: Any, rows: Sequence[WorkRow], state: dict[str, Any]) -> Numbers:
    """Read one-token labels with the common beginning computed once, by hand: its cache is copied for every batch."""
    if "shared" not in state:
        shared = common_beginning([row.prompt for row in state["all_rows"]])
        computed: Any = transformers.DynamicCache()
        model(torch.tensor([shared]), past_key_values=computed, logits_to_keep=1)
        state.update(shared=shared, layers=[(layer.keys, layer.values) for layer in computed.layers])
    shared = state["shared"]
    assert all(row.prompt[: len(shared)] == shared for row in rows), "the rows of a run begin alike"
    cache = _copies(state["layers"], len(rows))
    padded = pad_left([row.prompt[len(shared) :] for row in rows], first_position=len(shared))
    logits = model(
        padded.input_ids,
        attention_mask=torch.cat([torch.ones(len(rows), len(shared), dtype=torch.int64), padded.mask], dim=1),
        position_ids=padded.position_ids,
        past_key_values=cache,
        logits_to_keep=1,
    ).logits
    return one_token_labels(logits[:, -1], rows)


def common_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """Return the tokens that all prompts begin with, leaving each at least one of its own."""
    first, last = min(prompts), max(prompts)  # all others lie between these two
    length = 0
    while length < min(map(len, prompts)) - 1 and first[length] == last[length]:
        length += 1
    return first[:length]


def classify(model: Any, rows: Sequence[WorkRow], state: dict[str, Any]) -> Numbers:
    """Return the logits of the classification head."""
    padded = pad_right([row.prompt for row in rows], model.config.pad_token_id)
    logits: Tensor = model(padded.input_ids, attention_mask=padded.mask, use_cache=False).logits
    outputs: Numbers = logits.float().tolist()
    return outputs


def span(model: Any, rows: Sequence[WorkRow], state: dict[str, Any]) -> Numbers:
    """Return the start and the end logits of every context token."""
    padded = pad_right([row.prompt for row in rows])
    output = model(padded.input_ids, attention_mask=padded.mask)
    return [
        [
            *output.start_logits[index, row.first_token : len(row.prompt)].float().tolist(),
            *output.end_logits[index, row.first_token : len(row.prompt)].float().tolist(),
        ]
        for index, row in enumerate(rows)
    ]


KINDS: dict[str, Answer] = {
    "generate": generate,
    "labels": labels,
    "labels-after-own": labels_after_own,
    "labels-after-shared": labels_after_shared,
    "classify": classify,
    "span": span,
}
