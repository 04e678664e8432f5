"""Body: GPT-J's blocks as the engine runs them, over packed tokens and weights prepared for the device.

Shape letters: see gptj_batch.engine. Here F is the width of the feed-forward half, R the rotary channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.engine.linear import Linear, LinearFactory
from gptj_batch.engine.padding import padded_size
from gptj_batch.engine.token_rows import TokenRows
from gptj_batch.model import GPTJForCausalLM, HeadModel
from gptj_batch.model.attention import Attend
from gptj_batch.model.block import GPTJBlock
from gptj_batch.model.rotary import angles, rotate

MAX_HELD_HEADS = 64


class FusedAttend(Protocol):
    """Rotate queries and keys, and mix the values of the tokens that each token may see."""

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor, *, only_read: bool = False) -> Tensor:
        """Attend in one layer.

        Rows of padding may follow the step's T tokens; what is returned for them does not matter. Nor does it, with
        `only_read`, for tokens whose results nobody reads behind the last block: only their keys and values count.

        projected: (T', 3 * E), queries, keys and values, not rotated    cos, sin: (T', R // 2), float32
        returns: (T', E)
        """
        ...


class Rotated:
    """A `FusedAttend` made of a plain `Attend`, which knows neither rotation nor padding."""

    def __init__(self, attend: Attend, num_tokens: int, num_heads: int) -> None:
        self._attend = attend
        self._num_tokens = num_tokens
        self._num_heads = num_heads

    def __call__(self, layer: int, projected: Tensor, cos: Tensor, sin: Tensor, *, only_read: bool = False) -> Tensor:
        """Attend in one layer, for every token; see `FusedAttend`."""
        num_tokens, num_padding = self._num_tokens, len(projected) - self._num_tokens
        query, key, value = projected[:num_tokens].unflatten(-1, (3, self._num_heads, -1)).unbind(1)
        cos, sin = cos[:num_tokens], sin[:num_tokens]
        mixed = self._attend(layer, rotate(query, cos, sin), rotate(key, cos, sin), value).flatten(-2)
        return F.pad(mixed, (0, 0, 0, num_padding)) if num_padding else mixed


@dataclass(frozen=True)
class _Layer:
    """One block. Its norm is small, and stays what it is in the model."""

    block: GPTJBlock
    qkv: Linear
    fc_in: Linear
    out_proj: Linear
    fc_out: Linear

    def run(
        self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: FusedAttend, read: Tensor | None = None
    ) -> Tensor:
        """Return x + attention(norm(x)) + mlp(norm(x)); the sums are made by the products that they follow.

        With `read` only for these rows; the others give their keys and values, and nothing else is made of them.

        x: (T', E)    cos, sin: (T', R // 2), float32    read: (S',), int64    returns: (T', E) or (S', E)
        """
        normed = self.block.ln_1(x)
        mixed = attend(layer, self.qkv(normed), cos, sin, only_read=read is not None)
        if read is not None:
            x, normed, mixed = x[read], normed[read], mixed[read]
        return self.fc_out(self.fc_in(normed), plus=self.out_proj(mixed, plus=x))

    def before_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries, keys and values, and x + mlp(norm(x)): all that needs no other token.

        x: (T', E)    returns: (T', 3 * E), (T', E)
        """
        normed = self.block.ln_1(x)
        return self.qkv(normed), self.fc_out(self.fc_in(normed), plus=x)

    def after_attention(self, base: Tensor, mixed: Tensor, read: Tensor | None = None) -> Tensor:
        """Return x + attention(norm(x)) + mlp(norm(x)) of what `before_attention` gave, and of what was mixed.

        base, mixed: (T', E)    read: (S',), int64    returns: (T', E) or (S', E)
        """
        if read is not None:
            base, mixed = base[read], mixed[read]
        return self.out_proj(mixed, plus=base)


class Body:
    """Run packed tokens through the blocks, and rows of what comes out through a head's projection.

    GPT-J adds no positions to its embeddings, and its feed-forward half reads the same norm as its attention. So of the
    first block all but the attention itself and its output projection, eleven twelfths of the products, depends on a
    token alone, and is kept for when it comes again (Graef 2024, "Transformer tricks: Precomputing the first layer",
    arXiv 2402.13388), on a CPU: there a product's rows depend on nothing else, and no bit on what was kept.
    """

    def __init__(self, model: HeadModel, linears: LinearFactory) -> None:
        shape = model.config
        self.num_heads = shape.n_head
        self.device = model.device
        self._wte = model.transformer.wte
        self._ln_f = model.transformer.ln_f
        blocks = (cast(GPTJBlock, block) for block in model.transformer.h)
        self._layers = [_prepare(block, linears, shape.activation_function) for block in blocks]
        self._lm_head = linears.make([model.lm_head]) if isinstance(model, GPTJForCausalLM) else None
        self._head_rows: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._pads = model.device.type == "cpu" and linears.few_sizes
        self._cos, self._sin = angles(torch.arange(shape.n_positions, device=model.device), shape.rotary_dim)
        self._first: TokenRows | None = None
        if linears.rows_alone and self._layers:
            make = partial(_before_attention, self._wte, self._layers[0], self._pads)
            self._first = TokenRows(make, self._wte.num_embeddings, (3 * shape.n_embd, shape.n_embd), model.dtype)

    def encode(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: FusedAttend,
        read: Tensor | None = None,
        num_layers: int | None = None,
    ) -> Tensor:
        """Run packed tokens through the model: through all blocks and the final norm, or the first `num_layers` blocks.

        With `read` only these tokens' results are returned. In the last block the others skip their attention, output
        projection and feed-forward half, three quarters of its work: 9 % of all with 8 layers and few tokens read.

        token_ids, positions: (T,), int64    read: (S,), int64
        returns: (T, E) or (S, E), which transformers calls hidden_states[num_layers]
        """
        num_returned = len(token_ids if read is None else read)
        token_ids, positions = self._padded(token_ids), self._padded(positions)
        read = None if read is None else self._padded(read)
        cos, sin = self._cos[positions], self._sin[positions]
        layers = self._layers[:num_layers]
        if self._first is None or not layers:
            hidden: Tensor = self._wte(token_ids)
        for index, layer in enumerate(layers):
            read_here = read if index == len(layers) - 1 else None
            if index == 0 and self._first is not None:
                projected, base = self._first(token_ids)
                mixed = attend(index, projected, cos, sin, only_read=read_here is not None)
                hidden = layer.after_attention(base, mixed, read_here)
            else:
                hidden = layer.run(hidden, cos, sin, index, attend, read_here)
        if read is not None and not layers:
            hidden = hidden[read]
        if num_layers is None:
            hidden = self._ln_f(hidden)
        return hidden[:num_returned]

    def project(self, rows: Tensor) -> Tensor:
        """Apply the language modelling head.

        rows: (S, E)    returns: (S, V)
        """
        assert self._lm_head is not None, "the limits refuse what needs a language modelling head and has none"
        return self._lm_head(self._padded(rows))[: len(rows)]

    def head_rows(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the language modelling head's weights and biases for some tokens, in float32.

        They are kept: the labels of a job come again and again, and to unpack them takes as long as a small step.

        token_ids: (any,), int64    returns: (any, E), (any,)
        """
        assert self._lm_head is not None
        key = tuple(token_ids.tolist())
        if key not in self._head_rows:
            if len(self._head_rows) >= MAX_HELD_HEADS:
                self._head_rows.clear()
            self._head_rows[key] = self._lm_head.outputs(token_ids)
        return self._head_rows[key]

    def _padded(self, rows: Tensor) -> Tensor:
        return _padded(rows) if self._pads else rows


def _padded(rows: Tensor) -> Tensor:
    """Return rows with as many zeros behind them as the products want.

    rows: (any,) or (any, E)
    """
    num_padding = padded_size(len(rows)) - len(rows)
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, num_padding)) if num_padding else rows


def _before_attention(wte: nn.Embedding, first: _Layer, pads: bool, token_ids: Tensor) -> list[Tensor]:
    """Return what the first block makes of tokens by themselves; see `_Layer.before_attention`.

    token_ids: (any,), int64
    """
    made = first.before_attention(wte(_padded(token_ids) if pads else token_ids))
    return [rows[: len(token_ids)] for rows in made]


def _prepare(block: GPTJBlock, linears: LinearFactory, activation: str) -> _Layer:
    attention, mlp = block.attn, block.mlp
    return _Layer(
        block=block,
        qkv=linears.make([attention.q_proj, attention.k_proj, attention.v_proj]),
        fc_in=linears.make([mlp.fc_in], activation),
        out_proj=linears.make([attention.out_proj]),
        fc_out=linears.make([mlp.fc_out]),
    )
