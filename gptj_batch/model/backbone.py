"""GPTJModel: embeddings, blocks and the final norm; and what every model class here shares.

Shape letters: see gptj_batch.model.rotary.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gptj_batch.model import weights
from gptj_batch.model.attention import Attend, DenseAttend, dense_mask, packed_sequence_ids
from gptj_batch.model.block import GPTJBlock
from gptj_batch.model.cache import Cache, DynamicCache
from gptj_batch.model.config import GPTJConfig
from gptj_batch.model.outputs import BaseModelOutputWithPast
from gptj_batch.model.rotary import angles


class GPTJPreTrainedModel(nn.Module):
    """What all GPT-J classes share: a config, initial weights, reading and writing checkpoints."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        """Return the number of weights, tied ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def init_weights(self) -> None:
        """Draw linear and embedding weights from N(0, initializer_range); biases 0, norms the identity."""
        for module in self.modules():
            init_module(module, self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        *,
        allow_new_head: bool = True,
        **config_overrides: Any,
    ) -> Self:
        """Read a model from a folder in Hugging Face layout, or from a hub name; it is returned in eval mode.

        dtype: null takes the config's, or else the checkpoint's. device: null is the CPU. A checkpoint of another
        GPT-J class is taken too: the backbone is read, and a head that it does not have is newly initialised, which a
        warning says; with allow_new_head=False that is an error. Other keywords override the config (e.g.
        num_labels=3).

        Memory peaks at the model in its final dtype plus about 100 MB: tensors come piece by piece from the file.
        Raises CheckpointError, listing every missing, unexpected or mis-shaped tensor.
        """
        return weights.load(cls, path, revision, dtype, device, allow_new_head, config_overrides)

    def save_pretrained(self, path: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write config.json and safetensors shards, which transformers reads too; bits are kept exactly."""
        weights.save(self, Path(path), max_shard_size)


def init_module(module: nn.Module, spread: float) -> None:
    """Give one module its initial weights; see `GPTJPreTrainedModel.init_weights`."""
    if _is_on_meta():
        return
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, spread)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0.0, spread)


def _embedding(num_rows: int, width: int) -> nn.Embedding:
    if _is_on_meta():
        return nn.Embedding(num_rows, width, _weight=torch.empty(num_rows, width))
    return nn.Embedding(num_rows, width)


def _is_on_meta() -> bool:
    """Say whether modules are made without storage, to be filled from a checkpoint.

    Nothing is drawn there: torch would do it through its compiler, whose import takes two seconds and 100 MB.
    """
    return torch.get_default_device().type == "meta"


class GPTJModel(GPTJPreTrainedModel):
    """The bare GPT-J: token ids in, hidden states out."""

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__(config)
        self.wte = _embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPTJBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.init_weights()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.wte = value

    def encode(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run packed tokens, without padding, through the model; which tokens see which is up to `attend`.

        token_ids, positions: (T,), int64    returns: (T, E)
        """
        return self.run(self.wte(token_ids), positions, attend)

    def run(self, hidden: Tensor, positions: Tensor, attend: Attend, trace: list[Tensor] | None = None) -> Tensor:
        """Run embedded packed tokens through the blocks and the final norm.

        `trace` collects the input of every block.

        hidden: (T, E)    positions: (T,), int64    returns: (T, E)
        """
        cos, sin = angles(positions, self.config.rotary_dim)
        hidden = self.drop(hidden)
        for layer, block in enumerate(self.h):
            if trace is not None:
                trace.append(hidden)
            hidden = block(hidden, cos, sin, layer, attend)
        output: Tensor = self.ln_f(hidden)
        return output

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Run a batch, as `transformers.GPTJModel` does.

        input_ids: (B, S), int64, or inputs_embeds: (B, S, E); exactly one of them
        attention_mask: (B, K), 1 for real tokens, 0 for padding; or (B, 1, S, K), additive
        token_type_ids: (B, S), embedded like tokens and added to them
        position_ids: (B or 1, S), by default counted on from the cache, padding included
        cache_position: (S,), the positions where position_ids are not given
        returns: BaseModelOutputWithPast, or its tuple

        Raises ValueError for none or both inputs, a wrong mask width, or positions past n_positions.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embedded = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        batch_size, num_tokens, _ = embedded.shape
        if _given(use_cache, config.use_cache) and past_key_values is None:
            past_key_values = DynamicCache()
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions, sequence_ids = self._positions(
            num_past, num_tokens, position_ids, cache_position, attention_mask is None and past_key_values is None
        )
        positions = positions.to(embedded.device).expand(batch_size, num_tokens)
        if token_type_ids is not None:
            embedded = embedded + self.wte(token_type_ids.view(-1, num_tokens))
        mask = dense_mask(num_tokens, num_past, attention_mask, sequence_ids, embedded.dtype, embedded.device)
        attend = DenseAttend(
            batch_size=batch_size,
            mask=mask,
            cache=past_key_values,
            dropout=config.attn_pdrop if self.training else 0.0,
            keep_weights=_given(output_attentions, config.output_attentions),
        )
        trace: list[Tensor] | None = [] if _given(output_hidden_states, config.output_hidden_states) else None
        hidden = self.run(embedded.flatten(0, 1), positions.flatten(), attend, trace).unflatten(0, (batch_size, -1))
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=None if trace is None else (*(x.view_as(hidden) for x in trace), hidden),
            attentions=None if attend.weights is None else tuple(attend.weights),
        )
        return output if _given(return_dict, config.return_dict) else output.to_tuple()

    def _positions(
        self,
        num_past: int,
        num_tokens: int,
        position_ids: Tensor | None,
        cache_position: Tensor | None,
        may_be_packed: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return positions (B or 1, S) and, where they show several packed sequences, whose each token is (B, S)."""
        limit = self.config.n_positions
        if position_ids is None and cache_position is None:
            if num_past + num_tokens > limit:
                raise ValueError(f"{num_past + num_tokens} tokens do not fit n_positions ({limit})")
            return torch.arange(num_past, num_past + num_tokens)[None], None
        positions = position_ids if position_ids is not None else cache_position
        assert positions is not None
        positions = positions.reshape(-1, num_tokens)
        if int(positions.max()) >= limit or int(positions.min()) < 0:
            raise ValueError(f"positions must lie in 0 .. n_positions - 1 ({limit - 1})")
        # transformers looks for packed sequences only without a mask and a cache, which is how one trains on them.
        return positions, packed_sequence_ids(positions) if may_be_packed else None


def _given(argument: bool | None, default: bool) -> bool:
    return default if argument is None else argument
