"""CudaPath: which of a GPU's fast ways an engine takes. Each is tried out when the engine is built, never in mid-run.

Shape letters: see gptj_batch.engine.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gptj_batch.engine.body import FusedAttend
from gptj_batch.engine.cuda_graphs import Capture, Decoded, DecodeGraphs, DecodeInputs
from gptj_batch.engine.cuda_prompts import Spans, Together, WholePrompts, one_by_one
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.step_batch import Span, StepBatch

LOGGER = logging.getLogger(__name__)
# What a probe's result may be away from float32's: rounding of the result, and of the weights in 16 bits.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
Shape = tuple[int, int, int]  # H, P, D


@dataclass(frozen=True, kw_only=True)
class CudaPath:
    """The ways taken.

    has_triton: attention over pages by our kernels; else by plain torch, and then without CUDA graphs
    whole_prompts: attention over prompts that begin in a step    num_processors: the device's multiprocessors
    reasons: for each way that is not taken, why
    """

    has_triton: bool
    whole_prompts: WholePrompts
    num_processors: int
    reasons: dict[str, str]

    def describe(self) -> dict[str, str]:
        """Return plain facts, with the reason where a slower way is taken."""
        triton, varlen = self.reasons.get("triton"), self.reasons.get("varlen_attn")
        return {
            "paged_attention": "triton" if triton is None else f"torch ({triton})",
            "prompt_attention": "varlen_attn" if varlen is None else f"torch, one by one ({varlen})",
        }


def choose_path(device: torch.device, dtype: torch.dtype, shape: Shape) -> CudaPath:
    """Try each way on a few tokens of the model's own shape, and log which ones do not work here and why.

    shape: H, P, D
    """
    probes = {
        "triton": partial(try_triton, device, dtype, shape),
        "varlen_attn": partial(try_varlen, device, dtype, shape),
    }
    found = {name: why_not(probe) for name, probe in probes.items()}
    reasons = {name: reason for name, reason in found.items() if reason is not None}
    for name, reason in reasons.items():
        LOGGER.warning("%s is not used, plain torch takes its place: %s", name, reason)
    return CudaPath(
        has_triton="triton" not in reasons,
        whole_prompts=one_by_one if "varlen_attn" in reasons else Together(),
        num_processors=count_processors(device),
        reasons=reasons,
    )


def record_graphs(
    function: Callable[[DecodeInputs], Decoded], inputs: DecodeInputs, max_running: int, capture: Capture
) -> tuple[DecodeGraphs | None, str]:
    """Record decoding steps; return the recordings, or None where that fails, and a line that says which it is."""
    graphs: list[DecodeGraphs] = []
    reason = why_not(lambda: graphs.append(DecodeGraphs(function, inputs, max_running, capture)))
    if reason is not None:
        LOGGER.warning("CUDA graphs are not used, steps are launched one by one: %s", reason)
        return None, f"none ({reason})"
    return graphs[0], f"{len(graphs[0].sizes)} decoding steps, up to {max_running} rows"


def why_not(probe: Callable[[], object]) -> str | None:
    """Return what a probe raised, as one line; None if it went well."""
    try:
        probe()
    except Exception as error:  # noqa: BLE001 - drivers, compilers and libraries raise whatever they like
        first_line = (str(error).strip().splitlines() or ["no details"])[0]
        return f"{type(error).__name__}: {first_line[:200]}"
    return None


def count_processors(device: torch.device) -> int:
    """Return the device's multiprocessors; 1 on a CPU, where Triton's interpreter runs one program after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@torch.inference_mode()
def try_triton(device: torch.device, dtype: torch.dtype, shape: Shape) -> None:
    """Compile and check our kernels on one sequence: a prompt in two chunks, whose last token is decoded.

    Raises whatever goes wrong; RuntimeError for a wrong result.
    """
    from gptj_batch.engine.cuda_attention import TritonPagedAttention
    from gptj_batch.engine.triton_attention import is_interpreted

    if device.type == "cuda" and is_interpreted():
        raise RuntimeError("TRITON_INTERPRET is set, and the interpreter is for tests on a CPU; unset it")
    num_heads, page_tokens, head_dim = shape
    num_tokens = page_tokens + 3
    cache = _empty_cache(device, dtype, shape, num_blocks=2)
    attention = TritonPagedAttention(cache, one_by_one, count_processors(device))
    qkv = _tokens(num_tokens, device, dtype, shape)
    still = torch.ones(num_tokens, 1, device=device), torch.zeros(num_tokens, 1, device=device)  # turned by 0
    mixed = []
    for first, stop in ((0, 2), (2, num_tokens - 1), (num_tokens - 1, num_tokens)):
        attend: FusedAttend = attention.plan(_batch(first, stop, page_tokens, device))
        cos, sin = (x[first:stop] for x in still)
        mixed.append(attend(0, qkv[:, first:stop].transpose(0, 1).flatten(1).contiguous(), cos, sin))
    _check(torch.cat(mixed).unflatten(1, (num_heads, head_dim)), qkv, [num_tokens])


def try_varlen(device: torch.device, dtype: torch.dtype, shape: Shape) -> None:
    """Check torch's `varlen_attn` on two prompts; see `try_triton`."""
    qkv = _tokens(8, device, dtype, shape)
    query, key, value = qkv
    _check(Together()(query, key, value, Spans.of([(0, 3), (3, 8)], device)), qkv, [3, 5])


def _empty_cache(device: torch.device, dtype: torch.dtype, shape: Shape, num_blocks: int) -> KVCache:
    num_heads, page_tokens, head_dim = shape
    cache = KVCache(
        num_layers=1,
        num_blocks=num_blocks,
        num_heads=num_heads,
        block_size_tokens=page_tokens,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
    )
    # If places that nobody wrote were read, the result would not be finite.
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def _batch(first: int, stop: int, page_tokens: int, device: torch.device) -> StepBatch:
    """Return a step of some tokens of a sequence that has blocks 1 and 0; who it belongs to does not matter."""
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    blocks = [1, 0]
    return StepBatch(
        token_ids=nothing,
        positions=nothing,
        slots=[blocks[place // page_tokens] * page_tokens + place % page_tokens for place in range(first, stop)],
        new_blocks=[],
        copies=[],
        spans=[Span(0, stop - first, first, blocks)],
        logit_rows=nothing,
        sequences=[],
    )


def _tokens(num_tokens: int, device: torch.device, dtype: torch.dtype, shape: Shape) -> Tensor:
    """Return query, key and value, (3, T, H, D)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, num_tokens, shape[0], shape[2], generator=generator).to(device, dtype)


def _check(mixed: Tensor, qkv: Tensor, lengths: list[int]) -> None:
    """mixed: (T, H, D)    qkv: (3, T, H, D)."""
    spans = Spans.of(list(pairwise(accumulate(lengths, initial=0))), torch.device("cpu"))
    query, key, value = qkv.cpu().float()
    expected = one_by_one(query, key, value, spans)
    distance = (mixed.cpu().float() - expected).abs().max().item()
    if not distance <= TOLERANCES[qkv.dtype]:
        raise RuntimeError(f"a probe's result is {distance:.3g} away from what plain torch computes")
