"""Trained heads and embeddings on vLLM give the native engine's numbers, in float32."""

from pathlib import Path
from typing import cast

import pytest
from safetensors.torch import load_file, save_file

from gptj_batch import Failed
from gptj_batch.requests import ClassifyRequest, EmbedRequest, Pooling, Request, SpanRequest
from gptj_batch.results import Classified, Embedded, SpanLogits
from tests.parity.on_vllm import N_POSITIONS, Draw, both, largest_difference, needs_vllm, running, save_checkpoint

pytestmark = [needs_vllm, pytest.mark.timeout(900)]

TOLERANCE = 1e-4
LENGTHS = (1, 2, 9, 33, 64, N_POSITIONS)


def prompts() -> list[list[int]]:
    draw = Draw(3)
    shared = draw.tokens(40)
    return [*map(draw.tokens, LENGTHS), *([*shared, *draw.tokens(n)] for n in (1, 3, 20))]


def test_classes_are_the_native_ones(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", "sequence-classification", num_labels=3)
    asked = [ClassifyRequest(key=str(n), prompt_token_ids=prompt) for n, prompt in enumerate(prompts())]
    native, vllm = both(
        folder,
        [*asked, ClassifyRequest(key="long", prompt_token_ids=[5] * (N_POSITIONS + 1))],
        head="sequence-classification",
    )
    assert native.pop() == vllm.pop()
    logits = [[one.logits for one in cast(list[Classified], side)] for side in (native, vllm)]
    assert {len(row) for row in logits[1]} == {3}
    assert largest_difference(*logits) < TOLERANCE


@pytest.mark.parametrize("head_size", [pytest.param(64, marks=pytest.mark.vllm_first), 256])
def test_spans_are_the_native_ones(tmp_path: Path, head_size: int) -> None:
    folder = save_checkpoint(tmp_path / "m", "question-answering", head_size)
    asked = [
        SpanRequest(key=str(n), prompt_token_ids=prompt, first_token=min(n, len(prompt) - 1))
        for n, prompt in enumerate(prompts())
    ]
    native, vllm = (cast(list[SpanLogits], side) for side in both(folder, asked, head="question-answering"))
    for name in ("start_logits", "end_logits"):
        assert largest_difference(*[[getattr(one, name) for one in side] for side in (native, vllm)]) < TOLERANCE
    best = [
        [_best(one.start_logits) for one in side] + [_best(one.end_logits) for one in side] for side in (native, vllm)
    ]
    assert best[0] == best[1]


def _best(logits: tuple[float, ...]) -> int:
    return max(range(len(logits)), key=logits.__getitem__)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_native_ones(tmp_path: Path, pooling: Pooling) -> None:
    folder = save_checkpoint(tmp_path / "m")
    other: Pooling = "last" if pooling == "mean" else "mean"
    asked = [
        EmbedRequest(
            key=str(n), prompt_token_ids=prompt, pooling=pooling, normalize=n % 2 == 0, layer=(None, -1, 2)[n % 3]
        )
        for n, prompt in enumerate(prompts())
    ]
    foreign = [
        EmbedRequest(key="layer", prompt_token_ids=[5], pooling=pooling, layer=1),
        EmbedRequest(key="pooling", prompt_token_ids=[5], pooling=other),
        Request(key="generate", prompt_token_ids=[5]),
    ]
    native, vllm = both(folder, [*asked, *foreign], pooling=pooling)
    assert all(isinstance(one, Failed) for one in vllm[len(asked) :])
    vectors = [[one.vector for one in cast(list[Embedded], side[: len(asked)])] for side in (native, vllm)]
    assert {len(row) for row in vectors[1]} == {128}
    assert largest_difference(*vectors) < TOLERANCE


def test_a_checkpoint_of_any_class_gives_embeddings(tmp_path: Path) -> None:
    asked = [EmbedRequest(key=str(n), prompt_token_ids=prompt, pooling="last") for n, prompt in enumerate(prompts())]
    plain = save_checkpoint(tmp_path / "plain")
    with_head = save_checkpoint(tmp_path / "head", "question-answering")
    tensors = load_file(plain / "model.safetensors")
    body = {name: tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    theirs = {name: tensor for name, tensor in load_file(with_head / "model.safetensors").items() if "qa_" in name}
    save_file(body | theirs, with_head / "model.safetensors")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((plain / "config.json").read_text())
    save_file({name.removeprefix("transformer."): tensor for name, tensor in body.items()}, bare / "model.safetensors")
    with running("native", plain) as native:
        expected = [one.vector for one in cast(list[Embedded], native.run(asked))]
    for folder in (with_head, bare):
        with running("vllm", folder, pooling="last") as vllm:
            vectors = [one.vector for one in cast(list[Embedded], vllm.run(asked))]
        assert largest_difference(vectors, expected) < TOLERANCE
