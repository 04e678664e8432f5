"""Work: the rows that every engine of a workload is given, token ids only, and how they travel to a worker."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["generate", "labels", "classify", "span"]
Numbers = list[list[float]]
"""What comes back, one list a row: tokens, a log-likelihood per label, logits, or start logits and then end logits."""


@dataclass(frozen=True, kw_only=True)
class WorkRow:
    """One row: a prompt, and what its kind of work needs besides."""

    prompt: list[int]
    max_new_tokens: int = 0
    labels: tuple[tuple[int, ...], ...] = ()
    first_token: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows of one kind, all of which are known when the clock starts."""

    kind: Kind
    rows: list[WorkRow]

    @property
    def num_prompt_tokens(self) -> int:
        """Return the tokens of all prompts."""
        return sum(len(row.prompt) for row in self.rows)

    @property
    def num_new_tokens(self) -> int:
        """Return the tokens that are generated for all rows."""
        return sum(row.max_new_tokens for row in self.rows)

    def first(self, count: int) -> "Work":
        """Return the work of the first `count` rows, which are in no order and so like the others."""
        return Work(kind=self.kind, rows=self.rows[:count])

    def write(self, file: Path) -> None:
        """Write the work where a worker finds it."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: str) -> "Work":
        """Read what `write` wrote."""
        stored = json.loads(Path(file).read_text())
        rows = [WorkRow(**{**row, "labels": tuple(tuple(label) for label in row["labels"])}) for row in stored["rows"]]
        return cls(kind=stored["kind"], rows=rows)
