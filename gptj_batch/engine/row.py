"""Row: a request that one pass answers, as the tokens it feeds and those whose hidden states it reads."""

from gptj_batch.engine.label_tree import LabelTree
from gptj_batch.requests import HeadRequest, LabelRequest, SpanRequest


class Row:
    """A request that waits for its pass.

    context: the prompt's token ids    tree: what stands behind it    num_read: its last tokens, which the head reads
    """

    def __init__(self, uid: int, request: HeadRequest) -> None:
        self.uid = uid
        self.request = request
        self.context = [int(token) for token in request.prompt_token_ids]
        labels = request.label_token_ids if isinstance(request, LabelRequest) else ()
        self.tree = LabelTree.build([tuple(map(int, label)) for label in labels])
        first = request.first_token if isinstance(request, SpanRequest) else len(self.context) - 1
        self.num_read = self.num_tokens - first

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the pass over this row feeds."""
        return len(self.context) + self.tree.num_branch_tokens

    @property
    def positions(self) -> list[int]:
        """Return the position of every token that is fed."""
        num_context = len(self.context)
        return [*range(num_context), *(num_context - 1 + depth for depth in self.tree.depths[1:])]
