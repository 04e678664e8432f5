"""generate: continue a padded batch of prompts, with transformers' arguments, through the engine.

Shape letters: see gptj_batch.model.rotary.
"""

import torch
from torch import Tensor

from gptj_batch.engine.config import EngineConfig
from gptj_batch.engine.engine import Engine
from gptj_batch.errors import BackendError
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.requests import Request, SamplingParams
from gptj_batch.results import Failed, Generated

BLOCK_SIZE_TOKENS = 32
DEFAULT_NEW_TOKENS = 20


def generate(
    model: GPTJForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    min_new_tokens: int = 0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Continue every row; names, defaults and meanings are those of transformers' `generate`.

    Padding, on either side, is what attention_mask says or, without one, the pad token where it is not an end token
    too; it is left out before the engine sees a row, so it plays no part in the repetition penalty either. A row draws
    from `seed` and its number. Without max_new_tokens and max_length (the width of input_ids counted in), 20 new
    tokens, or as many as there are positions for.

    input_ids: (B, S), int64    attention_mask: (B, S)
    returns: (B, S + new); rows that end early are filled with pad_token_id, or else the end token

    Raises ValueError for arguments that cannot work, BackendError where the model's logits are not finite.
    """
    eos = model.config.eos_token_ids if eos_token_id is None else _as_tuple(eos_token_id)
    pad = model.config.pad_token_id if pad_token_id is None else pad_token_id
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids) if pad is None or pad in eos else input_ids != pad
    if max_new_tokens is None:
        max_new_tokens = _room(input_ids.shape[1], max_length, model.config.n_positions)
    requests = [
        Request(
            key=f"row {index}",
            prompt_token_ids=row[mask.bool()].tolist(),
            sampling=SamplingParams(
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                temperature=temperature if do_sample else 0.0,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=(seed << 32) + index,
                stop_token_ids=eos,
                ignore_eos=True,
            ),
        )
        for index, (row, mask) in enumerate(zip(input_ids, attention_mask, strict=True))
    ]
    new_token_ids = _run(model, requests)
    fill = next((token for token in (pad, *eos) if token is not None), 0)
    num_new = max(map(len, new_token_ids))
    filled = [[*token_ids, *[fill] * (num_new - len(token_ids))] for token_ids in new_token_ids]
    return torch.cat((input_ids, torch.tensor(filled, dtype=input_ids.dtype, device=input_ids.device)), dim=1)


def _run(model: GPTJForCausalLM, requests: list[Request]) -> list[tuple[int, ...]]:
    """Return each request's new tokens, from an engine whose KV cache holds exactly these requests."""
    lengths = [len(request.prompt_token_ids) + request.sampling.max_new_tokens for request in requests]
    num_blocks = sum(-(-length // BLOCK_SIZE_TOKENS) for length in lengths)
    config = EngineConfig(num_blocks=num_blocks, block_size_tokens=BLOCK_SIZE_TOKENS, max_running=len(requests))
    engine = Engine(model, config)
    for request in requests:
        problem = engine.limits.refuse(request)
        if problem is not None:
            raise ValueError(f"{request.key}: {problem}")
    results = engine.run(requests)
    for result in results:
        if isinstance(result, Failed):
            raise BackendError(f"{result.key}: {result.error}")
    return [result.token_ids for result in results if isinstance(result, Generated)]


def _room(num_columns: int, max_length: int | None, n_positions: int) -> int:
    """Return how many new tokens fit behind the prompts, where max_new_tokens does not say it."""
    limit = min(num_columns + DEFAULT_NEW_TOKENS, n_positions) if max_length is None else max_length
    if limit <= num_columns:
        raise ValueError(f"max_length must leave room behind input_ids ({num_columns} wide), got {limit}")
    return limit - num_columns


def _as_tuple(token_ids: int | list[int]) -> tuple[int, ...]:
    return (token_ids,) if isinstance(token_ids, int) else tuple(token_ids)
