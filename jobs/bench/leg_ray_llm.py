"""`ray.data.llm` with vLLM as a leg: a processor as its documentation shows it, between reading and writing Parquet.

python -m jobs.bench.leg_ray_llm WORK.json     # in the environment that has vLLM and Ray (vllm_overlay.py)
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

from jobs.bench.leg_ray import local_ray, read_input
from jobs.bench.pipeline_work import LegWork, note_time, prompt_of


def processor_of(work: LegWork) -> Any:
    """Return the processor; on a CPU it needs a bundle of its own, no accelerator, and no metrics."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = work.settings
    own_stages = settings.get("own_stages", False)
    config = vLLMEngineProcessorConfig(
        model_source=work.checkpoint,
        engine_kwargs={
            "dtype": work.dtype,
            "kv_cache_memory_bytes": work.kv_cache_bytes,
            "enable_prefix_caching": True,
            "max_model_len": 1024,
            "seed": 0,
            **settings.get("engine", {}),
            **({"skip_tokenizer_init": True} if own_stages else {}),
        },
        runtime_env={"env_vars": settings.get("environment", {})},
        concurrency=1,
        batch_size=settings["batch_size"],
        max_concurrent_batches=settings["max_concurrent_batches"],
        accelerator_type=None,
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=own_stages,
        detokenize_stage=own_stages,
    )
    sampling = {
        "temperature": 0.0,
        "max_tokens": work.new_tokens,
        "ignore_eos": True,
        **({"detokenize": False} if own_stages else {}),
    }
    processor = build_processor(
        config,
        preprocess=lambda row: {"prompt": prompt_of(row), "sampling_params": dict(sampling)},
        postprocess=lambda row: {
            "id": row["id"],
            "title": row["title"],
            "text": row["text"],
            "generated_text": row["generated_text"],
            "num_prompt_tokens": row["num_input_tokens"],
            "num_generated_tokens": row["num_generated_tokens"],
        },
    )
    _note_start(processor, work.started)
    return processor


def _note_start(processor: Any, started: str) -> None:
    """Have the engine's stage note when it gets its first rows."""
    stage = processor.get_stage_by_name("vLLMEngineStage")
    theirs = stage.fn

    class Noting(theirs):  # type: ignore[misc, valid-type]
        """Their stage, with a look at the clock."""

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            """See the stage."""
            note_time(started)
            async for output in theirs.udf(self, batch):
                yield output

    # Not by assignment: the stage's validator, which has taken the bundles for itself, would run again and want a GPU.
    stage.__dict__["fn"] = Noting


def main(file: str) -> None:
    """Run the leg."""
    work = LegWork.read(file)
    with local_ray():
        processor_of(work)(read_input(work)).write_parquet(work.output)


if __name__ == "__main__":
    main(sys.argv[1])
