"""What an engine is made of on a given device: how weights are held, and how attention is computed."""

from typing import Final

import torch

from gptj_batch.engine.body import Body
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.cpu_attention import DTYPES, TILE_TOKENS, CpuPagedAttention, padded_head_dim
from gptj_batch.engine.cpu_kernels.build import KernelsUnavailable, load_library
from gptj_batch.engine.cpu_rows import CpuRowAttention
from gptj_batch.engine.cuda_path import choose_path
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.linear import (
    PANEL_ACTIVATIONS,
    Int8Weights,
    JoinedWeights,
    LinearFactory,
    PackedWeights,
    PanelWeights,
    SharedWeights,
    is_packable,
    saturates_in_int8,
)
from gptj_batch.engine.paged_attention import PagedAttention, TorchPagedAttention
from gptj_batch.engine.runner import Runner
from gptj_batch.engine.tree_attend import RowAttention, TorchRowAttention
from gptj_batch.errors import ConfigError
from gptj_batch.model import GPTJForCausalLM, HeadModel

CPU: Final = torch.device("cpu")


def prepare_body(model: HeadModel, *, take_weights: bool, in_int8: bool = False) -> Body:
    """Return the blocks of a model; with `take_weights` the model gives them up, for a form that suits the device.

    in_int8: 8 bits for weights and for what they are multiplied with
    Raises ConfigError where that cannot be had.
    """
    if in_int8:
        if problem := why_no_int8(model.device, model.dtype):
            raise ConfigError(problem)
        return Body(model, Int8Weights())
    if not take_weights:
        return Body(model, SharedWeights())
    return Body(model, _linears(model.device, model.dtype, model.config.activation_function))


def prepare_runner(
    model: GPTJForCausalLM, body: Body, bounds: Bounds, *, use_kernels: bool
) -> tuple[Runner, dict[str, str]]:
    """Return what runs the steps of generation, with a KV cache of the size that `bounds` says, and facts about it."""
    if use_kernels and model.device.type == "cuda":
        return _cuda_runner(model, body, bounds)
    head_dim = model.config.head_dim
    reason = why_no_cpu_kernels(model.device, model.dtype, bounds.block_size_tokens) if use_kernels else "as asked for"
    attention: PagedAttention
    if reason is None:
        attention = CpuPagedAttention(_cache(model, bounds, padded_head_dim(head_dim)), head_dim)
    else:
        attention = TorchPagedAttention(_cache(model, bounds, head_dim))
    facts = {"paged_attention": "c++" if reason is None else f"torch ({reason})"}
    return Runner(body, attention, bounds.block_size_tokens, model.config.eos_token_ids), facts


def _cuda_runner(model: GPTJForCausalLM, body: Body, bounds: Bounds) -> tuple[Runner, dict[str, str]]:
    """Try out what a GPU can do beyond plain torch, and take what works."""
    shape, block_size, end = model.config, bounds.block_size_tokens, model.config.eos_token_ids
    path = choose_path(model.device, model.dtype, (shape.n_head, block_size, shape.head_dim))
    cache = _cache(model, bounds, shape.head_dim)
    if not path.has_triton:
        return Runner(body, TorchPagedAttention(cache), block_size, end), path.describe()
    # Triton is here: these import it.
    from gptj_batch.engine.cuda_attention import TritonPagedAttention
    from gptj_batch.engine.cuda_capture import CudaCapture
    from gptj_batch.engine.cuda_forward import CudaForward

    attention = TritonPagedAttention(cache, path.whole_prompts, path.num_processors)
    max_blocks = -(-shape.n_positions // block_size)
    forward = CudaForward(body, attention, bounds.max_running, max_blocks, CudaCapture(model.device))
    facts = path.describe() | {"cuda_graphs": forward.graphs_fact}
    return Runner(body, attention, block_size, end, forward), facts


def prepare_rows(model: HeadModel, *, use_kernels: bool) -> RowAttention:
    """Return the attention of single passes."""
    shape = model.config
    if use_kernels and why_no_cpu_kernels(model.device, model.dtype, TILE_TOKENS) is None:
        return CpuRowAttention(shape.n_head, shape.head_dim, model.dtype)
    return TorchRowAttention(shape.n_head, model.dtype, model.device)


def _linears(device: torch.device, dtype: torch.dtype, activation: str) -> LinearFactory:
    if device.type != "cpu":
        return JoinedWeights()
    lacks_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if lacks_avx512 and activation in PANEL_ACTIVATIONS and why_no_cpu_kernels(device, dtype, TILE_TOKENS) is None:
        return PanelWeights()
    return PackedWeights() if is_packable(dtype) else SharedWeights()


def why_no_int8(device: torch.device = CPU, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Return why products in 8 bits, between layers of another dtype, cannot be had here, or None."""
    if problem := why_no_cpu_kernels(device, dtype, TILE_TOKENS):
        return f"dtype int8 needs the C++ kernels for a CPU: {problem}; or use bfloat16"
    if saturates_in_int8():
        return (
            "dtype int8 needs a CPU that multiplies 8 bits exactly (one with VNNI), and this one cuts off large sums; "
            "use float32 or bfloat16"
        )
    return None


def why_no_cpu_kernels(device: torch.device, dtype: torch.dtype, block_size_tokens: int) -> str | None:
    """Return why the C++ kernels cannot be used, or None where they can."""
    if device.type != "cpu":
        return "the model is not on a CPU"
    if dtype not in DTYPES:
        return f"they have no {str(dtype).removeprefix('torch.')}"
    if block_size_tokens % TILE_TOKENS:
        return f"block_size_tokens ({block_size_tokens}) is no multiple of {TILE_TOKENS}"
    try:
        load_library(dtype)
    except KernelsUnavailable as error:
        return str(error)
    return None


def _cache(model: GPTJForCausalLM, bounds: Bounds, head_dim: int) -> KVCache:
    return KVCache(
        num_layers=model.config.n_layer,
        num_blocks=bounds.num_blocks,
        num_heads=model.config.n_head,
        block_size_tokens=bounds.block_size_tokens,
        head_dim=head_dim,
        dtype=model.dtype,
        device=model.device,
    )
