"""Real text: AG News articles in the real vocabulary of GPT-J, to be given one of eight one-word topics.

The material lies in `../shared`, beside the project, and is not part of it.
"""

from typing import Final

from jobs.bench.protocol import ROOT
from jobs.bench.rows import seeded
from jobs.bench.work import Work, WorkRow

SHARED: Final = ROOT.parent / "shared"
ARTICLES: Final = SHARED / "data" / "ag_news" / "articles.parquet"
VOCABULARY: Final = SHARED / "gpt2-bpe"
TOPICS: Final = ("World", "Sports", "Business", "Technology", "Science", "Politics", "Health", "Entertainment")
MAX_INSTRUCTION_TOKENS: Final = 600
MAX_ARTICLE_TOKENS: Final = 300
OPENING: Final = f"Give each article one topic out of {', '.join(TOPICS)}.\n\n"


def missing() -> str | None:
    """Return what is missing here, or None."""
    return next((f"{path} is not here" for path in (ARTICLES, VOCABULARY / "vocab.json") if not path.exists()), None)


def news(count: int, seed: int) -> Work:
    """Return articles, each after an instruction of up to 600 tokens: what is asked, and articles with their topics.

    Another seed takes other articles, for the instruction as well.
    """
    import pyarrow.parquet as pq

    from gptj_batch.prompts.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(VOCABULARY)
    articles = pq.read_table(ARTICLES).to_pylist()
    seeded("news", seed).shuffle(articles)
    prompts = tokenizer.encode_batch(
        [f"Article: {row['title'].strip()}. {row['text'].strip()}\nTopic:" for row in articles]
    )
    instruction = tokenizer.encode_batch([OPENING])[0]
    used = 0
    while len(instruction) + len(prompts[used]) + 4 <= MAX_INSTRUCTION_TOKENS:
        topic = articles[used]["label"].replace("Sci/Tech", "Technology")
        instruction += prompts[used] + tokenizer.encode_batch([f" {topic}\n\n"])[0]
        used += 1
    labels = tuple(tuple(ids) for ids in tokenizer.encode_batch([f" {topic}" for topic in TOPICS]))
    own = prompts[used : used + count]
    return Work(
        kind="labels",
        rows=[WorkRow(prompt=instruction + prompt[-MAX_ARTICLE_TOKENS:], labels=labels) for prompt in own],
    )
