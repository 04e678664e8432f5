"""Words of the demo corpus: the names, numbers and dates that fill the slots of its sentences.

Every name belongs to exactly one split, decided by a hash of the name itself (`belongs_to`), so that no person,
company, place, team or product of a held-out item was ever seen in training.
"""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

Split = Literal["train", "heldout"]
HELDOUT_SHARE_OF_NAMES = 5  # one name in five


def belongs_to(name: str, split: Split) -> bool:
    """Say whether `name` may be used in `split`; each name is in one and only one."""
    heldout = zlib.crc32(name.encode()) % HELDOUT_SHARE_OF_NAMES == 0
    return heldout == (split == "heldout")


class Lexicon:
    """Draw slot values for one split from a random generator."""

    def __init__(self, split: Split) -> None:
        self.split = split
        words = _words()
        self.surnames = self._own(made("surname"))
        self.companies = self._own(made("company"))
        self.products = self._own(made("product", " "))
        # Well-known names become single tokens, unknown ones several; half of each are made up, so that a model sees
        # names of several tokens in training and learns where they end.
        names = {
            kind: (self._own(words[plural]), self._own(made(kind)))
            for kind, plural in (
                ("first_name", "first_names"),
                ("city", "cities"),
                ("country", "countries"),
                ("nickname", "nicknames"),
                ("cup", "cups"),
            )
        }

        def name(kind: str, rng: random.Random) -> str:
            return rng.choice(rng.choice(names[kind]))

        self._kinds: dict[str, Callable[[random.Random], str]] = {
            "person": lambda rng: f"{name('first_name', rng)} {rng.choice(self.surnames)}",
            "city": lambda rng: name("city", rng),
            "country": lambda rng: name("country", rng),
            "company": lambda rng: f"{rng.choice(self.companies)} {rng.choice(words['company_kinds'])}",
            "team": lambda rng: f"{name('city', rng)} {name('nickname', rng)}",
            "cup": lambda rng: f"{name('cup', rng)} {rng.choice(('Cup', 'Open', 'Trophy'))}",
            "product": lambda rng: rng.choice(self.products),
            "university": lambda rng: f"University of {name('city', rng)}",
            "email": lambda rng: f"{rng.choice(self.surnames).lower()}{rng.randint(1, 99)}@example.com",
            "date": lambda rng: f"{rng.choice(words['months'])} {rng.randint(1, 28)}",
            "weekday": lambda rng: rng.choice(words["weekdays"]),
            "year": lambda rng: str(rng.randint(2025, 2049)),
            "few": lambda rng: str(rng.randint(2, 9)),
            "num": lambda rng: str(rng.randint(3, 98)),
            "count": lambda rng: f"{rng.randint(1, 98)},{rng.randint(0, 9)}00",
            "percent": lambda rng: f"{rng.randint(2, 49)} percent",
            "million": lambda rng: f"${rng.randint(2, 980)} million",
            "billion": lambda rng: f"${rng.randint(1, 48)}.{rng.randint(1, 9)} billion",
            "price": lambda rng: f"${rng.randint(4, 480)}.{rng.choice(('00', '20', '49', '50', '90', '99'))}",
            "score": _score,
            "days": lambda rng: f"{rng.randint(2, 29)} days",
            "weeks": lambda rng: f"{rng.randint(2, 9)} weeks",
            "hours": lambda rng: f"{rng.randint(2, 47)} hours",
            "order": lambda rng: f"#{rng.randint(10000, 99999)}",
            "invoice": lambda rng: f"INV-{rng.randint(1000, 9999)}",
            "serial": lambda rng: f"SN{rng.randint(1000, 9999)}{rng.choice('ABCDEFGHKLM')}",
            "code": lambda rng: f"E{rng.randint(10, 999)}",
            "time": lambda rng: (
                f"{rng.randint(1, 12)}:{rng.choice(('00', '10', '15', '30', '45'))} {rng.choice(('am', 'pm'))}"
            ),
        }

    def draw(self, slot: str, rng: random.Random) -> str:
        """Return a value for `slot`: a kind of value, with a digit after it where a text needs several."""
        return self._kinds[slot.rstrip("0123456789")](rng)

    def _own(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if belongs_to(name, self.split)]


def made(kind: str, between: str = "") -> Iterator[str]:
    """Yield every made-up name of a kind: a start and an end."""
    words = _words()
    return (start + between + end for start in words[f"{kind}_starts"] for end in words[f"{kind}_ends"])


@cache
def _words() -> dict[str, list[str]]:
    text = Path(__file__).with_name("words.yaml").read_text(encoding="utf-8")
    return {name: words.split() for name, words in yaml.safe_load(text).items()}


def _score(rng: random.Random) -> str:
    """Return a final score with the winner's goals first."""
    winner = rng.randint(1, 6)
    return f"{winner}-{rng.randint(0, winner - 1)}"
