"""What a CUDA engine does in a step, run by Triton's interpreter: a small model against its own dense forward pass."""

import os
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import NoReturn

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed (there are wheels for Linux on x86-64 only)")
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("TRITON_INTERPRET is not 1, so the kernels would be compiled for a GPU", allow_module_level=True)

from gptj_batch import Request, SamplingParams
from gptj_batch.engine import Engine, EngineConfig
from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.body import Body
from gptj_batch.engine.cuda_attention import TritonPagedAttention
from gptj_batch.engine.cuda_forward import CudaForward
from gptj_batch.engine.cuda_graphs import Decoded
from gptj_batch.engine.cuda_prompts import one_by_one
from gptj_batch.engine.kv_cache import KVCache
from gptj_batch.engine.linear import SharedWeights
from gptj_batch.engine.prepare import _cuda_runner
from gptj_batch.engine.scheduler import Chunk, Step
from gptj_batch.engine.sequence import Sequence
from gptj_batch.engine.step_batch import build_step_batch
from gptj_batch.model import GPTJForCausalLM

from .test_cuda_graphs import Recorder

PAGE, MAX_BLOCKS, MAX_RUNNING = 4, 8, 4
CPU = torch.device("cpu")


class Desk:
    """A model, its cache full of NaN, and sequences that are fed by hand."""

    def __init__(self, model: GPTJForCausalLM, prompts: list[list[int]]) -> None:
        self.model = model
        self.recorder = Recorder()
        config, num_blocks = model.config, len(prompts) * MAX_BLOCKS
        cache = KVCache(
            num_layers=config.n_layer,
            num_blocks=num_blocks,
            num_heads=config.n_head,
            block_size_tokens=PAGE,
            head_dim=config.head_dim,
            dtype=torch.float32,
            device=CPU,
        )
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        self.attention = TritonPagedAttention(cache, one_by_one, num_processors=1)
        self.forward = self.record(self.recorder)
        blocks = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).view(-1, MAX_BLOCKS)
        self.sequences = [Sequence(uid, Request(key="a", prompt_token_ids=ids)) for uid, ids in enumerate(prompts)]
        for sequence, of_sequence in zip(self.sequences, blocks.tolist(), strict=True):
            sequence.block_table = of_sequence
        self.num_fed = [0] * len(prompts)

    def record(self, capture: Callable[[Callable[[], Decoded]], tuple[Callable[[], None], Decoded]]) -> CudaForward:
        body = Body(self.model, SharedWeights())
        body._pads = False  # a GPU's steps are not padded
        return CudaForward(body, self.attention, MAX_RUNNING, MAX_BLOCKS, capture)

    def feed(self, counts: dict[int, int], copies: Ordered[Copy] = ()) -> dict[int, Tensor]:
        """Run a step of so many tokens of each sequence; return the logits behind each that is then complete."""
        chunks = [Chunk(self.sequences[uid], self.num_fed[uid], count) for uid, count in counts.items()]
        batch = build_step_batch(Step(chunks=chunks, copies=list(copies)), PAGE, CPU)
        logits = self.forward(batch)
        for uid, count in counts.items():
            self.num_fed[uid] += count
        found = [] if logits is None else list(logits.clone())
        return {sequence.uid: row for sequence, row in zip(batch.sequences, found, strict=True)}

    @torch.inference_mode()
    def dense(self, uid: int) -> Tensor:
        """Return the logits behind the sequence's last token that was fed."""
        return self.model(torch.tensor([self.sequences[uid].token_ids[: self.num_fed[uid]]])).logits[0, -1]

    def check(self, logits: dict[int, Tensor], *uids: int) -> None:
        assert sorted(logits) == sorted(uids)
        for uid, row in logits.items():
            torch.testing.assert_close(row, self.dense(uid), atol=1e-5, rtol=0)


def test_a_mixed_step_of_decoding_rows_whole_prompts_and_later_chunks(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5, 8], [9, 7, 9, 3, 2, 3], [4]])
    desk.check(desk.feed({0: 3, 1: 5}), 0)
    desk.sequences[0].append(8)
    desk.check(desk.feed({0: 1, 2: 2, 1: 2, 3: 6, 4: 1}), 0, 1, 2, 3, 4)
    assert not desk.recorder.replayed


def test_steps_in_which_every_row_decodes_are_replayed(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[3, 1, 4], [1, 5, 9, 2, 6], [5]])
    desk.feed({0: 3, 1: 5, 2: 1})
    for token in (7, 2, 8):
        for sequence in desk.sequences:
            sequence.append(token)
        desk.check(desk.feed({0: 1, 1: 1, 2: 1}), 0, 1, 2)
    desk.sequences[1].append(9)
    desk.check(desk.feed({1: 1}), 1)
    assert desk.recorder.replayed == [4, 4, 4, 1]


def test_a_step_with_more_rows_than_any_recording_runs_without(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[token] for token in range(MAX_RUNNING + 1)])
    desk.check(desk.feed(dict.fromkeys(range(MAX_RUNNING + 1), 1)), *range(MAX_RUNNING + 1))
    assert not desk.recorder.replayed


def test_a_step_that_completes_no_prompt_has_no_logits(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[3, 1, 4]])
    assert desk.feed({0: 2}) == {}
    desk.check(desk.feed({0: 1}), 0)
    assert desk.recorder.replayed == [1]


def test_where_nothing_can_be_recorded_decoding_gives_the_same(model: GPTJForCausalLM) -> None:
    def refuse(function: Callable[[], Decoded]) -> NoReturn:
        raise RuntimeError("no")

    desk = Desk(model, [[3, 1, 4]])
    desk.forward = desk.record(refuse)
    assert desk.forward.graphs_fact == "none (RuntimeError: no)"
    desk.feed({0: 2})
    desk.check(desk.feed({0: 1}), 0)


def test_blocks_are_copied_before_a_step_whether_it_is_replayed_or_not(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[3, 1, 4], [3, 1, 4], [3, 1, 4, 9]])
    desk.feed({0: 3})
    source = desk.sequences[0].block_table[0]
    for uid, count in ((1, 1), (2, 2)):
        desk.num_fed[uid] = 2
        destination = desk.sequences[uid].block_table[0]
        desk.check(desk.feed({uid: count}, [Copy(source, destination, 2)]), uid)
    assert desk.recorder.replayed == [1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA graphs can be recorded here")
def test_an_engine_as_on_a_gpu_says_what_it_does_without_and_gives_the_same_tokens(model: GPTJForCausalLM) -> None:
    config = EngineConfig(max_running=3, block_size_tokens=4, num_blocks=24, max_step_tokens=8, kernels="torch")
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], [1, 5, 9, 2, 6, 5, 3, 5, 8, 3], [2], [7, 1, 8, 2, 8]]
    sampling = SamplingParams(max_new_tokens=6, ignore_eos=True)
    requests = [Request(key=str(uid), prompt_token_ids=ids, sampling=sampling) for uid, ids in enumerate(prompts)]
    plain, engine = Engine(model, config), Engine(model, config)
    body = Body(model, SharedWeights())
    body._pads = False
    engine.runner, facts = _cuda_runner(model, body, engine.bounds)
    assert [result.token_ids for result in engine.run(requests)] == [result.token_ids for result in plain.run(requests)]
    assert facts["paged_attention"] == "triton"
    assert facts["cuda_graphs"].startswith("none (")
