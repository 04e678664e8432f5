"""CudaPath: which of a GPU's fast ways an engine takes. Each is tried out when the engine is built, never in mid-run.

Shape letters: see gptj_batch.engine.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptj_batch.engine.cuda_graphs import Capture, Decoded, DecodeGraphs, DecodeInputs
from gptj_batch.engine.cuda_prompts import Spans, Together, WholePrompts, one_by_one

if TYPE_CHECKING:
    from gptj_batch.engine.cuda_attend import AttendPlan, TritonPagedAttend

LOGGER = logging.getLogger(__name__)
# What a probe's result may be away from float32's: rounding of the result, and of the weights in 16 bits.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, kw_only=True)
class CudaPath:
    """The ways taken.

    has_triton: attention over pages by our kernels, else by plain torch (`PagedAttend`), which has no graphs either
    whole_prompts: attention over prompts that begin in a step    num_processors: the device's multiprocessors
    reasons: for each way that is not taken, why
    """

    has_triton: bool
    whole_prompts: WholePrompts
    num_processors: int
    reasons: dict[str, str]

    def attend(self, layers: Ordered[tuple[Tensor, Tensor]], plan: "AttendPlan") -> "TritonPagedAttend":
        """Return attention for one step.

        layers: keys and values of each, (N, H, P, D)
        """
        from gptj_batch.engine.cuda_attend import TritonPagedAttend
        from gptj_batch.engine.triton_attention import Pages

        return TritonPagedAttend([Pages(*layer) for layer in layers], plan, self.whole_prompts, self.num_processors)

    def describe(self) -> dict[str, str]:
        """Return plain facts, with the reason where a slower way is taken."""
        return {
            "paged_attention": "triton" if self.has_triton else f"torch ({self.reasons['triton']})",
            "prompt_attention": f"torch, one by one ({self.reasons['varlen_attn']})"
            if "varlen_attn" in self.reasons
            else "varlen_attn",
        }


def choose_path(device: torch.device, dtype: torch.dtype, num_heads: int, page_tokens: int, head_dim: int) -> CudaPath:
    """Try each way on a few tokens of the model's own shape, and log which ones do not work here and why."""
    shape = (num_heads, page_tokens, head_dim)
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


def try_triton(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Compile and check our kernels on one sequence, first as a prompt in two chunks, then decoding its last token.

    shape: H, P, D
    Raises whatever goes wrong; RuntimeError for a wrong result.
    """
    from gptj_batch.engine.cuda_attend import TritonPagedAttend, plan_attend
    from gptj_batch.engine.triton_attention import Pages, count_padded, is_interpreted

    if device.type == "cuda" and is_interpreted():
        raise RuntimeError("TRITON_INTERPRET is set, and the interpreter is for tests on a CPU; unset it")
    num_heads, page_tokens, head_dim = shape
    num_tokens = page_tokens + 3
    qkv = _tokens(num_tokens, device, dtype, shape)
    # Nobody writes to the places behind the last token: were they read, the result would not be finite.
    pages = Pages(*torch.full((2, 2, num_heads, page_tokens, head_dim), torch.nan, dtype=dtype, device=device))
    table = torch.tensor([[1, 0]], dtype=torch.int32, device=device)
    mixed = []
    for first, stop in ((0, 2), (2, num_tokens - 1), (num_tokens - 1, num_tokens)):
        places = torch.arange(first, stop, device=device)
        decodes = stop == num_tokens
        plan = plan_attend(
            slots=table[0, places // page_tokens].long() * page_tokens + places % page_tokens,
            tables=table[: int(decodes)],
            lengths=torch.tensor([num_tokens] * decodes, dtype=torch.int32, device=device),
            chunks=[] if decodes else [(0, stop - first, first)],
            chunk_tables=table,
            padded_dim=count_padded(head_dim),
            dtype=dtype,
        )
        attend = TritonPagedAttend([pages], plan, one_by_one, count_processors(device))
        mixed.append(attend(0, *qkv[:, first:stop]))
    _check(torch.cat(mixed), qkv, [num_tokens])


def try_varlen(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Check torch's `varlen_attn` on two prompts; see `try_triton`."""
    qkv = _tokens(8, device, dtype, shape)
    query, key, value = qkv
    _check(Together()(query, key, value, Spans.of([(0, 3), (3, 8)], device)), qkv, [3, 5])


def _tokens(num_tokens: int, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> Tensor:
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
