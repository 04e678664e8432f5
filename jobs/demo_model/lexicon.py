"""Words of the demo corpus: the names, numbers and dates that fill the slots of its sentences.

Every name belongs to exactly one split, decided by a hash of the name itself (`belongs_to`), so that no person,
company, place, team or product of a held-out item was ever seen in training.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

Split = Literal["train", "heldout"]
HELDOUT_SHARE_OF_NAMES = 5  # one name in five

FIRST_NAMES = """Anna Maria Elena Sofia Ingrid Fatima Aisha Mei Yuki Priya Leila Nadia Clara Helen Laura Julia Carmen Rosa
Karin Olga Irina Zara Amara Ines Marta Paula Ruth Naomi Alice Emma Peter David Marco Luis Ahmed Omar Hassan Kenji Wei Arjun
Ravi Viktor Pavel Dmitri Lars Erik Johan Pierre Louis Jean Hugo Carlos Diego Pablo Samuel Daniel Thomas Martin George Henry
Frank Walter Oscar Felix Simon Adam Tariq Kofi Kwame Bongani Andile Tomas Janek Milan Goran Stefan Nikos Yusuf Emre""".split()
SURNAME_STARTS = """Kal Mor Ber Sor Vel Tan Hol Lin Dar Fer Gar Mar Ros Ser Wal Nor Pal Ram Stan Har Cas Del Jan Kov Lam Nak
Oka Per Sal Tor Ves Zim""".split()
SURNAME_ENDS = "son ova ez ini berg ström man ley ford ski wick ander ello ato ura oux ić nen".split()
CITIES = """Lisbon Porto Madrid Seville Paris Lyon Berlin Hamburg Munich Vienna Prague Warsaw Krakow Budapest Athens Rome Milan
Naples Oslo Bergen Stockholm Helsinki Copenhagen Dublin Glasgow London Leeds Toronto Montreal Vancouver Boston Chicago Denver
Seattle Houston Dallas Atlanta Detroit Phoenix Miami Bogota Lima Quito Santiago Caracas Cairo Tunis Algiers Nairobi Lagos Accra
Dakar Kampala Harare Durban Amman Beirut Baghdad Mosul Kabul Tehran Karachi Lahore Delhi Mumbai Chennai Dhaka Colombo Hanoi
Bangkok Manila Jakarta Seoul Busan Osaka Nagoya Tokyo Taipei Shanghai Wuhan Sydney Perth Auckland Wellington Darwin""".split()
COUNTRIES = """Portugal Spain France Germany Austria Poland Hungary Greece Italy Norway Sweden Finland Denmark Ireland Canada
Mexico Colombia Peru Ecuador Chile Argentina Brazil Venezuela Egypt Tunisia Algeria Morocco Kenya Nigeria Ghana Senegal Uganda
Zimbabwe Angola Sudan Ethiopia Jordan Lebanon Iraq Iran Turkey Pakistan India Bangladesh Nepal Vietnam Thailand Malaysia Indonesia
Japan China Mongolia Australia Ukraine Georgia Armenia Serbia Croatia Bulgaria Romania""".split()
COMPANY_STARTS = """North Blue Silver Red Green Bright Iron Gold Stone River Sun Star Clear Swift Grand Cedar Oak Amber Crystal
Harbor Summit Delta Nova Pine""".split()
COMPANY_ENDS = "wind peak bridge field gate line wave point mark dale ridge brook land crest forge lake".split()
COMPANY_KINDS = "Systems Group Energy Foods Airlines Motors Bank Stores Media Holdings Industries Networks".split()
NICKNAMES = """Falcons Tigers Rovers Hawks Lions Wolves Bears Eagles Rangers Kings Giants Pirates Sharks Bulls Saints Comets
Rockets Dragons Panthers Wanderers Royals Stars Blazers Foxes Warriors Hornets Raiders Knights""".split()
CUPS = """Harbor Crown Golden Mountain Island Coastal Continental Federation Winter Summer Atlas Meridian Unity Pioneer Heritage
Regent""".split()
PRODUCT_STARTS = """Lumo Aero Zeno Vexa Orbi Kito Nexo Tava Pixo Mira Sono Dexa Quant Volt Halo Echo Fero Jett Luna Opti Riva
Tempo Ultra Vita""".split()
PRODUCT_ENDS = "X2 X5 200 300 450 Pro Air Max Mini Plus S1 S7 Go One".split()
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def belongs_to(name: str, split: Split) -> bool:
    """Say whether `name` may be used in `split`; each name is in one and only one."""
    heldout = zlib.crc32(name.encode()) % HELDOUT_SHARE_OF_NAMES == 0
    return heldout == (split == "heldout")


class Lexicon:
    """Draw slot values for one split from a random generator."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.first_names = self._own(FIRST_NAMES)
        self.surnames = self._own([start + end for start in SURNAME_STARTS for end in SURNAME_ENDS])
        self.cities = self._own(CITIES)
        self.countries = self._own(COUNTRIES)
        self.companies = self._own([start + end for start in COMPANY_STARTS for end in COMPANY_ENDS])
        self.nicknames = self._own(NICKNAMES)
        self.cups = self._own(CUPS)
        self.products = self._own([f"{start} {end}" for start in PRODUCT_STARTS for end in PRODUCT_ENDS])
        self._kinds: dict[str, Callable[[random.Random], str]] = {
            "person": lambda rng: f"{rng.choice(self.first_names)} {rng.choice(self.surnames)}",
            "city": lambda rng: rng.choice(self.cities),
            "country": lambda rng: rng.choice(self.countries),
            "company": lambda rng: f"{rng.choice(self.companies)} {rng.choice(COMPANY_KINDS)}",
            "team": lambda rng: f"{rng.choice(self.cities)} {rng.choice(self.nicknames)}",
            "cup": lambda rng: f"{rng.choice(self.cups)} {rng.choice(('Cup', 'Open', 'Trophy'))}",
            "product": lambda rng: rng.choice(self.products),
            "university": lambda rng: f"University of {rng.choice(self.cities)}",
            "email": lambda rng: f"{rng.choice(self.surnames).lower()}{rng.randint(1, 99)}@example.com",
            "date": lambda rng: f"{rng.choice(MONTHS)} {rng.randint(1, 28)}",
            "weekday": lambda rng: rng.choice(WEEKDAYS),
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

    def _own(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if belongs_to(name, self.split)]


def _score(rng: random.Random) -> str:
    """Return a final score with the winner's goals first."""
    winner = rng.randint(1, 6)
    return f"{winner}-{rng.randint(0, winner - 1)}"
