"""EngineConfig: what bounds a step and the KV cache, and the values chosen where nothing is given."""

from dataclasses import dataclass, fields
from typing import Literal

from gptj_batch.errors import ConfigError

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The limits an engine runs under: an `EngineConfig` in which every choice has been made.

    min_running: sequences that run in any case, where so many wait; beyond them the scheduler weighs what
        is left to do.
    """

    max_step_tokens: int
    min_running: int
    max_running: int
    block_size_tokens: int
    num_blocks: int
    prefix_caching: bool = True


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Bound a step and the KV cache; None means "chosen for the device".

    max_step_tokens: tokens that one forward pass may hold; longer prompts are cut into chunks.
    max_running: sequences that hold KV memory at the same time.
    kv_cache_bytes, num_blocks: the size of the KV cache; give at most one of the two.
    block_size_tokens: tokens in one block of it.
    prefix_caching: whether what prompts begin with in common is computed once and shared.
    device: where the model runs, "cpu" or "cuda" or "cuda:0".
    kernels: "auto" uses compiled kernels where the device has them, "torch" none.

    Raises ConfigError for a value outside its range.
    """

    max_step_tokens: int | None = None
    max_running: int | None = None
    kv_cache_bytes: int | None = None
    num_blocks: int | None = None
    block_size_tokens: int | None = None
    prefix_caching: bool = True
    device: str | None = None
    kernels: Literal["auto", "torch"] = "auto"

    def __post_init__(self) -> None:
        """Refuse values that no engine could run under."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("device", "kernels", "prefix_caching") or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field.name} must be a whole number of at least 1, or None, got {value!r}")
        if self.kernels not in ("auto", "torch"):
            raise ConfigError(f"kernels must be auto or torch, got {self.kernels!r}")
        if not isinstance(self.prefix_caching, bool):
            raise ConfigError(f"prefix_caching must be True or False, got {self.prefix_caching!r}")
        if self.kv_cache_bytes is not None and self.num_blocks is not None:
            raise ConfigError("kv_cache_bytes and num_blocks both size the KV cache; give one of them")

    def resolve(self, *, device_type: str, free_bytes: int, kv_bytes_per_token: int, n_positions: int) -> Bounds:
        """Make every choice that was left open.

        device_type: "cpu" or "cuda"    free_bytes: memory free on the device, weights already loaded
        Raises ConfigError when the KV cache would not hold a single block.
        """
        on_cpu = device_type == "cpu"
        # Past 256 rows a CPU's GEMM gains nothing and a long step only spills its caches; a GPU re-reads all weights
        # in every step and wants it as full as it can be (engine-facts 4.1, 4.2).
        max_step_tokens = self.max_step_tokens or (1024 if on_cpu else 8192)
        max_running = self.max_running or 256
        # What a CPU's step costs grows with its rows from about 32 on; a GPU's costs the same, however many there are.
        min_running = min(32, max_running) if on_cpu else max_running
        # A CPU gathers whole blocks and pays for their empty parts: 16 instead of 32 saved a tenth of that traffic.
        block_size = self.block_size_tokens or (16 if on_cpu else 32)
        num_blocks = self.num_blocks
        if num_blocks is None:
            kv_bytes = self.kv_cache_bytes or (min(GIB, free_bytes // 4) if on_cpu else int(free_bytes * 0.85))
            num_blocks = kv_bytes // (block_size * kv_bytes_per_token)
            if num_blocks < 1:
                raise ConfigError(
                    f"kv_cache_bytes must hold at least one block of {block_size} tokens "
                    f"({block_size * kv_bytes_per_token} bytes), got {kv_bytes}; raise it, or lower block_size_tokens"
                )
            # More than this can never be used.
            num_blocks = min(num_blocks, max_running * -(-n_positions // block_size))
        return Bounds(
            max_step_tokens=max_step_tokens,
            min_running=min_running,
            max_running=max_running,
            block_size_tokens=block_size,
            num_blocks=num_blocks,
            prefix_caching=self.prefix_caching,
        )
