"""Loading a checkpoint of 1 GB peaks at 1.15 times the model in its final dtype, or less."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import gptj_batch.model

MAX_RATIO = 1.15
# 10 layers of 50 million weights and an embedding of 34 million: 1.07 GB at two bytes each
SETTINGS: dict[str, Any] = {"n_embd": 2048, "n_layer": 10, "n_head": 8, "rotary_dim": 64, "vocab_size": 16384}

# Run in a process of its own, whose peak is nobody else's. Writing 5 to clear_refs sets the peak back to the present.
MEASURE = """
import json, pathlib, sys
import torch
from gptj_batch.model import GPTJModel

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = GPTJModel.from_pretrained(sys.argv[1], dtype=torch.float16)
growth = status("VmHWM") - before
final = sum(parameter.nbytes for parameter in model.parameters())
layers = [float(block.mlp.fc_in.weight.float().mean()) for block in model.h]
print(json.dumps({"growth": growth, "final": final, "layers": layers}))
"""


def write_checkpoint(folder: Path, dtype: torch.dtype, pickled: bool) -> None:
    """Write a shard at a time, every tensor of layer i holding i, so that this process stays small."""
    folder.mkdir()
    config = gptj_batch.model.GPTJConfig(**SETTINGS, dtype=dtype)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in gptj_batch.model.GPTJModel(config).state_dict().items()}
    weight_map = {}
    ending = "bin" if pickled else "safetensors"
    for layer in range(SETTINGS["n_layer"] + 1):
        prefix = f"h.{layer}."
        shard = f"shard-{layer}.{ending}"
        names = [name for name in shapes if name.startswith(prefix) or (layer == 10 and not name.startswith("h."))]
        tensors = {name: torch.full(shapes[name], layer, dtype=dtype) for name in names}
        torch.save(tensors, folder / shard) if pickled else save_file(tensors, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = "pytorch_model.bin.index.json" if pickled else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc")
@pytest.mark.parametrize(("dtype", "pickled"), [(torch.float32, False), (torch.float16, False), (torch.float32, True)])
def test_loading_peaks_at_little_more_than_the_model(tmp_path: Path, dtype: torch.dtype, pickled: bool) -> None:
    folder = tmp_path / "checkpoint"
    try:
        write_checkpoint(folder, dtype, pickled)
        command = [sys.executable, "-c", MEASURE, str(folder)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    finally:
        shutil.rmtree(folder)  # pytest would keep the gigabytes of three runs
    measured = json.loads(printed)
    assert measured["layers"] == list(range(SETTINGS["n_layer"]))
    assert measured["final"] > 1.0e9
    print(f"peak {measured['growth'] / measured['final']:.3f} times the model")
    assert measured["growth"] <= MAX_RATIO * measured["final"]
