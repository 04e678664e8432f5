"""Items of the demo corpus: made-up news and product-support tickets with a topic, a sentiment and questions.

An item is a lead sentence, up to three details and perhaps a closing sentence, drawn from `news.yaml` and
`tickets.yaml` and filled from the lexicon. What the split proves: no name of a held-out item (person, company, place,
team, product) occurs as a whole in the training items, though parts of made-up names do; and nearly half of the
held-out items have a sentence of a template that training never uses. So labels and answers cannot be looked up. What
it does not prove: both splits come from one generator, so topics, kinds of facts, question forms, numbers and dates are
alike. A high score says that the path from text to columns works, not that the model reads real news.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from jobs.demo_model.lexicon import Lexicon, Split

Kind = Literal["news", "ticket"]
Sentiment = Literal["positive", "negative", "neutral"]

NEWS_TOPICS = ("World", "Sports", "Business", "Sci/Tech")
TICKET_TOPICS = ("Billing", "Shipping", "Account", "Hardware")
TOPICS = NEWS_TOPICS + TICKET_TOPICS
SENTIMENTS: tuple[Sentiment, ...] = ("positive", "negative", "neutral")

HELDOUT_MARK = "~"
_ALTERNATIVES = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


class Question(NamedTuple):
    """A question about an item's text; `answer_start` counts characters."""

    question: str
    answer: str
    answer_start: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One text of the corpus with everything that is known about it."""

    id: str
    kind: Kind
    text: str
    topic: str
    sentiment: Sentiment
    summary: str
    questions: tuple[Question, ...]
    unanswerable: str
    """A question about the same kind of text whose answer is not in this one."""
    new_templates: bool
    """Whether a sentence of the text follows a template that training never uses."""


def items(split: Split, num_items: int, seed: int = 0) -> Iterator[Item]:
    """Yield `num_items` items of a split, the same for the same arguments; topics and sentiments take turns."""
    rng = random.Random(f"{split}-{seed}")  # noqa: S311 - made-up data, not a secret
    lexicon = Lexicon(split)
    for index in range(num_items):
        yield _Draft(split, lexicon, rng).item(f"{split}-{index:05d}", TOPICS[index % len(TOPICS)])


class _Draft:
    """An item while it is being written: its text so far, its slot values, and where each stands."""

    def __init__(self, split: Split, lexicon: Lexicon, rng: random.Random) -> None:
        self.split = split
        self.lexicon = lexicon
        self.rng = rng
        self.text = ""
        self.values: dict[str, str] = {}
        self.starts: dict[str, int] = {}
        self.new_templates = False

    def item(self, item_id: str, topic: str) -> Item:
        kind: Kind = "news" if topic in NEWS_TOPICS else "ticket"
        book = templates(kind)
        frame = self.rng.choice(book[topic]["frames"])
        sentiment: Sentiment = frame["sentiment"]
        asks: dict[str, str] = dict(frame["asks"])

        self.text = self.rng.choice(book.get("openers", [""]))
        self.say(self.pick(frame["leads"]))
        details = self.own(book[topic]["details"], key="say")
        for detail in self.rng.sample(details, self.rng.choice((0, 1, 1, 2, 2, 3))):
            self.say(detail["say"])
            asks |= detail["asks"]
        if self.rng.random() < 0.5:
            self.say(self.pick(book["closers"][sentiment]))
        if "signatures" in book and self.rng.random() < 0.3:
            signature = self.rng.choice(book["signatures"])
            self.say(signature["say"])
            asks |= signature["asks"]

        return Item(
            id=item_id,
            kind=kind,
            text=self.text,
            topic=topic,
            sentiment=sentiment,
            summary=self.fill(frame["gist"]),
            questions=tuple(self.questions(asks)),
            unanswerable=self.unanswerable(book, asks),
            new_templates=self.new_templates,
        )

    def own(self, choices: Sequence[Any], key: str | None = None) -> list[Any]:
        """Return the templates that this split may use: held-out items may use all of them."""
        texts = [choice[key] if key else choice for choice in choices]
        return [
            choice
            for choice, text in zip(choices, texts, strict=True)
            if self.split == "heldout" or not text.startswith(HELDOUT_MARK)
        ]

    def pick(self, choices: Sequence[str]) -> str:
        return str(self.rng.choice(self.own(choices)))

    def say(self, template: str) -> None:
        """Append a sentence, noting where each slot's value first stands."""
        if template.startswith(HELDOUT_MARK):
            self.new_templates = True
            template = template[1:]
        if self.text and not self.text.endswith(" "):
            self.text += " "
        for part in re.split(r"(\{\w+\})", self.alternatives(template)):
            slot = _SLOT.fullmatch(part)
            if slot is None:
                self.text += part
            else:
                self.starts.setdefault(slot[1], len(self.text))
                self.text += self.value(slot[1])

    def fill(self, template: str) -> str:
        """Return a template as text, without adding it to the item."""
        return _SLOT.sub(lambda slot: self.value(slot[1]), self.alternatives(template))

    def alternatives(self, template: str) -> str:
        return _ALTERNATIVES.sub(lambda found: self.rng.choice(found[1].split("|")), template)

    def value(self, slot: str) -> str:
        """Return the slot's value in this item, different from every other slot's."""
        while slot not in self.values:
            drawn = self.lexicon.draw(slot, self.rng)
            if drawn not in self.values.values():
                self.values[slot] = drawn
        return self.values[slot]

    def questions(self, asks: Mapping[str, str]) -> Iterator[Question]:
        for template, slot in asks.items():
            if slot in self.starts:
                yield Question(self.fill(template), self.values[slot], self.starts[slot])

    def unanswerable(self, book: Mapping[str, Any], asks: Mapping[str, str]) -> str:
        """Return a question that texts of this kind can answer, but not this one: its slot was never filled."""
        topics = [book[topic] for topic in TOPICS if topic in book]
        sources = [part["asks"] for topic in topics for part in topic["frames"] + topic["details"] if part["asks"]]
        while True:
            template, slot = self.rng.choice(list(self.rng.choice(sources).items()))
            if slot not in self.starts and template not in asks:
                return self.fill(template)


@cache
def templates(kind: Kind) -> dict[str, Any]:
    """Read the sentence templates of one kind of text."""
    path = Path(__file__).with_name("news.yaml" if kind == "news" else "tickets.yaml")
    book: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return book
