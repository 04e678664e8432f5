"""generate: continue a padded batch of prompts, with transformers' arguments, through the engine.

Shape letters: see gptj_batch.model.rotary.
"""

from dataclasses import replace
from typing import Literal

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
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    num_return_sequences: int = 1,
    seed: int = 0,
) -> Tensor:
    """Continue every row; names, defaults and meanings are those of transformers' `generate`.

    Padding, on either side, is what attention_mask says or, without one, the pad token where it is not an end token
    too; it is left out before the engine sees a row, so it plays no part in the repetition penalty either. Without
    max_new_tokens and max_length (the width of input_ids counted in), 20 new tokens, or as many as there are positions
    for. Several sequences of a row, drawn or by beams (then best first), stand one below the other; each draws from
    `seed` and its own number. Beams draw nothing: transformers' beam sampling is not there.

    input_ids: (B, S), int64    attention_mask: (B, S)
    returns: (B * num_return_sequences, S + new); those that end early are filled with pad_token_id, or else the end
        token; beams with the end token also where pad_token_id is 0, which transformers' beam search takes for none

    Raises ValueError for arguments that cannot work, BackendError where the model's logits are not finite.
    """
    eos = model.config.eos_token_ids if eos_token_id is None else _as_tuple(eos_token_id)
    pad = model.config.pad_token_id if pad_token_id is None else pad_token_id
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids) if pad is None or pad in eos else input_ids != pad
    if max_new_tokens is None:
        max_new_tokens = _room(input_ids.shape[1], max_length, model.config.n_positions)
    if num_beams > 1 and do_sample:
        raise ValueError(f"num_beams must be 1 with do_sample, got {num_beams}; beam search draws nothing")
    num_draws = num_return_sequences if do_sample else 1
    sampling = SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature if do_sample else 0.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_token_ids=eos,
        ignore_eos=True,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_return_sequences=1 if do_sample else num_return_sequences,
    )
    requests = [
        Request(
            key=f"row {index}",
            prompt_token_ids=row[mask.bool()].tolist(),
            sampling=replace(sampling, seed=(seed << 32) + index * num_draws + draw),
        )
        for index, (row, mask) in enumerate(zip(input_ids, attention_mask, strict=True))
        for draw in range(num_draws)
    ]
    fill = next((token for token in (pad, *eos) if token is not None), 0)
    if num_beams > 1 and fill == 0 and eos:
        fill = eos[0]
    return _appended(input_ids.repeat_interleave(num_return_sequences, dim=0), _run(model, requests), fill)


def _run(model: GPTJForCausalLM, requests: list[Request]) -> list[tuple[int, ...]]:
    """Return each request's new sequences, from an engine whose KV cache holds exactly these requests."""
    num_blocks = sum(map(_max_blocks, requests))
    max_running = sum(request.sampling.num_beams for request in requests)
    config = EngineConfig(num_blocks=num_blocks, block_size_tokens=BLOCK_SIZE_TOKENS, max_running=max_running)
    engine = Engine(model, config)
    for request in requests:
        problem = engine.refuse(request)
        if problem is not None:
            raise ValueError(f"{request.key}: {problem}")
    results = engine.run(requests)
    for result in results:
        if isinstance(result, Failed):
            raise BackendError(f"{result.key}: {result.error}")
    generated = [result for result in results if isinstance(result, Generated)]
    return [one.token_ids for result in generated for one in (result, *result.alternatives)]


def _max_blocks(request: Request) -> int:
    """Return how many blocks a request takes at most; its beams share the whole blocks of the prompt."""
    num_prompt_tokens, sampling = len(request.prompt_token_ids), request.sampling
    num_blocks = -(-(num_prompt_tokens + sampling.max_new_tokens) // BLOCK_SIZE_TOKENS)
    return num_blocks + (sampling.num_beams - 1) * (num_blocks - num_prompt_tokens // BLOCK_SIZE_TOKENS)


def _appended(input_ids: Tensor, new_token_ids: list[tuple[int, ...]], fill: int) -> Tensor:
    """Put new tokens behind the rows, all as wide as the longest.

    input_ids: (B, S), int64    returns: (B, S + new)
    """
    num_new = max(map(len, new_token_ids))
    filled = [[*token_ids, *[fill] * (num_new - len(token_ids))] for token_ids in new_token_ids]
    return torch.cat((input_ids, torch.tensor(filled, dtype=input_ids.dtype, device=input_ids.device)), dim=1)


def _room(num_columns: int, max_length: int | None, n_positions: int) -> int:
    """Return how many new tokens fit behind the prompts, where max_new_tokens does not say it."""
    limit = min(num_columns + DEFAULT_NEW_TOKENS, n_positions) if max_length is None else max_length
    if limit <= num_columns:
        raise ValueError(f"max_length must leave room behind input_ids ({num_columns} wide), got {limit}")
    return limit - num_columns


def _as_tuple(token_ids: int | list[int]) -> tuple[int, ...]:
    return (token_ids,) if isinstance(token_ids, int) else tuple(token_ids)
