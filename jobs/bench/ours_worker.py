"""Our engine as an engine under test.

python -m jobs.bench.ours_worker
"""

from collections.abc import Callable
from importlib.metadata import version

from gptj_batch import ClassifyRequest, Generated, LabelRequest, Request, SamplingParams, SpanRequest
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult, Classified, Failed, Labelled, SpanLogits
from jobs.bench.measure import serve_engine
from jobs.bench.protocol import Message
from jobs.bench.work import Numbers, Work


class OurEngine:
    """`Engine.run` over all rows at once."""

    _engine: Engine

    def load(self, setup: Message) -> Message:
        """Load the checkpoint; what a step holds and how many run at once are the engine's own choices."""
        self._engine = Engine.from_pretrained(
            setup["checkpoint"],
            head=setup["head"],
            dtype=setup["dtype"],
            config=EngineConfig(kv_cache_bytes=setup["kv_cache_bytes"]),
        )
        return {"versions": {"torch": version("torch")}, "bounds": vars(self._engine.bounds)}

    def prepare(self, work: Work, options: Message) -> Callable[[], Numbers]:
        """See EngineUnderTest."""
        requests = make_requests(work)
        return lambda: [numbers(result) for result in self._engine.run(requests)]

    def counters(self) -> Message:
        """See EngineUnderTest."""
        scheduler = self._engine.scheduler
        return {
            "preemptions": scheduler.num_preemptions,
            "computed_tokens": scheduler.num_fed_tokens,
            "cached_prompt_tokens": scheduler.num_cached_prompt_tokens,
        }


def make_requests(work: Work) -> list[AnyRequest]:
    """Return a request per row."""
    requests: list[AnyRequest] = []
    for index, row in enumerate(work.rows):
        key = str(index)
        match work.kind:
            case "generate":
                sampling = SamplingParams(max_new_tokens=row.max_new_tokens, ignore_eos=True)
                requests.append(Request(key=key, prompt_token_ids=row.prompt, sampling=sampling))
            case "labels":
                requests.append(LabelRequest(key=key, prompt_token_ids=row.prompt, label_token_ids=row.labels))
            case "classify":
                requests.append(ClassifyRequest(key=key, prompt_token_ids=row.prompt))
            case "span":
                requests.append(SpanRequest(key=key, prompt_token_ids=row.prompt, first_token=row.first_token))
    return requests


def numbers(result: AnyResult) -> list[float]:
    """Return a result's numbers; raises RuntimeError for a row that failed."""
    match result:
        case Failed():
            raise RuntimeError(f"row {result.key}: {result.error}")
        case Generated():
            return list(result.token_ids)
        case Labelled():
            return list(result.label_logprobs)
        case Classified():
            return list(result.logits)
        case SpanLogits():
            return [*result.start_logits, *result.end_logits]
        case _:
            raise TypeError(f"no workload asks for a {type(result).__name__}")


if __name__ == "__main__":
    serve_engine(OurEngine())
