"""Our engine without Ray as a leg: the same prompts, token ids in and token ids out; the clock sees nothing else.

python -m jobs.bench.leg_bare_engine WORK.json
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gptj_batch import Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.results import Generated
from jobs.bench.pipeline_work import LegWork, note_time, prompt_of


def main(file: str) -> None:
    """Run the leg."""
    work = LegWork.read(file)
    torch.set_num_threads(work.threads)
    table = pq.read_table(work.input)
    tokenizer = Tokenizer.from_folder(work.checkpoint)
    engine = Engine.from_pretrained(
        work.checkpoint, dtype=work.dtype, config=EngineConfig(kv_cache_bytes=work.kv_cache_bytes)
    )
    sampling = SamplingParams(max_new_tokens=work.new_tokens, min_new_tokens=work.new_tokens)
    requests = [
        Request(key=str(row), prompt_token_ids=ids, sampling=sampling)
        for row, ids in enumerate(tokenizer.encode_batch([prompt_of(row) for row in table.to_pylist()]))
    ]
    note_time(work.started)
    results = engine.run(requests)
    note_time(work.done)
    done = [result for result in results if isinstance(result, Generated)]
    columns = {
        "generated_text": [tokenizer.decode(result.token_ids, skip_special_tokens=True) for result in done],
        "num_prompt_tokens": [result.num_prompt_tokens for result in done],
        "num_generated_tokens": [len(result.token_ids) for result in done],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    Path(work.output).mkdir()
    pq.write_table(table, Path(work.output) / "part.parquet")


if __name__ == "__main__":
    main(sys.argv[1])
