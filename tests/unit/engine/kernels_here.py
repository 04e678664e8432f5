"""Whether this machine has what the C++ kernels need; tests of them are left out where it has not."""

import pytest
import torch

from gptj_batch.engine.prepare import why_no_cpu_kernels

REASON = why_no_cpu_kernels(torch.device("cpu"), torch.float32, 16)
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no C++ kernels: {REASON}")
