"""extract with `scoring: pipeline` against the old pipeline's steps, done by hand from transformers' logits.

What is done by hand follows pipelines/question_answering.py of transformers 4.57.6, whose successor has no such
pipeline: per window a softmax over what may be an answer and one place for none, the product of both probabilities,
words around tokens, and equal texts added up.
"""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gptj_batch.backends.native import NativeBackend
from gptj_batch.demo import QUESTION_ANSWERING_LAYOUT, QUESTION_ANSWERING_PREFIX, demo_folder
from gptj_batch.engine.config import EngineConfig
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.results import SpanLogits
from gptj_batch.tasks.base import Encoded
from gptj_batch.tasks.extract import ExtractSettings, ExtractTask

FOLDER = demo_folder("question-answering")
TOKENIZER = Tokenizer.from_folder(FOLDER)
SHORT = "Heavy rain hit Ukraine on Saturday; 87 people are dead. \r\nThe cafe\u0301s in Ukraine 🙂 close, UKRAINE says."
LONG = " ".join(f"On day {day} the Polna Panthers beat the Beirgova Firemakers {day} to 2." for day in range(40))
ROWS = [
    ("Which country was hit?", SHORT),
    ("Which team was beaten?", LONG),
    ("Who signed the ticket?", "Rain"),
    ("What?", SHORT + LONG),
]
TOLERANCE = 1e-5

Answers = list[dict[str, Any]]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.GPTJForQuestionAnswering.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def backend() -> NativeBackend:
    return NativeBackend.from_pretrained(FOLDER, head="question-answering", dtype="float32", config=EngineConfig())


def by_hand(model: Any, question: str, context: str, *, window: int, stride: int, most: int, top_k: int, words: bool,
            impossible: bool) -> Answers:  # fmt: skip
    """Return the answers of the old pipeline, step by step."""
    encoding = transformers.AutoTokenizer.from_pretrained(FOLDER)(
        QUESTION_ANSWERING_LAYOUT.format(question=question, context=context), return_offsets_mapping=True
    )
    ids, offsets, word_ids = encoding["input_ids"], encoding["offset_mapping"], encoding.word_ids()
    prefix_chars = len(QUESTION_ANSWERING_PREFIX.format(question=question))
    num_prefix = sum(end <= prefix_chars for _, end in offsets)
    room = window - num_prefix
    firsts = [0]
    while num_prefix + firsts[-1] + room < len(ids):
        firsts.append(firsts[-1] + room - stride)
    null, answers = 1e6, []
    for first in firsts:
        places = [*range(num_prefix), *range(num_prefix + first, min(num_prefix + first + room, len(ids)))]
        with torch.no_grad():
            output = model(torch.tensor([[ids[place] for place in places]]))
        undesired = np.arange(len(places)) < num_prefix - 1  # the last token of the prefix is where no answer stands
        starts, ends = (
            np.where(undesired, -10000.0, logits[0].numpy()) for logits in (output.start_logits, output.end_logits)
        )
        starts, ends = (np.exp(side - side.max()) / np.exp(side - side.max()).sum() for side in (starts, ends))
        null = min(null, float(starts[num_prefix - 1] * ends[num_prefix - 1]))
        starts[num_prefix - 1] = ends[num_prefix - 1] = 0.0
        scores = np.tril(np.triu(np.outer(starts, ends)), most - 1)
        number = 2 * top_k + 10 if words else top_k
        for flat in np.argsort(-scores, axis=None, kind="stable")[:number]:
            s, e = np.unravel_index(flat, scores.shape)
            if undesired[s] or undesired[e] or e < s or num_prefix - 1 in (s, e):
                continue  # the pipeline let some of these through, with a score of 0 and no text
            low, high = offsets[places[s]][0], offsets[places[e]][1]
            if words:
                low = min(offsets[p][0] for p in range(len(ids)) if word_ids[p] == word_ids[places[s]])
                high = max(offsets[p][1] for p in range(len(ids)) if word_ids[p] == word_ids[places[e]])
            low, high = max(low - prefix_chars - 1, 0), high - prefix_chars - 1
            text = context[low:high]
            low += len(text) - len(text.lstrip())
            same = next((answer for answer in answers if answer["text"].lower() == text.strip().lower()), None)
            if same is not None:
                same["score"] += float(scores[s, e])
            else:
                answers.append(
                    {"text": text.strip(), "start": low, "end": low + len(text.strip()), "score": float(scores[s, e])}
                )
    if impossible:
        answers.append({"text": None, "start": None, "end": None, "score": null})
    return sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]


def through_the_task(backend: NativeBackend, question: str, context: str, **settings: Any) -> Answers:
    values = {"kind": "extract", "question": "{{ q }}", "context": "{{ c }}", "scoring": "pipeline", **settings}
    task = ExtractTask(ExtractSettings.model_validate(values))
    (row,) = task.encoder(TOKENIZER, 1024)([{"q": question, "c": context}])
    assert isinstance(row, Encoded)
    results = backend.run(task.requests("k", list(row.token_ids), row.notes))
    assert all(isinstance(result, SpanLogits) for result in results)
    columns = task.columns([task.pack(results)], [row.notes], TOKENIZER)
    answers: Answers = columns[-1].to_pylist()[0]
    return answers


@pytest.mark.parametrize("row", range(len(ROWS)))
@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize(("top_k", "window", "stride", "most"), [(1, 384, 128, 15), (4, 96, 20, 6)])
def test_answers_offsets_and_scores_are_those_of_the_old_pipeline(
    theirs: Any, backend: NativeBackend, row: int, impossible: bool, words: bool, top_k: int, window: int, stride: int,
    most: int,
) -> None:  # fmt: skip
    question, context = ROWS[row]
    expected = by_hand(theirs, question, context, window=window, stride=stride, most=most, top_k=top_k, words=words,
                       impossible=impossible)  # fmt: skip
    is_default = (window, most, words) == (384, 15, True)
    sizes = {"window_tokens": window, "max_answer_tokens": most, "align_to_words": words}
    found = through_the_task(
        backend, question, context, stride_tokens=stride, top_k=top_k, allow_no_answer=impossible,
        max_question_tokens=40,
        **({} if is_default else sizes),
    )  # fmt: skip
    assert [{**answer, "score": 0} for answer in found] == [{**answer, "score": 0} for answer in expected]
    assert [answer["score"] for answer in found] == pytest.approx([a["score"] for a in expected], abs=TOLERANCE)


def test_several_windows_and_equal_texts_were_among_these() -> None:
    assert len(TOKENIZER.encode_batch([LONG])[0]) > 2 * 384, "several windows of the pipeline's own size"
    assert SHORT.lower().count("ukraine") == 3
