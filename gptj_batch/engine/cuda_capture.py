"""CudaCapture: the one place where CUDA graphs are made. It runs on a GPU only."""

from collections.abc import Callable
from typing import Any

import torch

from gptj_batch.engine.cuda_graphs import Decoded

NUM_WARM_UPS = 2


class CudaCapture:
    """Record functions into CUDA graphs that share one pool of memory; see `gptj_batch.engine.cuda_graphs.Capture`.

    Sharing is safe because a graph's results are read before another is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # of the first graph, for all

    def __call__(self, function: Callable[[], Decoded]) -> tuple[Callable[[], None], Decoded]:
        """Run `function` a few times, so that kernels are compiled and libraries have their memory; then record it."""
        with torch.cuda.device(self._device), torch.inference_mode():
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                for _ in range(NUM_WARM_UPS):
                    function()
            torch.cuda.current_stream(self._device).wait_stream(stream)
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                decoded = function()
            self._pool = graph.pool()
        return graph.replay, decoded
