"""Our Triton kernels, run by Triton's interpreter, against attention in float64."""

import os

import numpy
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed (there are wheels for Linux on x86-64 only)")
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("TRITON_INTERPRET is not 1, so the kernels would be compiled for a GPU", allow_module_level=True)

from gptj_batch.engine import triton_attention
from gptj_batch.engine.triton_attention import Pages, count_workers, decode, plan_prefill, prefill, rotate_and_write
from gptj_batch.model.rotary import angles, rotate

from .paged import Scattered

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HEAD_SIZES = pytest.mark.parametrize(
    "shape", [(3, 4, 8), (2, 16, 24), (2, 16, 64), (1, 32, 128), (2, 32, 256)], ids=str
)


def decoded(rows: Scattered, num_processors: int = 1) -> Tensor:
    query = rows.last_queries()
    output = torch.full_like(query, torch.nan)
    decode(query, Pages(rows.keys, rows.values), rows.tables, rows.lengths, output, num_processors)
    return output


def prefilled(rows: Scattered, *chunks: tuple[int, int, int]) -> list[Tensor]:
    """Run chunks of (row, first, stop), packed in this order."""
    query = torch.cat([rows.qkv[row][0, first:stop] for row, first, stop in chunks])
    output = torch.full_like(query, torch.nan)
    sizes = [stop - first for _, first, stop in chunks]
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    described = [(starts[index], sizes[index], first) for index, (_, first, _) in enumerate(chunks)]
    tables = rows.tables[[row for row, _, _ in chunks]]
    pages = Pages(rows.keys, rows.values)
    prefill(query, pages, plan_prefill(described, tables, pages.shape["padded_dim"], query.dtype), output)
    return list(output.split(sizes))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[found.dtype], rtol=0)


