"""SinglePass: label likelihoods, in one pass over the context with the labels as branches behind it, without a cache.

Shape letters: see gptj_batch.engine. Here Q is a row's branch tokens and S the tokens whose logits are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from gptj_batch.model import GPTJForCausalLM
from gptj_batch.requests import LabelRequest
from gptj_batch.results import Failed, Labelled

# Logits are made and reduced so many rows at a time: 128 x 50,400 in float32 are 26 MB.
MAX_LOGIT_ROWS = 128


@dataclass(slots=True)
class LabelTree:
    """A request's labels as a tree behind its context, shared beginnings held once.

    Node 0 is the context's last token. Every other node is a label's token that a further one follows: a label's last
    token is predicted but never fed, so one-token labels add no node.

    token_ids, parents, depths: of the nodes, in an order in which parents come first
    targets: per label, its (node, token) pairs, where the token is predicted by the node
    """

    token_ids: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    targets: list[list[tuple[int, int]]] = field(default_factory=list)

    @classmethod
    def build(cls, labels: tuple[tuple[int, ...], ...]) -> "LabelTree":
        """Merge the labels' common beginnings."""
        tree = cls()
        children: dict[tuple[int, int], int] = {}
        for label in labels:
            node, targets = 0, [(0, label[0])]
            for token, following in pairwise(label):
                child = children.setdefault((node, token), len(tree.token_ids))
                if child == len(tree.token_ids):
                    tree.token_ids.append(token)
                    tree.parents.append(node)
                    tree.depths.append(tree.depths[node] + 1)
                node = child
                targets.append((node, following))
            tree.targets.append(targets)
        return tree

    @property
    def num_branch_tokens(self) -> int:
        """Return how many tokens stand behind the context."""
        return len(self.token_ids) - 1

    def seen(self, num_context: int) -> Tensor:
        """Return which tokens the branch tokens may look at: the context, their ancestors, themselves.

        returns: (Q, num_context + Q), bool
        """
        seen = torch.zeros(self.num_branch_tokens, num_context + self.num_branch_tokens, dtype=torch.bool)
        seen[:, :num_context] = True
        for node in range(1, len(self.token_ids)):
            if self.parents[node] > 0:
                seen[node - 1] = seen[self.parents[node] - 1]
            seen[node - 1, num_context + node - 1] = True
        return seen


class LabelRow:
    """A request that waits to be scored."""

    def __init__(self, uid: int, request: LabelRequest) -> None:
        self.uid = uid
        self.request = request
        self.context = [int(token) for token in request.prompt_token_ids]
        self.tree = LabelTree.build(tuple(tuple(map(int, label)) for label in request.label_token_ids))

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the pass over this row feeds."""
        return len(self.context) + self.tree.num_branch_tokens


class TreeAttend:
    """Attention within each row: the context causally, the branches along the tree."""

    def __init__(self, rows: list[LabelRow], device: torch.device) -> None:
        self._spans: list[tuple[int, int, int, Tensor | None]] = []
        first = 0
        for row in rows:
            num_context, stop = len(row.context), first + row.num_tokens
            seen = row.tree.seen(num_context).to(device) if row.tree.num_branch_tokens else None
            self._spans.append((first, first + num_context, stop, seen))
            first = stop

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in one layer; see `gptj_batch.model.attention.Attend`.

        query, key, value: (T, H, D)    returns: (T, H, D)
        """
        output = torch.empty_like(query)
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        for first, branch, stop, seen in self._spans:
            context, whole = slice(first, branch), slice(first, stop)
            mixed = F.scaled_dot_product_attention(
                query[:, :, context], key[:, :, context], value[:, :, context], is_causal=True
            )
            output[context] = mixed[0].transpose(0, 1)
            if seen is not None:
                mixed = F.scaled_dot_product_attention(
                    query[:, :, branch:stop], key[:, :, whole], value[:, :, whole], attn_mask=seen
                )
                output[branch:stop] = mixed[0].transpose(0, 1)
        return output


