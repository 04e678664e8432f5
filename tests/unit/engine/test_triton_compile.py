"""Our Triton kernels compiled for GPUs that are not here: what the compiler refuses or spills shows without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed (there are wheels for Linux on x86-64 only)")

# A process of its own: in this one Triton's functions are defined for its interpreter.
PROGRAM = """
import json, re, subprocess, sys, tempfile, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from gptj_batch.engine import triton_attention as launch, triton_kernels as kernels

ELEMENTS = {"query", "key", "value", "keys", "values", "output"}
FLOATS = {"cos", "sin", "part_highest", "part_weight", "part_mixed"}
INTS = {"tables", "lengths", "slots", "chunks", "tiles"}

def stack_bytes(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        return int(re.search(r"STACK:(\\d+)", subprocess.run(command, capture_output=True, text=True).stdout)[1])

def build(kernel, constants, num_warps, capability):
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = "*fp16" if name in ELEMENTS else "*fp32" if name in FLOATS else "*i32" if name in INTS else "i32"
        signature[name] = "constexpr" if name in constants else "fp32" if name == "scale" else kind
        if kind[0] == "*" or name in ("query_stride", "output_stride", "key_stride", "value_stride"):
            aligned[index,] = [["tt.divisibility", 16]]
    built = compile(ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", capability, 32),
                    options={"num_warps": num_warps})
    return {"shared_bytes": built.metadata.shared, "stack_bytes": stack_bytes(built.asm["cubin"]),
            "copies": built.asm["ptx"].count("cp.async.cg"),
            "products": built.asm["ptx"].count("mma.sync") + built.asm["ptx"].count("wgmma.mma_async")}

head_dim = 256
shape = {"num_heads": 16, "head_dim": head_dim, "padded_dim": head_dim}
decode, prefill = launch.decode_tile(head_dim, torch.float16), launch.prefill_tile(head_dim, torch.float16)
splits = {"split_tokens": launch.SPLIT_TOKENS}
warps = decode.pop("num_warps"), prefill.pop("num_warps")
pages = {"page_tokens": 32}

def build_all(capability):
    return {
        "decode": build(kernels.decode_kernel, shape | pages | splits | decode | {"keeps_parts": True},
                        warps[0], capability),
        "join": build(kernels.join_kernel, shape | splits, 2, capability),
        "prefill": build(kernels.prefill_kernel, shape | pages | prefill | {"precision": "tf32"}, warps[1], capability),
        "rotate_and_write": build(kernels.rotate_and_write_kernel, shape | pages | {"rotary_dim": 64, "group_heads": 4},
                                  4, capability),
    }

print(json.dumps([build_all(80), build_all(90)]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what is known of each kernel, for an A100 (sm_80) and an H100 or H200 (sm_90)."""
    surroundings = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=surroundings | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_kernel_fits_the_registers_and_the_shared_memory_at_the_heads_of_gpt_j_6b(
    compiled: list[dict[str, Any]],
) -> None:
    for kernel in [kernel for device in compiled for kernel in device.values()]:
        assert kernel["stack_bytes"] == 0
        assert kernel["shared_bytes"] <= 99 * 1024


def test_decoding_fetches_pages_while_it_computes(compiled: list[dict[str, Any]]) -> None:
    assert all(device["decode"]["copies"] > 0 for device in compiled)


def test_prompts_run_on_the_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    assert all(device["prefill"]["products"] > 0 for device in compiled)
