"""What a CUDA engine does in a step, run by Triton's interpreter: a small model against its own dense forward pass."""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed (there are wheels for Linux on x86-64 only)")
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("TRITON_INTERPRET is not 1, so the kernels would be compiled for a GPU", allow_module_level=True)

from gptj_batch.engine.cuda_attend import AttendPlan, TritonPagedAttend, plan_attend
from gptj_batch.engine.cuda_graphs import Decoded, DecodeGraphs, DecodeInputs, pick
from gptj_batch.engine.cuda_prompts import one_by_one
from gptj_batch.engine.triton_attention import Pages
from gptj_batch.model import GPTJForCausalLM
from gptj_batch.model.rotary import angles, rotate

from .paged import Scattered
from .test_cuda_graphs import Recorder

PAGE = 4


class Desk:
    """A model, its pages, and sequences whose next tokens are fed by hand."""

    def __init__(self, model: GPTJForCausalLM, prompts: list[list[int]]) -> None:
        config = model.config
        shape = (config.n_head, PAGE, config.head_dim)
        self.model = model
        self.sequences = [list(prompt) for prompt in prompts]
        self.num_fed = [0] * len(prompts)
        width = 8
        blocks = torch.randperm(len(prompts) * width, generator=torch.Generator().manual_seed(0))
        self.tables = blocks.view(-1, width).int()
        self.pages = [Pages(*torch.full((2, len(blocks), *shape), torch.nan)) for _ in range(config.n_layer)]

    def slots(self, row: int, first: int, stop: int) -> Tensor:
        places = torch.arange(first, stop)
        return self.tables[row, places // PAGE].long() * PAGE + places % PAGE

    def attend(self, plan: AttendPlan) -> TritonPagedAttend:
        return TritonPagedAttend(self.pages, plan, one_by_one, num_processors=1)

    @torch.inference_mode()
    def feed(self, decoding: list[int], chunks: dict[int, int]) -> Tensor:
        """Run a step of decoding rows and of so many tokens of others; return the last logits of each."""
        parts = [(row, len(self.sequences[row]) - 1, len(self.sequences[row])) for row in decoding]
        parts += [(row, self.num_fed[row], self.num_fed[row] + count) for row, count in chunks.items()]
        ends = torch.tensor([stop - first for _, first, stop in parts]).cumsum(0)
        described = [
            (int(end) - stop + first, stop - first, first) for end, (_, first, stop) in zip(ends, parts, strict=True)
        ]
        plan = plan_attend(
            slots=torch.cat([self.slots(*part) for part in parts]),
            tables=self.tables[decoding],
            lengths=torch.tensor([stop for _, _, stop in parts[: len(decoding)]], dtype=torch.int32),
            chunks=described[len(decoding) :],
            chunk_tables=self.tables[list(chunks)],
            padded_dim=16,
            dtype=torch.float32,
        )
        token_ids = torch.tensor([token for row, first, stop in parts for token in self.sequences[row][first:stop]])
        positions = torch.cat([torch.arange(first, stop) for _, first, stop in parts])
        hidden = self.model.transformer.encode(token_ids, positions, self.attend(plan))
        for row, _, stop in parts:
            self.num_fed[row] = stop
        return self.model.lm_head(hidden[ends - 1])

    @torch.inference_mode()
    def dense(self, row: int) -> Tensor:
        """Return the logits behind the row's last token that was fed."""
        return self.model(torch.tensor([self.sequences[row][: self.num_fed[row]]])).logits[0, -1]


def test_a_mixed_step_of_decoding_rows_whole_prompts_and_later_chunks(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5, 8], [9, 7, 9, 3, 2, 3]])
    desk.feed([], {0: 3, 1: 5})
    desk.sequences[0].append(8)
    logits = desk.feed([0], {2: 2, 1: 2, 3: 6})
    for found, row in zip(logits, [0, 2, 1, 3], strict=True):
        torch.testing.assert_close(found, desk.dense(row), atol=1e-5, rtol=0)


def test_a_recorded_decoding_step_of_a_model_gives_what_its_dense_pass_gives(model: GPTJForCausalLM) -> None:
    desk = Desk(model, [[3, 1, 4], [1, 5, 9, 2, 6], [5]])
    desk.feed([], {0: 3, 1: 5, 2: 1})

    @torch.inference_mode()
    def decode_step(inputs: DecodeInputs) -> Decoded:
        plan = AttendPlan(slots=inputs.slots, tables=inputs.tables, lengths=inputs.lengths, whole=[], continued=None)
        hidden = model.transformer.encode(inputs.token_ids, inputs.positions, desk.attend(plan))
        return pick(model.lm_head(hidden))

    graphs = DecodeGraphs(decode_step, DecodeInputs.empty(4, 8, torch.device("cpu")), 4, Recorder())
    for token in (7, 2, 8):
        for sequence in desk.sequences:
            sequence.append(token)
        lengths = [len(sequence) for sequence in desk.sequences]
        step = DecodeInputs(
            token_ids=torch.tensor([token] * 3),
            positions=torch.tensor(lengths) - 1,
            slots=torch.cat([desk.slots(row, length - 1, length) for row, length in enumerate(lengths)]),
            tables=desk.tables,
            lengths=torch.tensor(lengths, dtype=torch.int32),
        )
        with torch.inference_mode():
            decoded = graphs.run(step)
        desk.num_fed = lengths
        for row in range(3):
            torch.testing.assert_close(decoded.logits[row], desk.dense(row), atol=1e-5, rtol=0)
            assert decoded.picks[:, row].tolist() == [desk.dense(row).argmax().item(), 1]


def test_rotation_may_be_left_to_attention() -> None:
    rows = Scattered([6], (2, 4, 16), torch.float32)
    query, key, value = torch.randn(3, 3, 2, 16)
    turns = angles(torch.tensor([3, 4, 5]), 8)
    plan = plan_attend(
        slots=rows.slots(0, 3, 6),
        tables=rows.tables[:0],
        lengths=rows.lengths[:0],
        chunks=[(0, 3, 3)],
        chunk_tables=rows.tables,
        padded_dim=16,
        dtype=torch.float32,
    )
    attend = TritonPagedAttend([Pages(rows.keys, rows.values)], plan, one_by_one, num_processors=1)
    expected = attend(0, rotate(query, *turns), rotate(key, *turns), value)
    output = torch.empty(3, 100)[:, 20:52].unflatten(1, (2, 16))
    attend.rotate_and_attend(0, query, key, value, turns, output)
    assert torch.equal(output, expected)
