"""Read an answer into a structure and compare two structures: numbers, tuples, sets, intervals, matrices, words.

Pure; never evaluates text. What is neither a number nor a structure is compared as a normalised string. Lengths,
nesting and item counts are bounded, so that parsing is linear and comparing is at most MAX_ITEMS squared.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from posttrain.rewards.latex import normalise
from posttrain.rewards.numbers import OutOfBounds, parse_number

MAX_CHARACTERS = 4096
MAX_DEPTH = 64
MAX_ITEMS = 256


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value; a percentage keeps its figure (50% is 50 with `percent`)."""

    value: Fraction
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Anything else, normalised; letters keep their case, whole words do not."""

    value: str


@dataclass(frozen=True, slots=True)
class Group:
    """Items in brackets, a bare list, a union or a matrix; `kind` is the brackets, "list", "union" or the shape."""

    kind: str
    items: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A value given to one name: `x = 5`, `x \\in [0, 1]`, `f(x) = 2x`."""

    name: str
    value: "Answer"


Answer = Number | Text | Group | Named

_UNORDERED = {r"\{\}", "list", "union"}

_UNIT_WORDS = (
    "mm|cm|km|in|ft|yd|mi|kg|mg|lbs?|oz|mL|ml|hrs?|mins?|secs?|mph|inch|foot|feet|meter|metre|mile|yard|gram|kilogram"
    "|pound|ounce|liter|litre|gallon|second|minute|hour|day|week|months?|year|degree|radian|unit|cent|dollar|euro"
    "|people|men|women|children|percent"
)
# Other plural nouns (18 eggs) count as units too, but not words that change the value: fifths, halves, millions.
_PLURAL = (
    r"(?!times|plus|minus|halves|thirds|quarters|tens|dozens|hundreds|thousands|[bmtr]+illions)"
    r"[a-z]{2,20}(?<!th)(?<![su])s"
)
_UNIT = re.compile(
    rf"(?P<value>.*[0-9.}}%]) ?(?:(?:square|cubic|sq|cu) ?)?(?:{_UNIT_WORDS}|{_PLURAL})\.?(?:\^?[23])?"
    r"(?:(?:/| per | an? )[a-z]{1,20})?"
)
_NAMED = re.compile(r"([A-Za-z]|\\[a-z]+|[A-Za-z]_[0-9A-Za-z]|[A-Za-z]\([A-Za-z]\))(?:=|\\in(?![A-Za-z]))([^=]+)")
_MATRIX = re.compile(r"\\begin\{(p|b|B|v|V|small)?matrix\}(.*)\\end\{(?:p|b|B|v|V|small)?matrix\}")
_CHOICE = re.compile(r"\(?([A-J])[).:](?!.*\b[A-J]\b).*")
_BRACKET = re.compile(r"\\?[{}]|[()\[\]]")


@lru_cache(maxsize=4096)
def parse(text: str) -> Answer:
    """Return the structure of `text`; raises OutOfBounds when it is too long, too deep or has too many items."""
    if len(text) > MAX_CHARACTERS:
        raise OutOfBounds(f"an answer of {len(text)} characters")
    return _parse(normalise(text), depth=0)


def equal(gold: Answer, answer: Answer) -> bool:
    """Return whether `answer` states the value of `gold`; exact, and not symmetric for percentages and choices."""
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _equal_named(gold, answer)
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _equal_numbers(gold, answer)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return gold.kind == answer.kind and _equal_items(gold, answer)
    if isinstance(gold, Text) and isinstance(answer, Text):
        return gold.value == answer.value or (is_choice(gold) and _choice(answer.value) == gold.value)
    return False


def is_choice(gold: Answer) -> bool:
    """Return whether `gold` is one multiple-choice letter."""
    return isinstance(gold, Text) and re.fullmatch("[A-J]", gold.value) is not None


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(text)
    return match[1] if match else None


def _equal_numbers(gold: Number, answer: Number) -> bool:
    if gold.percent == answer.percent:
        return gold.value == answer.value
    if gold.percent:
        return answer.value in (gold.value, gold.value / 100)
    return gold.value in (answer.value, answer.value / 100)


