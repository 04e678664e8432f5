"""The form of the finished parts: their format, compression, partitions and size. Units know nothing of it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

PartFormat = Literal["parquet", "arrow", "jsonl"]

# Each format's compressions; the first is what is meant where none is named. JSON lines are there to be looked at.
COMPRESSIONS: dict[PartFormat, tuple[str, ...]] = {
    "parquet": ("zstd", "snappy", "gzip", "brotli", "lz4", "none"),
    "arrow": ("zstd", "lz4", "none"),
    "jsonl": ("none", "zstd", "gzip"),
}
_ENDINGS = {"zstd": ".zst", "gzip": ".gz", "none": ""}


@dataclass(frozen=True, kw_only=True)
class PartForm:
    """What parts are like; `row_group_rows` is for Parquet, None cuts by bytes."""

    target_file_bytes: int
    format: PartFormat = "parquet"
    compression: str = "zstd"
    partition_by: tuple[str, ...] = ()
    row_group_rows: int | None = None

    @property
    def ending(self) -> str:
        """Return what a part's name ends with; Parquet and Arrow files say inside how they are compressed."""
        return f".jsonl{_ENDINGS[self.compression]}" if self.format == "jsonl" else f".{self.format}"

    def facts(self) -> dict[str, Any]:
        """Return what distinguishes one finished output from another of the same rows, as JSON has it."""
        facts = asdict(self)
        return {"format": facts["format"], "compression": facts["compression"], "partition_by": [*self.partition_by]}
