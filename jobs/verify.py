"""The command `gptj-batch verify`: the same rows through two engines, compared before a large run.

No Ray and no output: the rows are read, tokenized and asked as a run would, in this process. Exit code 0 where enough
rows agree (all, unless --min-agreement says fewer), 3 where not.
"""

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import pyarrow as pa

from gptj_batch.errors import ConfigError, InputError, shorten
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult
from gptj_batch.stages.columns import KEY, NOTES, PROMPT_TOKEN_IDS
from gptj_batch.stages.read import ReadStage
from gptj_batch.stages.tokenize import TokenizeStage, load_tokenizer
from pipelines.agreement import TOLERANCES, Agreement, comparable
from pipelines.backend_choice import EngineKind, with_backend
from pipelines.config import Job
from pipelines.prepare import Run, prepare
from pipelines.replica import start_here

KINDS: Final = ("native", "vllm", "fake")
DISAGREE: Final = 3


@dataclass(frozen=True)
class Asked:
    """One row: its key and what the engines are asked."""

    key: str
    requests: list[AnyRequest]


def verify(job: Job, kinds: Sequence[str], rows: int, tolerance: float | None, min_agreement: float) -> int:
    """Compare two engines on the first rows of a job, print what was found and return the exit code.

    Raises GPTJBatchError where either engine cannot do the job.
    """
    _check(kinds, rows, min_agreement)
    job = job.model_copy(update={"input": job.input.model_copy(update={"limit": rows})})
    runs = [prepare(with_backend(job, cast(EngineKind, kind))) for kind in kinds]
    asked = _asked(runs[0])
    if not asked:
        raise InputError(f"input.path: none of the first {rows} rows can be asked; a run would say why, row by row")
    answers, facts = [], []
    for kind, run in zip(kinds, runs, strict=True):
        results, fact, seconds = _answers(run, asked)
        answers.append(results)
        facts.append(fact)
        print(f"{kind}: {fact['device']}, {fact['dtype']}, {seconds:.1f} s for {len(asked)} rows", file=sys.stderr)
    dtypes = [str(fact["dtype"]) for fact in facts]
    allowed = tolerance if tolerance is not None else max(TOLERANCES.get(dtype, 0.0) for dtype in dtypes)
    agreement = Agreement(tolerance=allowed)
    for row, ours, theirs in zip(asked, *answers, strict=True):
        agreement.add(row.key, ours, theirs)
    print(f"{kinds[0]} and {kinds[1]}, {' and '.join(dict.fromkeys(dtypes))}, tolerance {allowed:g}")
    print(agreement.text(kinds, shorten))
    return 0 if agreement.share >= min_agreement else DISAGREE


def _check(kinds: Sequence[str], rows: int, min_agreement: float) -> None:
    if len(kinds) != 2 or kinds[0] == kinds[1] or not set(kinds) <= set(KINDS):
        raise ConfigError(f"--backends must be two of {', '.join(KINDS)}, such as native,vllm, got {','.join(kinds)}")
    if rows < 1:
        raise ConfigError(f"--rows must be at least 1, got {rows}")
    if not 0.0 <= min_agreement <= 1.0:
        raise ConfigError(f"--min-agreement must be a share between 0 and 1, got {min_agreement}")


def _asked(run: Run) -> list[Asked]:
    """Read the rows, tokenize them and make their requests; rows that cannot be asked are left out."""
    path, revision = run.model_path, run.job.model.revision
    read = ReadStage(run.plan, np.arange(run.plan.num_units, dtype=np.int32), run.columns, run.job.input.key)
    tokenize = TokenizeStage(run.task, path, revision, run.model.n_positions)
    maker = run.task.request_maker(load_tokenizer(path, revision))
    asked = []
    for place in range(run.plan.num_units):
        table = tokenize(read(pa.table({"id": [place]})))
        columns = (table.column(name).to_pylist() for name in (KEY, PROMPT_TOKEN_IDS, NOTES))
        for key, token_ids, notes in zip(*columns, strict=True):
            if token_ids is not None:
                asked.append(Asked(key, [comparable(one) for one in maker.requests(key, token_ids, notes)]))
    return asked


def _answers(run: Run, asked: Sequence[Asked]) -> tuple[list[list[AnyResult]], dict[str, str | int], float]:
    """Return each row's results by one engine, what that says of itself, and how long it took once it ran."""
    backend = start_here(run)
    try:
        started = time.perf_counter()
        results = iter(backend.run([request for row in asked for request in row.requests]))
        of_rows = [[next(results) for _ in row.requests] for row in asked]
        return of_rows, backend.describe(), time.perf_counter() - started
    finally:
        backend.close()
        del backend
        _free_memory()


def _free_memory() -> None:
    """Give back what the first engine held, so that the second has the GPU to itself."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
