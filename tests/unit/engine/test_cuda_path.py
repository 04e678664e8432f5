"""Which fast ways a CUDA engine takes: those that work, and for the others the reason stands in the facts."""

import os
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch

from gptj_batch.engine.cuda_graphs import Decoded, DecodeInputs, pick
from gptj_batch.engine.cuda_path import choose_path, record_graphs, why_not
from gptj_batch.engine.cuda_prompts import one_by_one

from .test_cuda_graphs import Recorder

CPU = torch.device("cpu")


def step(inputs: DecodeInputs) -> Decoded:
    return pick(torch.zeros(len(inputs.slots), 3))


def test_what_does_not_work_here_is_replaced_and_the_facts_say_why(caplog: pytest.LogCaptureFixture) -> None:
    path = choose_path(CPU, torch.float16, (2, 4, 16))
    assert path.whole_prompts is one_by_one
    assert "flash_attention" in path.describe()["prompt_attention"]
    assert "varlen_attn is not used, plain torch takes its place" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernels_are_tried_out_before_they_are_taken(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="triton is not installed (there are wheels for Linux on x86-64 only)")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("TRITON_INTERPRET is not 1, so the kernels would be compiled for a GPU")
    path = choose_path(CPU, dtype, (2, 8, 24))
    assert path.has_triton
    assert path.describe()["paged_attention"] == "triton"


def test_kernels_that_compute_something_else_are_not_taken() -> None:
    pytest.importorskip("triton", reason="triton is not installed (there are wheels for Linux on x86-64 only)")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("TRITON_INTERPRET is not 1, so the kernels would be compiled for a GPU")
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers (its issue 11584).
    path = choose_path(CPU, torch.bfloat16, (2, 4, 16))
    assert not path.has_triton
    assert "away from what plain torch computes" in path.describe()["paged_attention"]


def test_recorded_steps_are_counted_in_the_facts() -> None:
    graphs, fact = record_graphs(step, DecodeInputs.empty(4, 1, CPU), 4, Recorder())
    assert graphs is not None
    assert fact == "3 decoding steps, up to 4 rows"


def test_an_engine_whose_steps_cannot_be_recorded_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Callable[[], Decoded]) -> NoReturn:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long explanation")

    graphs, fact = record_graphs(step, DecodeInputs.empty(4, 1, CPU), 4, refuse)
    assert graphs is None
    assert fact == "none (RuntimeError: operation not permitted when stream is capturing)"
    assert "CUDA graphs are not used" in caplog.text


def test_a_reason_is_one_short_line() -> None:
    def fail() -> NoReturn:
        raise ValueError("x" * 500)

    assert why_not(fail) == "ValueError: " + "x" * 200
    assert why_not(lambda: None) is None
