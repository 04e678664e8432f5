"""LabelTree: a request's labels behind its context, shared beginnings held once.

Shape letters: see gptj_batch.engine. Here Q is a row's branch tokens.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(slots=True)
class LabelTree:
    """Labels as branches; a row without labels has none.

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
    def build(cls, labels: Ordered[Ordered[int]]) -> "LabelTree":
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