def _equal_named(gold: Answer, answer: Answer) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        return gold.name == answer.name and equal(gold.value, answer.value)
    if isinstance(gold, Named):
        return equal(gold.value, answer)
    return isinstance(answer, Named) and equal(gold, answer.value)


def _equal_items(gold: Group, answer: Group) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    if gold.kind not in _UNORDERED:
        return all(equal(g, a) for g, a in zip(gold.items, answer.items, strict=True))
    rest = list(answer.items)
    for item in gold.items:
        index = next((i for i, other in enumerate(rest) if equal(item, other)), None)
        if index is None:
            return False
        rest.pop(index)
    return True


def _parse(text: str, depth: int) -> Answer:
    if depth > MAX_DEPTH:
        raise OutOfBounds(f"an answer nested deeper than {MAX_DEPTH}")
    if match := _NAMED.fullmatch(text):
        return Named(match[1], _parse(match[2], depth + 1))
    if (number := _number(text)) is not None:
        return number
    if match := _MATRIX.fullmatch(text):
        return _matrix(match, depth)
    if len(parts := _split(text, r"\cup")) > 1:
        return Group("union", tuple(_parse(part, depth + 1) for part in parts))
    if len(items := _items(text)) > 1:
        return Group("list", tuple(_parse(item, depth + 1) for item in items))
    if (group := _bracketed(text, depth)) is not None:
        return group
    return Text(text.casefold() if _is_words(text) else text)


def _number(text: str) -> Number | None:
    percent = text.endswith("%")
    value = parse_number(text.removesuffix("%"))
    if value is None and (match := _UNIT.fullmatch(text)):
        percent = match["value"].endswith("%") or text.endswith("percent")
        value = parse_number(match["value"].removesuffix("%"))
    return None if value is None else Number(value, percent)


def _is_words(text: str) -> bool:
    return len(text) > 2 and all(part.isalpha() and len(part) > 1 for part in text.split())


def _matrix(match: re.Match[str], depth: int) -> Answer:
    rows = [row.split("&") for row in match[2].split(r"\\") if row.strip()]
    if sum(map(len, rows)) > MAX_ITEMS:
        raise OutOfBounds(f"a matrix of more than {MAX_ITEMS} cells")
    kind = ("determinant " if match[1] == "v" else "matrix ") + ",".join(str(len(row)) for row in rows)
    return Group(kind, tuple(_parse(cell.strip(), depth + 1) for row in rows for cell in row))


def _bracketed(text: str, depth: int) -> Answer | None:
    """The group of a text wholly in one pair of brackets; round brackets around one item only group, as braces do."""
    opening = text[: 2 if text.startswith("\\") else 1]
    if opening not in (r"\{", "(", "[", "{") or not _encloses(text):
        return None
    content, closing = text[len(opening) : -len(opening)], text[-len(opening) :]
    items = _items(content) if content else []
    if opening == "{" or (opening + closing == "()" and len(items) == 1):
        return _parse(content, depth + 1)
    return Group(opening + closing, tuple(_parse(item, depth + 1) for item in items))


def _encloses(text: str) -> bool:
    """Whether the bracket that opens `text` is closed by its last one and not before."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0][-1] in "{([" else -1
        if depth <= 0:
            return depth == 0 and match.end() == len(text)
    return False


def _items(text: str) -> list[str]:
    """The parts between commas; one with a plus-minus sign states two values."""
    return [value for part in _split(text, ",") for value in _signs(part)]


def _signs(item: str) -> list[str]:
    sides = _split(item, r"\pm")
    return [f"{sides[0]}+{sides[1]}", f"{sides[0]}-{sides[1]}"] if len(sides) == 2 else [item]


def _split(text: str, separator: str) -> list[str]:
    """Split where no bracket is open; raises OutOfBounds for more than MAX_ITEMS parts."""
    if text.count(separator) >= MAX_ITEMS:
        raise OutOfBounds(f"a list of more than {MAX_ITEMS} items")
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"{_BRACKET.pattern}|{re.escape(separator)}", text):
        if match[0] != separator:
            depth += 1 if match[0][-1] in "{([" else -1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]
