"""The demo model's folder: a small GPT-J in the Hugging Face layout, and the layouts of text that it was trained on.

`python -m jobs.demo_model.train` makes everything else in here. No torch is loaded.
"""

from pathlib import Path
from typing import Final, Literal

DemoHead = Literal["causal-lm", "sequence-classification", "question-answering"]

# Documents of the language model. What follows the prompt is a space, the answer, and <|endoftext|>.
TOPIC_PROMPT: Final = "{text}\nTopic:"
SENTIMENT_PROMPT: Final = "{text}\nSentiment:"
QUESTION_PROMPT: Final = "{text}\nQuestion: {question}\nAnswer:"
SUMMARY_PROMPT: Final = "{text}\nSummary:"
SUMMARIZE_PROMPT: Final = "Summarize: {text}\n"  # followed by the answer without a space

# Input of the question-answering head. The question comes first, because attention is causal: a token of the context
# can then look back at it. The whole string is encoded at once; the prefix's tokens are those that end within
# `QUESTION_ANSWERING_PREFIX`. The prefix's last token, the colon, is where an unanswerable question's span stands.
QUESTION_ANSWERING_PREFIX: Final = "Question: {question}\nContext:"
QUESTION_ANSWERING_LAYOUT: Final = QUESTION_ANSWERING_PREFIX + " {context}"
QUESTION_FIRST_PROMPT: Final = QUESTION_ANSWERING_LAYOUT + "\nAnswer:"  # the language model knows this layout as well


def demo_folder(head: DemoHead) -> Path:
    """Return the Hugging Face folder of the demo model with a head; each of them has the same tokenizer."""
    return Path(__file__).parent / head


def demo_records() -> Path:
    """Return the Parquet file of held-out items (id, kind, text, topic, sentiment, question, answer)."""
    return Path(__file__).with_name("records.parquet")