@HEAD_SIZES
def test_decoding_rows_of_ragged_lengths_in_shuffled_pages(shape: tuple[int, int, int]) -> None:
    page = shape[1]
    rows = Scattered([1, page - 1, page, page + 1, 3 * page + 2], shape, torch.float32)
    for row, output in enumerate(decoded(rows)):
        close(output[None], rows.exact(row, int(rows.lengths[row]) - 1, int(rows.lengths[row])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decoding_in_half_precision_rounds_only_what_is_stored(dtype: torch.dtype) -> None:
    rows = Scattered([37], (2, 32, 256), dtype)
    close(decoded(rows), rows.exact(0, 36, 37))


def test_a_row_without_tokens_gets_zeros_and_its_neighbours_do_not_notice() -> None:
    rows = Scattered([5, 0, 3], (2, 4, 8), torch.float32)
    output = decoded(rows)
    assert not output[1].any()
    close(output[2:], rows.exact(2, 2, 3))


@pytest.mark.parametrize("num_tokens", [256, 257, 600])
def test_splits_shared_out_among_programs_give_the_same_bits(num_tokens: int) -> None:
    rows = Scattered([num_tokens, 0, 3], (2, 32, 16), torch.float32)
    alone, shared = decoded(rows, num_processors=1), decoded(rows, num_processors=100)
    assert torch.equal(alone, shared)
    close(shared[:1], rows.exact(0, num_tokens - 1, num_tokens))


def test_a_row_has_the_same_bits_in_any_company() -> None:
    company = Scattered([300, 40, 7], (2, 16, 16), torch.float16)
    pages = Pages(company.keys, company.values)
    query = company.last_queries()[1:2]
    output = torch.empty_like(query)
    decode(query, pages, company.tables[1:2, :3], company.lengths[1:2], output, num_processors=50)
    assert torch.equal(output[0], decoded(company)[1])


def test_scores_too_large_for_half_precision_are_no_problem() -> None:
    rows = Scattered([9], (1, 4, 16), torch.float16)
    rows.qkv[0][0] *= 3000
    close(decoded(rows), rows.exact(0, 8, 9))


@pytest.mark.parametrize("part", ["keys", "values"])
def test_what_is_not_finite_shows_in_its_own_row_only(part: str) -> None:
    rows = Scattered([6, 5], (1, 4, 8), torch.float32)
    getattr(rows, part)[rows.tables[0, 0], :, 2] = torch.nan
    output = decoded(rows)
    assert output[0].isnan().any()
    close(output[1:], rows.exact(1, 4, 5))


def test_query_and_output_may_be_columns_of_wider_buffers() -> None:
    rows = Scattered([6, 9], (2, 4, 16), torch.float32)
    wide = torch.zeros(2, 100)
    query, output = (wide[:, first : first + 32].unflatten(1, (2, 16)) for first in (4, 60))
    query.copy_(rows.last_queries())
    decode(query, Pages(rows.keys, rows.values), rows.tables, rows.lengths, output, 1)
    assert torch.equal(output, decoded(rows))
    assert not wide[:, 36:60].any()


@HEAD_SIZES
def test_prompts_and_later_chunks_in_one_launch(shape: tuple[int, int, int]) -> None:
    page = shape[1]
    rows = Scattered([page + 3, 2, 2 * page + 1], shape, torch.float32)
    chunks = [(0, 0, page + 3), (1, 1, 2), (2, page - 1, 2 * page + 1)]
    for (row, first, stop), output in zip(chunks, prefilled(rows, *chunks), strict=True):
        close(output, rows.exact(row, first, stop))


def test_a_chunk_of_several_tiles() -> None:
    rows = Scattered([150], (1, 16, 16), torch.float16)
    close(prefilled(rows, (0, 5, 150))[0], rows.exact(0, 5, 150))


def test_a_prompt_has_the_same_bits_however_it_is_cut() -> None:
    # The interpreter multiplies by numpy, and on some CPUs its BLAS treats a row by its place in the matrix.
    left, right = (numpy.random.default_rng(0).standard_normal((16, 16), numpy.float32) for _ in range(2))
    if any((numpy.roll(left, by, 0) @ right != numpy.roll(left @ right, by, 0)).any() for by in range(16)):
        pytest.skip("numpy's products depend on a row's place on this machine, and so the interpreter's")
    rows = Scattered([90], (1, 16, 16), torch.float32)
    whole = prefilled(rows, (0, 0, 90))[0]
    pieces = [prefilled(rows, (0, first, stop))[0] for first, stop in ((0, 33), (33, 34), (34, 90))]
    assert torch.equal(torch.cat(pieces), whole)


def test_rows_that_are_in_no_chunk_are_left_alone() -> None:
    rows = Scattered([5], (1, 4, 8), torch.float32)
    query = torch.cat([torch.full((2, 1, 8), torch.nan), rows.qkv[0][0]])
    output = torch.full_like(query, 7.0)
    pages = Pages(rows.keys, rows.values)
    prefill(query, pages, plan_prefill([(2, 5, 0)], rows.tables, 16, query.dtype), output)
    close(output[2:], rows.exact(0, 0, 5))
    assert (output[:2] == 7.0).all()


# bfloat16 takes the same way; Triton's interpreter cuts its last bits off where a GPU rounds.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("head_dim, rotary_dim", [(16, 16), (24, 8), (256, 64)])
def test_rotation_on_the_way_into_the_pages_has_the_bits_of_the_model(
    head_dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    rows = Scattered([7], (3, 4, head_dim), dtype)
    fused = torch.randn(4, 3 * 3 * head_dim + 5).to(dtype)  # as one product gives it, with other columns behind
    query, key, value = fused[:, : 9 * head_dim].unflatten(1, (3, 3, head_dim)).unbind(1)
    turns = angles(torch.tensor([0, 3, 11, 2]), rotary_dim)
    expected_query, expected_key, expected_value = rotate(query, *turns), rotate(key, *turns), value.clone()
    before = rows.keys.clone()
    slots = torch.cat([rows.slots(0, 2, 5), torch.tensor([-1])])
    rotate_and_write(query, key, value, *turns, slots, Pages(rows.keys, rows.values))
    assert torch.equal(query, expected_query)
    assert torch.equal(key, expected_key)
    assert torch.equal(rows.keys[slots[:3] // 4, :, slots[:3] % 4], expected_key[:3])
    assert torch.equal(rows.values[slots[:3] // 4, :, slots[:3] % 4], expected_value[:3])
    changed = ((rows.keys != before) & ~(rows.keys.isnan() & before.isnan())).any(-1).any(1)
    assert changed.sum() == 3


def test_more_programs_share_a_row_only_where_rows_do_not_fill_the_device() -> None:
    assert count_workers(16 * 256, max_splits=8, num_processors=132) == 1
    assert count_workers(16, max_splits=8, num_processors=132) == 8
    assert count_workers(16 * 4, max_splits=8, num_processors=132) == 4
    assert count_workers(16, max_splits=0, num_processors=132) == 1


def test_splits_are_made_of_whole_tiles() -> None:
    for padded_dim in (16, 32, 64, 128, 256, 512):
        for dtype in TOLERANCE:
            tile = triton_attention.decode_tile(padded_dim, dtype)["tile_tokens"]
            assert triton_attention.SPLIT_TOKENS % tile == 0
