"""C++ kernels for a CPU: attention over the paged cache. Built on first use; where that fails, plain torch is used."""
