"""Which layers and which attention are chosen, by dtype, device and configuration."""

import pytest
import torch

from gptj_batch.engine import Engine, EngineConfig, prepare
from gptj_batch.engine.body import Body
from gptj_batch.engine.config import Bounds
from gptj_batch.engine.cpu_attention import CpuPagedAttention
from gptj_batch.engine.cpu_kernels.build import KernelsUnavailable
from gptj_batch.engine.cpu_rows import CpuRowAttention
from gptj_batch.engine.linear import JoinedWeights, PackedWeights, PanelWeights, SharedWeights
from gptj_batch.engine.paged_attention import PagedAttention, TorchPagedAttention
from gptj_batch.engine.prepare import _linears, prepare_body, prepare_rows, prepare_runner, why_no_cpu_kernels
from gptj_batch.engine.tree_attend import TorchRowAttention
from gptj_batch.model import GPTJConfig, GPTJForCausalLM

from .kernels_here import needs_kernels

CPU = torch.device("cpu")


def make_model(dtype: torch.dtype = torch.float32, n_embd: int = 48) -> GPTJForCausalLM:
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=61, n_positions=64, n_embd=n_embd, n_layer=1, n_head=2, rotary_dim=8)
    return GPTJForCausalLM(config).to(dtype).eval()


def attention_of(model: GPTJForCausalLM, block_size_tokens: int = 16, *, use_kernels: bool = True) -> PagedAttention:
    bounds = Bounds(max_step_tokens=8, min_running=2, max_running=2, block_size_tokens=block_size_tokens, num_blocks=4)
    body = prepare_body(model, take_weights=False)
    return prepare_runner(model, body, bounds, use_kernels=use_kernels)[0]._attention


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size_tokens", [16, 32, 48])
def test_a_cpu_attends_by_kernels_where_blocks_are_whole_tiles(dtype: torch.dtype, block_size_tokens: int) -> None:
    attention = attention_of(make_model(dtype), block_size_tokens)
    assert isinstance(attention, CpuPagedAttention)
    assert attention._cache.keys.shape == (1, 4, 2, block_size_tokens, 32), "24 channels take two vectors"


@pytest.mark.parametrize("block_size_tokens", [1, 4, 17, 40])
def test_other_blocks_are_left_to_torch(block_size_tokens: int) -> None:
    attention = attention_of(make_model(), block_size_tokens)
    assert isinstance(attention, TorchPagedAttention)
    assert attention._cache.keys.shape == (1, 4, 2, block_size_tokens, 24)
    reason = why_no_cpu_kernels(CPU, torch.float32, block_size_tokens)
    assert reason == f"block_size_tokens ({block_size_tokens}) is no multiple of 16"


def test_other_dtypes_are_left_to_torch() -> None:
    assert isinstance(attention_of(make_model(torch.float16)), TorchPagedAttention)
    assert why_no_cpu_kernels(CPU, torch.float16, 16) == "they have no float16"


def test_other_devices_have_no_cpu_kernels() -> None:
    assert why_no_cpu_kernels(torch.device("cuda"), torch.float32, 16) == "the model is not on a CPU"


def test_torch_alone_can_be_asked_for() -> None:
    assert isinstance(attention_of(make_model(), use_kernels=False), TorchPagedAttention)
    engine = Engine(make_model(), EngineConfig(kernels="torch", num_blocks=4))
    assert engine.runner is not None and isinstance(engine.runner._attention, TorchPagedAttention)


def test_where_kernels_cannot_be_built_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_: torch.dtype) -> None:
        raise KernelsUnavailable("no C++ compiler was found; install g++")

    monkeypatch.setattr(prepare, "load_library", unavailable)
    assert isinstance(attention_of(make_model()), TorchPagedAttention)
    assert why_no_cpu_kernels(CPU, torch.float32, 16) == "no C++ compiler was found; install g++"


@needs_kernels
def test_single_passes_attend_by_kernels_or_by_torch_by_the_same_rules() -> None:
    assert isinstance(prepare_rows(make_model(), use_kernels=True), CpuRowAttention)
    assert isinstance(prepare_rows(make_model(), use_kernels=False), TorchRowAttention)
    assert isinstance(prepare_rows(make_model(torch.float16), use_kernels=True), TorchRowAttention)


@needs_kernels
def test_where_nothing_is_in_the_way_there_is_no_reason() -> None:
    assert why_no_cpu_kernels(CPU, torch.bfloat16, 32) is None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_cpu_packs_what_onednn_computes_in_and_shares_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert isinstance(_linears(CPU, torch.float32, "gelu_new"), PackedWeights)
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert isinstance(_linears(CPU, torch.bfloat16, "gelu_new"), PackedWeights if has_bfloat16 else SharedWeights)
    assert isinstance(_linears(CPU, torch.float16, "gelu_new"), SharedWeights)


@needs_kernels
def test_a_cpu_without_avx512_has_our_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert isinstance(_linears(CPU, torch.float32, "gelu_new"), PanelWeights)
    assert isinstance(_linears(CPU, torch.bfloat16, "gelu_new"), PanelWeights)
    assert isinstance(_linears(CPU, torch.float16, "gelu_new"), SharedWeights)
    assert isinstance(_linears(CPU, torch.float32, "relu"), PackedWeights)


def test_a_gpu_joins() -> None:
    assert isinstance(_linears(torch.device("cuda"), torch.float16, "gelu_new"), JoinedWeights)


def test_weights_are_taken_only_where_that_was_asked_for() -> None:
    model = make_model()
    assert isinstance(prepare_body(model, take_weights=False), Body)
    assert model.lm_head.weight.shape == (61, 48)
    prepare_body(model, take_weights=True)
    assert model.lm_head.weight.numel() == 0
    assert model.device == CPU and model.dtype == torch.float32, "which the embedding still says"
