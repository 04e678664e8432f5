"""The workloads of the suite: one line of the table each, with the ratios that are the goal."""

from jobs.bench import news, rows
from jobs.bench.plan import LegSpec, Workload, ours, transformers, transformers_sorted, vllm

# vLLM shares whole blocks only; with its own choice for a CPU, 128 tokens, it finds less of a prefix than with 32.
DEFAULT_BLOCKS = vllm("vllm, blocks of 128", load={"vllm": {}})
SHARED_CACHE = LegSpec(
    name="transformers, cache by hand",
    engine="transformers",
    options={"method": "labels-after-shared"},
    batch_sizes=(16, 64),
    max_rows=256,
)

OWN_CACHE = LegSpec(
    name="transformers, cache by hand",
    engine="transformers",
    options={"method": "labels-after-own"},
    batch_sizes=(1,),
    max_rows=32,
)

EXACT = Workload(
    id="fp32",
    title="greedy tokens in float32: equal, token for token",
    unit="tokens/s",
    make=lambda count, seed: rows.ragged(count, seed, shortest=8, longest=64, new_tokens=16),
    num_rows=16,
    legs=(ours(dtype="float32"), transformers(batch_sizes=(16,), dtype="float32")),
    goals={},
    rounds=1,
    must_equal=True,
)

W1 = Workload(
    id="W1",
    title="generate: 256 prompts of 8 to 96 tokens, 32 out",
    unit="tokens/s",
    make=lambda count, seed: rows.ragged(count, seed, shortest=8, longest=96, new_tokens=32),
    num_rows=256,
    legs=(ours(), transformers(), transformers_sorted(), vllm()),
    goals={"transformers": 2.5, "vllm": 1.1},
)

W2 = Workload(
    id="W2",
    title="generate: 256 prompts of 64 tokens, outputs geometric with mean 32, at most 256",
    unit="tokens/s",
    make=lambda count, seed: rows.geometric(count, seed, prompt_tokens=64, mean=32, cap=256),
    num_rows=256,
    legs=(ours(), transformers(max_rows=128), vllm()),
    goals={"transformers": 6.0, "vllm": 1.1},
)

W3 = Workload(
    id="W3",
    title="label: 512 rows, 600 tokens shared and 32 own, 8 one-token labels",
    unit="rows/s",
    make=lambda count, seed: rows.shared_instruction(count, seed, shared=600, own=32, num_labels=8),
    num_rows=512,
    legs=(ours(), transformers(max_rows=64), SHARED_CACHE, vllm(), DEFAULT_BLOCKS),
    goals={"transformers": 15.0, "vllm": 3.0},
)

W3_NEWS = Workload(
    id="W3-news",
    title="label: 512 AG News articles behind an instruction of about 600 tokens, 8 topics",
    unit="rows/s",
    make=news.news,
    num_rows=512,
    legs=(ours(), transformers(max_rows=64), vllm()),
    goals=W3.goals,
    missing=news.missing,
)

W4 = Workload(
    id="W4",
    title="label: 64 rows of 300 tokens, 8 labels of 3 tokens",
    unit="rows/s",
    make=lambda count, seed: rows.long_labels(count, seed, own=300, num_labels=8, label_tokens=3),
    num_rows=64,
    legs=(
        ours(),
        # A row's labels are its batch.
        transformers(max_rows=16, batch_sizes=(1,)),
        OWN_CACHE,
        vllm("vllm, prompt_logprobs", method="prompt-labels", max_rows=4),
        vllm(),
    ),
    goals={"transformers": 10.0, "vllm": 8.0},
)

W5 = Workload(
    id="W5",
    title="classification head: 512 texts of 8 to 256 tokens, lognormal",
    unit="rows/s",
    make=lambda count, seed: rows.lognormal_texts(count, seed, shortest=8, longest=256),
    num_rows=512,
    legs=(ours(), transformers(max_rows=256), transformers_sorted(max_rows=256), vllm()),
    goals={"transformers": 1.8, "vllm": 1.1},
    head="sequence-classification",
)

W6 = Workload(
    id="W6",
    title="span head: 256 rows, question of 16 tokens and context of 64 to 480",
    unit="rows/s",
    make=lambda count, seed: rows.questions(count, seed, question=16, shortest=64, longest=480),
    num_rows=256,
    legs=(ours(), transformers(max_rows=128), transformers_sorted(max_rows=128)),
    goals={"transformers": 1.8},
    head="question-answering",
)

W9 = Workload(
    id="W9",
    title="generate: 128 prompts of 512 tokens, 128 out, KV memory for 16 k tokens",
    unit="tokens/s",
    make=lambda count, seed: rows.ragged(count, seed, shortest=512, longest=512, new_tokens=128),
    num_rows=128,
    # A batch of 64 would hold 40 k tokens.
    legs=(ours(), transformers(max_rows=32, batch_sizes=(1, 16)), vllm()),
    goals={"transformers": 2.5, "vllm": 1.1},
    kv_tokens=16 * 1024,
)

INT8 = (ours("ours, int8", dtype="int8"), ours("ours, bfloat16", counts_for="bfloat16"))
W11_W1 = Workload(
    id="W11-W1",
    title="int8 on W1",
    unit="tokens/s",
    make=W1.make,
    num_rows=W1.num_rows,
    legs=INT8,
    goals={"bfloat16": 1.5},
)
W11_W3 = Workload(
    id="W11-W3",
    title="int8 on W3",
    unit="rows/s",
    make=W3.make,
    num_rows=W3.num_rows,
    legs=INT8,
    goals={"bfloat16": 1.5},
    min_agreement=0.99,
)

# All legs are one engine, which still knows what it computed in the leg before: each has seeds of its own.
SEEDS_APART = 1_000_000
W12 = Workload(
    id="W12",
    title="generate: prompts of 8 to 24 tokens, 8 out, as the queue grows",
    unit="tokens/s",
    make=lambda count, seed: rows.ragged(count, seed + SEEDS_APART * count, shortest=8, longest=24, new_tokens=8),
    num_rows=4096,
    legs=tuple(
        ours(f"ours, {count} queued", max_rows=count, repeats=max(1, 1024 // count)) for count in (64, 256, 1024, 4096)
    ),
    goals={},
    max_spread=0.05,
)

WORKLOADS: tuple[Workload, ...] = (EXACT, W1, W2, W3, W3_NEWS, W4, W11_W1, W11_W3, W12, W9, W5, W6)
"""In the order in which they run: those that share their workers stand together."""
