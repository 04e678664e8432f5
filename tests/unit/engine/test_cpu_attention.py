"""The C++ attention against a dense one in float64, and against itself, bit for bit, however a prompt is cut."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.engine.block_tables import Copy
from gptj_batch.engine.cpu_attention import (
    MAX_QUERIES,
    NONE,
    TILE_TOKENS,
    CpuPagedAttention,
    padded_head_dim,
    query_parts,
    tile_parts,
)
from gptj_batch.engine.cpu_kernels import build, call
from gptj_batch.engine.step_batch import Span

from .kernels_here import needs_kernels
from .paged_sequences import PagedSequences, Shape, make_cache

ATOL = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
Portable = tuple[torch.dtype, ctypes.CDLL]
SMALL = Shape(heads=3, head_dim=24, rotary=8, block=16)


def paged(lengths: list[int], shape: Shape = SMALL) -> PagedSequences:
    shape = replace(shape, cache_dim=padded_head_dim(shape.head_dim))
    return PagedSequences(lengths, shape, lambda cache: CpuPagedAttention(cache, shape.head_dim))


def assert_right(sequences: PagedSequences, uid: int, found: torch.Tensor, start: int = 0) -> None:
    expected = sequences.expected(uid)[start : start + len(found)]
    torch.testing.assert_close(found.double(), expected, atol=ATOL[found.dtype], rtol=0)


def fed_in(sequences: PagedSequences, cuts: list[int], uid: int = 0) -> torch.Tensor:
    """Feed a whole sequence, cut at `cuts`; returns: (C, E)."""
    edges = [0, *cuts, len(sequences.projected[uid])]
    return torch.cat([sequences.feed((uid, start, stop))[0] for start, stop in pairwise(edges)])


@needs_kernels
@DTYPES
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize(
    ("head_dim", "rotary"),
    [(8, 8), (8, 4), (16, 16), (24, 8), (24, 24), (64, 16), (64, 64), (128, 64), (128, 128), (256, 64), (256, 256)],
)
def test_chunks_and_single_tokens_give_what_dense_attention_gives(
    head_dim: int, rotary: int, block: int, dtype: torch.dtype
) -> None:
    sequences = paged([75, 37, 1], Shape(head_dim=head_dim, rotary=rotary, block=block, num_blocks=12, dtype=dtype))
    first = sequences.feed((0, 0, 50), (1, 0, 36))
    second = sequences.feed((0, 50, 74), (1, 36, 37), (2, 0, 1))
    third = sequences.feed((0, 74, 75))
    for uid, start, piece in ((0, 0, first[0]), (1, 0, first[1]), (0, 50, second[0]), (1, 36, second[1])):
        assert_right(sequences, uid, piece, start)
    assert_right(sequences, 2, second[2])
    assert_right(sequences, 0, third[0], 74)


@needs_kernels
@DTYPES
@pytest.mark.parametrize("num_tokens", [1, 2, 15, 16, 17, 31, 63, 64, 65, 129])
def test_every_length_of_context_is_seen_to_its_end_and_not_beyond(num_tokens: int, dtype: torch.dtype) -> None:
    sequences = paged([num_tokens], replace(SMALL, dtype=dtype))
    assert_right(sequences, 0, fed_in(sequences, list(range(1, num_tokens))))


@needs_kernels
@DTYPES
@pytest.mark.parametrize("head_dim", [8, 24, 64, 128, 144, 256])
def test_a_tokens_result_is_the_same_bit_for_bit_however_its_prompt_is_cut(head_dim: int, dtype: torch.dtype) -> None:
    shape = Shape(head_dim=head_dim, rotary=min(head_dim, 40), block=16, num_blocks=8, dtype=dtype)
    length = 71
    alone = fed_in(paged([length], shape), list(range(1, length)))
    for size in (*range(2, 21), 33, length):
        assert torch.equal(fed_in(paged([length], shape), list(range(size, length, size))), alone), size


@needs_kernels
@DTYPES
@given(cuts=st.lists(st.integers(1, 69), unique=True, max_size=6).map(sorted))
def test_any_cut_gives_the_same_bits(cuts: list[int], dtype: torch.dtype) -> None:
    shape = replace(SMALL, dtype=dtype)
    assert torch.equal(fed_in(paged([70], shape), cuts), fed_in(paged([70], shape), []))


@needs_kernels
@DTYPES
@pytest.mark.parametrize("block", [16, 32, 48])
def test_company_block_size_and_place_in_the_cache_change_no_bit(block: int, dtype: torch.dtype) -> None:
    shape = replace(SMALL, dtype=dtype, block=block)
    expected = fed_in(paged([40], replace(shape, block=16)), [])
    company = paged([40, 3, 29, 64, 1], shape)
    first = company.feed((1, 0, 2), (0, 0, 23), (2, 0, 20), (3, 0, 63))
    second = company.feed((3, 63, 64), (4, 0, 1), (1, 2, 3), (0, 23, 40), (2, 20, 29))
    assert torch.equal(torch.cat((first[1], second[3])), expected)


@needs_kernels
@DTYPES
def test_tokens_that_nobody_reads_are_stored_and_what_is_read_is_the_same_to_the_bit(dtype: torch.dtype) -> None:
    shape = replace(SMALL, dtype=dtype)
    everything = fed_in(paged([40], shape), [])
    sequences = paged([40, 30, 29], shape)
    sequences.feed((1, 0, 21), (0, 0, 39), (2, 0, 1), only_read=True)  # the last token of none of them
    sequences.feed((2, 1, 2), only_read=True)
    last, chunk, other = sequences.feed((0, 39, 40), (2, 2, 29), (1, 21, 30), only_read=True)
    assert torch.equal(last, everything[39:])
    assert_right(sequences, 2, chunk, 28)
    assert_right(sequences, 1, other, 29)


@needs_kernels
def test_nothing_is_made_of_a_token_that_nobody_reads() -> None:
    cache = make_cache(replace(SMALL, cache_dim=padded_head_dim(SMALL.head_dim)))
    width = SMALL.heads * SMALL.head_dim
    told = call.CpuCall(
        num_heads=SMALL.heads,
        head_dim=SMALL.head_dim,
        block_size_tokens=SMALL.block,
        dtype=torch.float32,
        runs=[(0, 9, 0, 0, NONE, 0, 0, NONE)],
        items=[(0, first, count) for first, count in query_parts(9)],
        writes=[(0, 9, 0)],
        tables=[0],
        max_keys=9,
        read=[7],
    )
    mixed = {only_read: torch.full((9, width), torch.nan) for only_read in (False, True)}
    for only_read, out in mixed.items():
        projected, still = torch.ones(9, 3 * width), torch.zeros(9, SMALL.rotary // 2)
        told.run(projected, out, cache.keys[0], cache.values[0], still + 1, still, only_read)
    assert not mixed[False].isnan().any()
    assert torch.equal(mixed[True][7], mixed[False][7]) and mixed[True][[*range(7), 8]].isnan().all()


@needs_kernels
@DTYPES
def test_more_threads_change_no_bit(dtype: torch.dtype) -> None:
    found = []
    for num_threads in (1, 3, 8):
        torch.set_num_threads(num_threads)
        sequences = paged([75, 37, 18, 2], replace(SMALL, dtype=dtype))
        first = sequences.feed((0, 0, 50), (1, 0, 36), (2, 0, 17), (3, 0, 1))
        second = sequences.feed((0, 50, 75), (1, 36, 37), (2, 17, 18), (3, 1, 2))
        found.append(torch.cat(first + second))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_kernels
@DTYPES
@pytest.mark.parametrize("spoiler", [torch.inf, -torch.inf, torch.nan])
def test_a_neighbour_that_is_not_finite_is_not_seen_nor_are_its_old_blocks(spoiler: float, dtype: torch.dtype) -> None:
    sequences = paged([39, 21, 37], replace(SMALL, dtype=dtype))
    sequences.projected[1][:] = spoiler
    sequences.feed((0, 0, 38), (1, 0, 20))
    ours, theirs = sequences.feed((0, 38, 39), (1, 20, 21))
    assert_right(sequences, 0, ours, 38)
    assert theirs.isnan().all()
    sequences.tables[2] = [*sequences.tables[1], sequences.tables[2][-1]]  # its blocks, handed out again
    assert_right(sequences, 2, fed_in(sequences, [5, 20, 21], uid=2))


@needs_kernels
@DTYPES
def test_an_infinity_reaches_the_tokens_behind_it_only(dtype: torch.dtype) -> None:
    sequences = paged([40], replace(SMALL, dtype=dtype))
    expected = fed_in(sequences, [])[:30]
    sequences.projected[0][30] = torch.inf
    found = fed_in(sequences, [30])
    assert torch.equal(found[:30], expected)
    assert not found[30:].isfinite().all(-1).any()


@needs_kernels
@DTYPES
@pytest.mark.parametrize("num_copied", [1, 6, 15])
def test_a_copied_block_goes_on_as_its_owners(num_copied: int, dtype: torch.dtype) -> None:
    sequences = paged([40, 40], replace(SMALL, dtype=dtype))
    start = 16 + num_copied
    sequences.projected[1][:start] = sequences.projected[0][:start]
    sequences.projected[0][start:] = torch.inf  # what stands behind the tokens that are meant
    sequences.feed((0, 0, 40))
    copy = Copy(sequences.tables[0][1], sequences.tables[1][1], num_copied)
    sequences.tables[1][0] = sequences.tables[0][0]
    (piece,) = sequences.feed((1, start, start + 1), copies=[copy])
    (rest,) = sequences.feed((1, start + 1, 40))
    assert_right(sequences, 1, torch.cat((piece, rest)), start)


@needs_kernels
@DTYPES
def test_only_the_layer_that_is_fed_is_written(dtype: torch.dtype) -> None:
    sequences = paged([20], replace(SMALL, dtype=dtype))
    fed_in(sequences, [17])
    assert sequences.cache.keys[0].isnan().all() and sequences.cache.values[0].isnan().all()
    table = set(sequences.tables[0])
    others = [block for block in range(SMALL.num_blocks) if block not in table]
    assert sequences.cache.keys[1, others].isnan().all() and sequences.cache.values[1, others].isnan().all()


@needs_kernels
def test_scores_far_apart_do_not_overflow() -> None:
    sequences = paged([50])
    sequences.projected[0] *= 40.0
    torch.testing.assert_close(fed_in(sequences, [20]).double(), sequences.expected(0), atol=1e-2, rtol=1e-3)


@pytest.fixture(scope="module", params=build.ELEMENTS, ids=str)
def portable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Portable:
    """Build the kernels for any CPU of this kind: what bfloat16 and wide vectors do here is made of other things."""
    dtype: torch.dtype = request.param
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    library = tmp_path_factory.mktemp("portable") / "kernels.so"
    flags = [flag for flag in build.FLAGS if not flag.startswith(("-march", "-O"))]
    command = [compiler, *flags, "-O1", "-Wall", "-Wextra", "-Wno-psabi", f"-DGPTJ_ELEMENT={build.ELEMENTS[dtype]}"]
    command += [str(build.SOURCE), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "it compiles without a warning"
    return dtype, ctypes.CDLL(str(library))


@needs_kernels
def test_a_cpu_without_the_instructions_that_are_here_gives_the_same(
    portable: Portable, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, library = portable
    monkeypatch.setattr(call, "load_library", lambda _: library)
    shape = replace(SMALL, dtype=dtype)
    whole = fed_in(paged([50], shape), [])
    assert_right(paged([50], shape), 0, whole)
    assert torch.equal(fed_in(paged([50], shape), [1, 2, 20, 21, 33, 48, 49]), whole)


@given(start=st.integers(0, 100), num_rows=st.integers(1, 200), row=st.integers(0, 50))
def test_parts_of_a_span_cover_it_once_and_none_crosses_a_tile(start: int, num_rows: int, row: int) -> None:
    parts = tile_parts(Span(row, num_rows, start, []))
    assert [n for first, count in parts for n in range(first, first + count)] == list(range(row, row + num_rows))
    for first, count in parts:
        begin = first - row + start
        assert count >= 1 and begin // TILE_TOKENS == (begin + count - 1) // TILE_TOKENS


@given(num_queries=st.integers(1, 1000))
def test_parts_of_queries_cover_them_once_and_are_about_equal(num_queries: int) -> None:
    parts = query_parts(num_queries)
    assert [n for first, count in parts for n in range(first, first + count)] == list(range(num_queries))
    counts = {count for _, count in parts}
    assert min(counts) >= 1 and max(counts) <= MAX_QUERIES and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("head_dim", "expected"), [(1, 16), (16, 16), (17, 32), (80, 80), (256, 256)])
def test_a_token_takes_whole_vectors_in_the_cache(head_dim: int, expected: int) -> None:
    assert padded_head_dim(head_dim) == expected
