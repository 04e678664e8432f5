"""Rows through a task and the engine: from records to columns as the stages do it, without Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from unit.tiny_tokenizer import train_tokenizer

from gptj_batch.engine import Engine
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.results import Failed
from gptj_batch.tasks.base import Encoded, Task

TOKENIZER = Tokenizer(train_tokenizer())


def added_columns(task: Task, engine: Engine, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the task adds to each record, none of which may fail; all requests are in the engine at once."""
    encoded = task.encoder(TOKENIZER, engine.limits.n_positions)(list(records))
    rows = [row for row in encoded if isinstance(row, Encoded)]
    assert len(rows) == len(records), encoded
    notes = pa.array([row.notes for row in rows], type=task.notes_type).to_pylist()
    maker = task.request_maker(TOKENIZER)
    requests = [maker.requests(str(place), row.token_ids, notes[place]) for place, row in enumerate(rows)]
    results = iter(engine.run([request for of_row in requests for request in of_row]))
    packed = []
    for of_row in requests:
        answers = [next(results) for _ in of_row]
        assert not any(isinstance(answer, Failed) for answer in answers), answers
        packed.append(task.pack(answers))
    raw = pa.array(packed, type=task.raw_type).to_pylist()
    table = pa.table(task.columns(raw, notes, TOKENIZER), schema=task.adds)
    return list(table.to_pylist())
