"""transformers in an actor of Ray Data's `map_batches` as a leg, as its documentation shows batch inference.

python -m jobs.bench.leg_map_batches WORK.json     # with "ray": false in its settings, without Ray
"""

import sys
from typing import Any

from jobs.bench.pipeline_work import LegWork, note_time, prompt_of


class Generate:
    """A model and its tokenizer; a call does one batch."""

    def __init__(self, work: LegWork) -> None:
        import torch
        import transformers

        torch.set_num_threads(work.threads)
        self._work = work
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(work.checkpoint, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.eos_token or "!"
        kind: Any = transformers.GPTJForCausalLM
        self._model = kind.from_pretrained(work.checkpoint, dtype=getattr(torch, work.dtype)).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the columns to a batch of rows."""
        import torch

        note_time(self._work.started)
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        inputs = self._tokenizer([prompt_of(row) for row in rows], return_tensors="pt", padding=True)
        with torch.inference_mode():
            generated = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self._work.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        new = generated[:, inputs["input_ids"].shape[1] :]
        return {
            **batch,
            "generated_text": self._tokenizer.batch_decode(new, skip_special_tokens=True),
            "num_prompt_tokens": inputs["attention_mask"].sum(1).numpy(),
            "num_generated_tokens": [new.shape[1]] * len(rows),
        }


def through_ray(work: LegWork) -> None:
    """Run the rows through an actor of Ray Data."""
    import ray

    from jobs.bench.leg_ray import local_ray, read_input

    with local_ray():
        read_input(work).map_batches(
            Generate,
            fn_constructor_args=(work,),
            batch_size=work.settings["batch_size"],
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        ).write_parquet(work.output)


def alone(work: LegWork) -> None:
    """Run the rows in this process, one batch after the other."""
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

    size = work.settings["batch_size"]
    table, generate = pq.read_table(work.input), Generate(work)
    batches = [generate(table.slice(first, size).to_pydict()) for first in range(0, table.num_rows, size)]
    Path(work.output).mkdir()
    pq.write_table(pa.concat_tables([pa.table(batch) for batch in batches]), Path(work.output) / "part.parquet")


def main(file: str) -> None:
    """Run the leg."""
    work = LegWork.read(file)
    (through_ray if work.settings.get("ray", True) else alone)(work)


if __name__ == "__main__":
    main(sys.argv[1])
