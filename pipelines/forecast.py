"""A forecast of a run, from a sample of its rows: tokens, what will be cut or refused, memory, operations."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gptj_batch.model_folder import read_config
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.requests import AnyRequest, LabelRequest, Request
from gptj_batch.stages.columns import ERROR, KEY, NOTES, NUM_DROPPED_TOKENS, PROMPT_TOKEN_IDS, strings
from gptj_batch.stages.read import ReadStage
from gptj_batch.stages.tokenize import TokenizeStage
from pipelines.prepare import Run
from pipelines.sizes import ModelSizes

SAMPLE_UNITS = 32


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one row asks of the model.

    prompt_tokens, new_tokens: of all its requests, the latter at most    read_tokens: those that the vocabulary is
    computed for    longest: the most tokens of one request
    """

    prompt_tokens: int
    new_tokens: int
    read_tokens: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the sample says of the whole."""

    rows: int
    files: int
    units: int
    sampled: int
    costs: tuple[Cost, ...]
    cut: int
    errors: dict[str, int]
    requests: tuple[AnyRequest, ...]
    sizes: ModelSizes

    def scaled(self, number: float) -> float:
        """Return a number of the sample as that of all rows."""
        return number * self.rows / max(self.sampled, 1)

    @property
    def prompt_tokens(self) -> float:
        """Return the tokens of all rows' prompts."""
        return self.scaled(sum(cost.prompt_tokens for cost in self.costs))

    @property
    def new_tokens(self) -> float:
        """Return the most tokens that are generated."""
        return self.scaled(sum(cost.new_tokens for cost in self.costs))

    @property
    def operations(self) -> float:
        """Return the floating-point operations of the whole run, nothing shared."""
        return self.scaled(
            sum(
                self.sizes.operations(cost.prompt_tokens + cost.new_tokens, cost.read_tokens, cost.longest / 2)
                for cost in self.costs
            )
        )

    def histogram(self) -> list[tuple[str, int]]:
        """Return how many rows of the sample have prompts of up to 16, 32, 64, ... tokens."""
        buckets = Counter(max(4, int(cost.prompt_tokens - 1).bit_length()) for cost in self.costs)
        return [
            (f"{0 if power == 4 else 2 ** (power - 1) + 1} to {2**power}", buckets[power])
            for power in range(min(buckets, default=0), max(buckets, default=-1) + 1)
        ]

    def percentile(self, share: float) -> int:
        """Return the prompt tokens that so large a share of rows stays within."""
        return int(np.quantile([cost.prompt_tokens for cost in self.costs] or [0], share, method="higher"))


def forecast(run: Run, max_rows: int = 1000) -> Forecast:
    """Read and encode a sample of a run's rows, spread evenly over its units; no model is started.

    Raises InputError where a sampled file cannot be read.
    """
    tables = list(_sample(run, max_rows))
    requests = run.task.request_maker(Tokenizer.from_folder(run.model.folder))
    errors: Counter[str] = Counter()
    per_row: list[Sequence[AnyRequest]] = []
    for table in tables:
        errors.update(filter(None, strings(table, ERROR)))
        columns = (table.column(name).to_pylist() for name in (KEY, PROMPT_TOKEN_IDS, NOTES))
        rows = zip(*columns, strict=True)
        per_row += [requests.requests(str(key), ids, notes) for key, ids, notes in rows if ids is not None]
    return Forecast(
        rows=run.plan.num_rows,
        files=len(run.inputs.files),
        units=run.plan.num_units,
        sampled=sum(table.num_rows for table in tables),
        costs=tuple(cost(of_row) for of_row in per_row),
        cut=sum(1 for table in tables for number in table.column(NUM_DROPPED_TOKENS).to_pylist() if number),
        errors=dict(errors.most_common(10)),
        requests=tuple(request for of_row in per_row for request in of_row),
        sizes=ModelSizes.of(read_config(run.model.folder)),
    )


def _sample(run: Run, max_rows: int) -> Iterator[pa.Table]:
    """Yield rows with their prompts' tokens, at most so many, of units spread over the run."""
    num_units = min(run.plan.num_units, SAMPLE_UNITS)
    units = np.unique(np.linspace(0, run.plan.num_units - 1, num_units).astype(np.int32))
    read = ReadStage(run.plan, units, run.columns, run.job.input.key)
    tokenize = TokenizeStage(run.task, run.model_path, run.job.model.revision, run.model.n_positions)
    for place in range(len(units)):
        rows = read(pa.table({"id": [place]}))
        yield tokenize(rows.slice(0, -(-max_rows // len(units))))


def cost(requests: Sequence[AnyRequest]) -> Cost:
    """Return what a row's requests ask of the model."""
    prompts, new, read, longest = 0, 0, 0, 0
    for request in requests:
        ahead, answers = _tokens_behind(request)
        # The samples of a row share its prompt.
        prompts = max(prompts, len(request.prompt_token_ids)) if ahead else prompts + len(request.prompt_token_ids)
        new += ahead
        read += ahead or answers
        longest = max(longest, len(request.prompt_token_ids) + ahead)
    return Cost(prompt_tokens=prompts, new_tokens=new, read_tokens=read, longest=longest)


def _tokens_behind(request: AnyRequest) -> tuple[int, int]:
    """Return the tokens that a request may generate, and those that the vocabulary is read for otherwise."""
    if isinstance(request, Request):
        return request.sampling.max_new_tokens * request.sampling.num_beams, 0
    if isinstance(request, LabelRequest):
        return 0, sum(map(len, request.label_token_ids))
    return 0, len(request.prompt_token_ids) if hasattr(request, "first_token") else 0
