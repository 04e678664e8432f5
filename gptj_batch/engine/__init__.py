"""The engine: many requests share one GPT-J, step by step, over a paged KV cache. Token ids in, token ids out.

Shape letters used in gptj_batch.engine:
    T tokens of a step, packed without padding   S rows of a step whose logits are needed   V vocabulary
    E model width   H heads   D channels per head   N blocks of the KV cache   P tokens in a block
    B rows that decode together   M blocks in the longest of them   C context tokens   Q query tokens of one row

Importing this package loads no torch: the scheduler, the block pool and the configuration are plain integers, and
`Engine` itself is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from gptj_batch.engine.config import EngineConfig
from gptj_batch.importing import uncollected

if TYPE_CHECKING:
    from gptj_batch.engine.engine import Engine

__all__ = ["Engine", "EngineConfig"]


def __getattr__(name: str) -> Any:
    """Import `Engine`, and torch with it, when it is first asked for."""
    if name == "Engine":
        with uncollected():
            from gptj_batch.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