class SinglePass:
    """Score waiting label requests, as many per step as the token budget allows, shortest first.

    What has come in by the time the last batch is used up is sorted and served as the next one, so that nothing is
    overtaken for ever.
    """

    def __init__(self, model: GPTJForCausalLM, max_step_tokens: int) -> None:
        self._model = model
        self._max_step_tokens = max_step_tokens
        self._arrived: list[LabelRow] = []
        self._sorted: list[LabelRow] = []  # longest first: rows are taken from the end

    @property
    def has_unfinished(self) -> bool:
        """Say whether any row waits."""
        return bool(self._arrived or self._sorted)

    def __iter__(self) -> Iterator[LabelRow]:
        yield from self._sorted
        yield from self._arrived

    def add(self, row: LabelRow) -> None:
        """Let a row wait for its turn."""
        self._arrived.append(row)

    def release(self, row: LabelRow) -> None:
        """Let go of a row that has been cancelled."""
        (self._sorted if row in self._sorted else self._arrived).remove(row)

    def step(self) -> list[tuple[LabelRow, Labelled | Failed]]:
        """Score the next rows."""
        rows = self._take_rows()
        if not rows:
            return []
        return [(row, _result(row, scores)) for row, scores in zip(rows, self._score(rows), strict=True)]

    def _take_rows(self) -> list[LabelRow]:
        """Take rows up to the token budget; a single row may be longer than it."""
        if not self._sorted:
            self._sorted = sorted(self._arrived, key=lambda row: row.num_tokens, reverse=True)
            self._arrived = []
        rows: list[LabelRow] = []
        budget = self._max_step_tokens
        while self._sorted and (not rows or self._sorted[-1].num_tokens <= budget):
            rows.append(self._sorted.pop())
            budget -= rows[-1].num_tokens
        return rows

    @torch.inference_mode()
    def _score(self, rows: list[LabelRow]) -> list[list[float]]:
        """Return the log-likelihood of every row's every label."""
        device = self._model.lm_head.weight.device
        token_ids: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []  # the step's tokens that predict something: context ends and branch tokens
        targets: list[tuple[int, int]] = []  # (index into logit_rows, token), label after label
        for row in rows:
            num_context = len(row.context)
            token_ids += row.context + row.tree.token_ids[1:]
            positions += [*range(num_context), *(num_context - 1 + depth for depth in row.tree.depths[1:])]
            first_node = len(logit_rows)
            logit_rows += range(len(token_ids) - row.tree.num_branch_tokens - 1, len(token_ids))
            targets += [(first_node + node, token) for label in row.tree.targets for node, token in label]
        hidden = self._model.transformer.encode(
            torch.tensor(token_ids, device=device), torch.tensor(positions, device=device), TreeAttend(rows, device)
        )
        logprobs = self._token_logprobs(hidden[torch.tensor(logit_rows, device=device)], targets)
        following = iter(logprobs)
        return [[sum(next(following) for _ in label) for label in row.tree.targets] for row in rows]

    def _token_logprobs(self, hidden: Tensor, targets: list[tuple[int, int]]) -> list[float]:
        """Return the log-probability of every target, log-softmax in float32 over the whole vocabulary.

        hidden: (S, E)
        """
        nodes, tokens = torch.tensor(targets, device=hidden.device).unbind(-1)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for first in range(0, len(hidden), MAX_LOGIT_ROWS):
            logits = self._model.lm_head(hidden[first : first + MAX_LOGIT_ROWS]).float()
            here = ((nodes >= first) & (nodes < first + MAX_LOGIT_ROWS)).nonzero()[:, 0]
            local = nodes[here] - first
            logprobs[here] = logits[local, tokens[here]] - logits.logsumexp(-1)[local]
        on_host: list[float] = logprobs.tolist()
        return on_host


def _result(row: LabelRow, scores: list[float]) -> Labelled | Failed:
    key = row.request.key
    if not all(-torch.inf < score < torch.inf for score in scores):
        return Failed(key=key, error="the model's scores for the labels are not finite; try a wider dtype (float32)")
    return Labelled(key=key, label_logprobs=tuple(scores), num_prompt_tokens=len(row.context))
