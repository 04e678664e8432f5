"""Row: a request that one pass answers, as the tokens it feeds and those whose hidden states it reads."""

from gptj_batch.engine.label_tree import LabelTree
from gptj_batch.engine.shared_prefix import Share
from gptj_batch.requests import EmbedRequest, HeadRequest, LabelRequest, ScoreRequest, SpanRequest


class Row:
    """A request that waits for its pass.

    context: the prompt's token ids that are fed; the last of a prompt to be scored is only predicted
    tree: what stands behind it    targets: lists of (place among the tokens read, token to be predicted there)
    first_read: from which token of the context on the head reads hidden states; the tree's are read too
    share: the beginning of the context that this row need not feed itself
    """

    def __init__(self, uid: int, request: HeadRequest) -> None:
        self.uid = uid
        self.request = request
        self.context = [int(token) for token in request.prompt_token_ids]
        self.num_prompt_tokens = len(self.context)
        self.tree = LabelTree.build(())
        self.targets: list[list[tuple[int, int]]] = []
        self.first_read = len(self.context) - 1
        self.share: Share | None = None
        if isinstance(request, LabelRequest):
            self.tree = LabelTree.build([tuple(map(int, label)) for label in request.label_token_ids])
            self.targets = self.tree.targets
        elif isinstance(request, SpanRequest):
            self.first_read = request.first_token
        elif isinstance(request, ScoreRequest):
            self.first_read = request.first_token - 1
            self.targets = [[target] for target in enumerate(self.context[request.first_token :])]
            self.context.pop()
        elif isinstance(request, EmbedRequest) and request.pooling == "mean":
            self.first_read = 0

    @property
    def num_read(self) -> int:
        """Return how many of its last tokens the head reads."""
        return len(self.context) - self.first_read + self.tree.num_branch_tokens

    @property
    def num_shared(self) -> int:
        """Return how many tokens of its context come from a shared prefix."""
        return 0 if self.share is None else self.share.num_tokens

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the pass over this row feeds, the shared ones not counted."""
        return len(self.context) - self.num_shared + self.tree.num_branch_tokens

    @property
    def token_ids(self) -> list[int]:
        """Return the tokens that it feeds."""
        return self.context[self.num_shared :] + self.tree.token_ids[1:]

    @property
    def positions(self) -> list[int]:
        """Return the position of every token that it feeds."""
        num_context = len(self.context)
        return [*range(self.num_shared, num_context), *(num_context - 1 + depth for depth in self.tree.depths[1:])]

    def num_layers(self, n_layer: int) -> int | None:
        """Return how many of the model's layers it needs; None for all of them with the final norm behind.

        A request names a layer by its place in transformers' `hidden_states`, from 0 (the embedding) to n_layer.
        """
        layer = self.request.layer if isinstance(self.request, EmbedRequest) else None
        wanted = n_layer if layer is None else layer % (n_layer + 1)
        return None if wanted == n_layer else wanted
