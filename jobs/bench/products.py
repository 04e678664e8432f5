"""Products: the layers of the benchmark's model by torch, by oneDNN and by our own kernel, at several numbers of rows.

They take turns; the figures are medians in GFLOP/s. Each is compared with the product in float64 first.

    python -m jobs.bench.products
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptj_batch.engine.linear import PackedWeights, PanelWeights, SharedWeights, is_packable
from gptj_batch.engine.prepare import why_no_cpu_kernels
from jobs.bench.surroundings import surroundings, write_results

ROWS = (1, 6, 16, 71, 256, 1024)
LAYERS = {"fc_in, with GELU": (1024, 4096, "gelu_new"), "fc_out": (4096, 1024, None), "qkv": (1024, 3072, None)}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of the largest output


def products(dtype: torch.dtype, inputs: int, outputs: int, activation: str | None) -> dict[str, Callable[..., Tensor]]:
    """Return every way that there is here to compute one layer; all have the same weights."""
    kinds: dict[str, Any] = {"torch": SharedWeights()}
    if is_packable(dtype):
        kinds["oneDNN"] = PackedWeights()
    if why_no_cpu_kernels(torch.device("cpu"), dtype, 16) is None:
        kinds["ours"] = PanelWeights()
    made: dict[str, Callable[..., Tensor]] = {}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        made[name] = kind.make([nn.Linear(inputs, outputs, dtype=dtype)], activation)
    return made


def measure(dtype: torch.dtype, layer: str, num_rows: int, rounds: int) -> dict[str, Any]:
    """Time one layer at one number of rows."""
    inputs, outputs, activation = LAYERS[layer]
    ways = products(dtype, inputs, outputs, activation)
    x = torch.randn(num_rows, inputs).to(dtype)
    expected = _expected(x, inputs, outputs, activation)
    for name, way in ways.items():
        error = float((way(x).double() - expected).abs().max() / expected.abs().max())
        assert error < TOLERANCE[dtype], f"{name} is wrong by {error}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way(x)
            seconds[name].append(time.perf_counter() - began)
    gflop = 2e-9 * num_rows * inputs * outputs
    rates = {name: round(gflop / statistics.median(each), 1) for name, each in seconds.items()}
    return {"dtype": str(dtype).removeprefix("torch."), "layer": layer, "rows": num_rows, "gflops": rates}


def _expected(x: Tensor, inputs: int, outputs: int, activation: str | None) -> Tensor:
    torch.manual_seed(0)
    product: Tensor = nn.Linear(inputs, outputs, dtype=x.dtype).double()(x.double())
    return product if activation is None else F.gelu(product, approximate="tanh")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(prog="products.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for layer in LAYERS:
                for num_rows in ROWS:
                    found.append(measure(dtype, layer, num_rows, options.rounds))
                    sys.stdout.write(f"{found[-1]}\n")
    report = surroundings(options.threads) | {"rounds": options.rounds, "products": found}
    sys.stdout.write(f"written to {write_results(report, 'products')}\n")


if __name__ == "__main__":
    main()
