"""Read an answer's text: its tree, and the normalised form that is shown and compared first.

Pure; raises GaveUp for what is out of bounds and nothing else.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from posttrain.rewards.math_answers.limits import MAX_CHARACTERS, GaveUp, Unreadable
from posttrain.rewards.math_answers.parser import parse
from posttrain.rewards.math_answers.tokens import clean, tokenize
from posttrain.rewards.math_answers.tree import Node

LETTERS = ("word", "name", "run", "constant", "function")
CACHED_CHARACTERS, CACHED_ANSWERS = 256, 2048

_LOOKS = re.compile(r"\\[A-Za-z]+\s*\{?|[{}$*]|\\.")
_CHOICE = re.compile(
    r"\s*(?:(?:option|choice|answer)\s*)?\(?\s*([A-Ja-j])\s*(?:[).:]+(.*)|)\Z", re.DOTALL | re.IGNORECASE
)
_OTHER_CHOICE = re.compile(r"\b[A-Ja-j]\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was understood; `unreadable` says why it is only compared as text."""

    form: str
    tree: Node
    unreadable: str = ""
    letters: str = ""  # of an answer of letters alone, together and in lower case


def read(text: str) -> Answer:
    """Return what `text` says; short texts are remembered. Raises GaveUp."""
    if len(text) > MAX_CHARACTERS:
        raise GaveUp(f"an answer of {len(text)} characters")
    return _remembered(text) if len(text) <= CACHED_CHARACTERS else _read(text)


def _read(text: str) -> Answer:
    plain = " ".join(clean(text).split())
    try:
        tokens = tokenize(text)
    except Unreadable as error:
        return Answer(plain, _only_text(plain), str(error))
    form = " ".join(token.text for token in tokens)
    letters = "".join(token.text for token in tokens) if all(token.kind in LETTERS for token in tokens) else ""
    if not tokens:
        return Answer("", _only_text(plain), "nothing")
    try:
        return Answer(form, parse(tokens), letters=letters.casefold())
    except Unreadable as error:
        return Answer(form, _only_text(form), str(error))


_remembered = lru_cache(maxsize=CACHED_ANSWERS)(_read)


def _only_text(text: str) -> Node:
    """Text that is no mathematics; letter case counts unless it is words alone."""
    words = all(part.isalpha() for part in text.split())
    return Node("text", value=text.casefold() if words else f"text {text}")


def is_choice(answer: Answer) -> bool:
    """Return whether an answer is one multiple-choice letter."""
    tree = answer.tree
    return tree.head == "symbol" and re.fullmatch("[A-J]", str(tree.value)) is not None


def choice(text: str, *, lower_case: bool) -> str | None:
    """Return the letter of `(C)`, `C.` or `C) 42`; None where there is none, or a second one."""
    match = _CHOICE.match(_LOOKS.sub(" ", text[:MAX_CHARACTERS]))
    if match is None or _OTHER_CHOICE.search((match[2] or "").replace(" a ", " ")):
        return None
    return match[1].upper() if lower_case or match[1].isupper() else None
