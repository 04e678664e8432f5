"""The work of the pipelines' benchmark: AG News articles in a Parquet file, a checkpoint with a tokenizer, and the job.

A leg is told its work by a file of JSON, and marks in two files when its model got the first rows, and when all were
on the disk. Standard library only, but for the functions that import what they need: every leg imports this.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from jobs.bench.news import ARTICLES, VOCABULARY

TEMPLATE: Final = "{{ title }}. {{ text }}\nTopic:"
COLUMNS: Final = ("id", "title", "text")
WITHOUT_A_TEXT: Final = 50_256  # from this id on: the end of text, and tokens that only fill the vocabulary up
NEVER: Final = -1e4


@dataclass(frozen=True, kw_only=True)
class LegWork:
    """What a leg is asked to do.

    output: a folder that is not there yet    started: the file that says when the first rows reached the model
    done: the file that says when all was done, for a leg that writes no files    settings: the leg's own
    """

    input: str
    output: str
    started: str
    done: str
    checkpoint: str
    dtype: str
    new_tokens: int
    threads: int
    kv_cache_bytes: int
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the work where its leg finds it."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: str) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(Path(file).read_text()))


def prompt_of(row: dict[str, Any]) -> str:
    """Return what `TEMPLATE` makes of a row."""
    return f"{row['title']}. {row['text']}\nTopic:"


def note_time(file: str) -> None:
    """Write the time into a file, unless it is there."""
    with suppress(FileExistsError), open(file, "x") as stamp:  # noqa: PTH123 - it is to fail where the file is
        stamp.write(repr(time.time()))


def noted_time(file: str) -> float | None:
    """Return what `note_time` wrote; None where there is nothing."""
    path = Path(file)
    return float(path.read_text()) if path.exists() and path.stat().st_size else None


def write_input(file: Path, num_rows: int) -> None:
    """Write the first so many articles."""
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(ARTICLES, columns=list(COLUMNS)).slice(0, num_rows), file)


def text_checkpoint(plain: Path) -> Path:
    """Return the folder of the 204 M checkpoint with GPT-J's tokenizer, made where it is not there yet.

    No token without a text, and no end of text, is ever the likeliest: all legs then generate texts of one length.
    """
    from safetensors.torch import load_file, save_file

    folder = plain.with_name(f"{plain.name}-text")
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = load_file(plain / "model.safetensors")
        tensors["lm_head.bias"][WITHOUT_A_TEXT:] = NEVER
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text((plain / "config.json").read_text())
        for name in ("vocab.json", "merges.txt"):
            (folder / name).write_bytes((VOCABULARY / name).read_bytes())
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder
