"""The units that may follow a value, and which of them measure the same thing.

Pure; a unit is dropped where the other side has none, and compared where both have a known one.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from posttrain.rewards.math_answers.limits import words

# Dimension, then each unit with its factor; names before the factor are spellings of one unit.
_MEASURES: dict[str, str] = {
    "length": "mm millimeter=1/1000 cm centimeter=1/100 dm=1/10 m meter=1 km kilometer=1000 in inch=127/5000 "
    "ft foot=381/1250 yd yard=1143/1250 mi mile=201168/125",
    "mass": "mg milligram=1/1000 g gram=1 kg kilogram=1000 ton tonne=1000000",
    "weight": "oz ounce=1 lb pound=16",
    "time": "ms millisecond=1/1000 s sec second=1 min minute=60 h hr hour=3600 day=86400 week=604800",
    "month": "month=1 year yr=12",
    "volume": "ml milliliter=1/1000 l liter=1",
    "money": "cent=1/100 dollar=1 buck=1",
    "euro": "euro=1",
    "angle": "degree deg=1",
    "turn": "radian rad=1",
}
_OTHER = words(
    "hz khz mhz ghz n kn j kj mj w kw mw v kv mv a ma k c f pa kpa mpa atm bar ev kev mev gev mol mole kmol au pc "
    "kpc mpc ly nm um t gauss erg dyne cal kcal ohm coulomb joule newton watt volt ampere kelvin celsius "
    "fahrenheit pascal hertz mph kph kmh unit people person men women children percent foot feet inch gallon "
    "quart pint cup acre hectare square cubic each time sq cu lightyear solar luminosity sterling yen"
)
_SYNONYMS = {"feet": "foot", "inches": "inch", "metre": "meter", "kilometre": "kilometer", "centimetre": "centimeter"}
_SYNONYMS |= {"millimetre": "millimeter", "litre": "liter", "millilitre": "milliliter"}


def _table() -> dict[str, tuple[str, Fraction]]:
    table = {}
    for dimension, text in _MEASURES.items():
        names: list[str] = []
        for word in text.split():
            name, _, factor = word.partition("=")
            names.append(name)
            if factor:
                table.update(dict.fromkeys(names, (dimension, Fraction(factor))))
                names = []
    return table


MEASURES = _table()
_EXPANDED = {"mph": "mile per hour", "kph": "kilometer per hour", "kmh": "kilometer per hour"}
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_KNOWN = frozenset(MEASURES) | frozenset(_OTHER)
# Of one letter, these alone, and only inside \text and the like: anything else is a variable.
_LETTERS = frozenset("mgshlLNJWVAKCFT")
_BARE = words("mm cm km kg mg ml ft in lb lbs oz hr hrs sec secs min mins mph kph day days cup cups ton tons deg")
# Plural nouns (18 eggs) count as units, but not words that change the value.
_PLURAL = re.compile(r"[a-z]{2,20}(?<!th)(?<![suia])s")
_VALUES = words(
    "times plus minus halves thirds quarters tens dozens pairs scores hundreds thousands millions billions "
    "trillions was has does always perhaps its others guesses equals signs negatives"
)
_ADJECTIVE, MAX_ADJECTIVES = re.compile(r"[a-z]{3,12}"), 3
_NO_ADJECTIVES = words(
    "not never nor wrong none half third quarter fifth sixth tenth dozen score gross pair twice thrice double triple "
    "over under less fewer than about between from negative squared cubed factorial are was were the that but plus "
    "minus out per divided multiplied every other except without instead rather unknown"
)
_JOINTS = frozenset({"/", "per", "a", "an", "*", "^", "of"})


def singular(word: str) -> str:
    """Return the known singular of a unit, or the word itself."""
    word = word.casefold()
    word = _SYNONYMS.get(word, word)
    for ending in ("s", "es"):
        stem = word.removesuffix(ending)
        if word not in _KNOWN and stem != word and _SYNONYMS.get(stem, stem) in _KNOWN:
            return _SYNONYMS.get(stem, stem)
    return word


def is_unit_word(word: str) -> bool:
    """Return whether letters without a style are surely a unit: `cm`, but not `mv`, which may be m times v."""
    return word in _BARE or (len(word) > 3 and singular(word) in _KNOWN)


def unit_of(parts: Sequence[str]) -> str | None:
    """Return the unit that words make together, None where they are no unit.

    A simple unit comes back in the singular; one that is built of several as its text.
    """
    parts = parts[_adjectives(parts) :]
    if not parts or not _is_unit(parts[0]):
        return None
    after_of = False
    for before, word in pairwise(parts):
        after_of = after_of or word == "of"
        fits = _is_unit(word) or word in _JOINTS or re.fullmatch(r"-?[0-9]", word) or (after_of and word.isalpha())
        if not fits or (before in _JOINTS and word in _JOINTS):
            return None
    return singular(parts[0]) if len(parts) == 1 else " ".join(parts)


def factor(gold: str | None, answer: str | None) -> Fraction | None:
    """Return how many of the gold's unit the answer's is: 1 where either has none or nobody knows it.

    None where the two measure different things, as cm and square cm do.
    """
    if gold is None or answer is None or gold == answer:
        return Fraction(1)
    of_gold, of_answer = _measure(gold), _measure(answer)
    if of_gold and of_answer:
        return of_answer[1] / of_gold[1] if of_gold[0] == of_answer[0] else None
    both_simple = all(unit in _KNOWN or unit in _LETTERS for unit in (gold, answer))
    return None if both_simple else Fraction(1)


def _measure(unit: str) -> tuple[dict[str, int], Fraction] | None:
    """The dimensions of a unit with their exponents, and its factor; None where a part of it is not in the table."""
    dimensions: dict[str, int] = {}
    total = Fraction(1)
    sign, power = 1, 1
    parts = [*(_EXPANDED.get(unit, unit)).split(), ""]
    for word, following in pairwise(parts):
        if word in ("square", "sq", "cubic", "cu"):
            power = 2 if word.startswith("sq") else 3
        elif word in ("/", "per", "a", "an"):
            sign = -1
        elif word not in ("^", "*") and not word.lstrip("-").isdigit():
            if (measured := MEASURES.get(singular(word))) is None:
                return None
            exponent = sign * power
            if following == "^":
                exponent *= int(parts[parts.index(word) + 2] or 1)
            dimensions[measured[0]] = dimensions.get(measured[0], 0) + exponent
            total *= measured[1] ** exponent
            power = 1
    return dimensions, total


def _adjectives(parts: Sequence[str]) -> int:
    """The number of words before a noun that say nothing of the value: 18 fresh duck eggs."""
    count = 0
    while count < MAX_ADJECTIVES and len(parts) > count + 1 and _ADJECTIVE.fullmatch(parts[count]):
        if (
            parts[count] in _NO_ADJECTIVES
            or parts[count] in _VALUES
            or parts[count] in SCALES
            or _is_unit(parts[count])
        ):
            break
        count += 1
    return count


def _is_unit(word: str) -> bool:
    if len(word) == 1:
        return word in _LETTERS
    lower = word.casefold()
    return singular(lower) in _KNOWN or (lower not in _VALUES and _PLURAL.fullmatch(lower) is not None)
