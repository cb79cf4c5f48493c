"""What instruction checks count in a text: words, sentences, bullets, highlights, placeholders, sections.

Pure, and linear in the text: nothing here looks at a character more than a fixed number of times.
"""

import re
from collections.abc import Iterator

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]*_]*+(?=\s|$)")
_ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "prof", "st", "vs", "e.g", "i.e", "cf", "approx", "p.s", "p.p.s"))
_CAPITAL_WORD = re.compile(r"[^\s'\"\u2019\u201c\u201d\u2014()\[\]{}<>,;:!?&*]+")
_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*|\*([^\n*]*)\*")
LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))


def count_words(text: str) -> int:
    """Return the runs of letters, digits and underscores: IFEval's words, so that "don't" is two."""
    return sum(1 for _ in _WORD.finditer(text))


def spaced_words(text: str) -> list[str]:
    """Return what white space parts and has a letter or a digit in it: people's words, so that "don't" is one."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def count_sentences(text: str) -> int:
    """Return the sentences: they end with a mark before white space, or with the text.

    Abbreviations, initials and numbered items ("Dr.", "J.", "1.") end none. IFEval asks NLTK's trained Punkt model,
    which differs on rare abbreviations.
    """
    ends, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if not _is_abbreviation(text, end.start()):
            ends, start = ends + 1, end.end()
    return ends + any(character.isalnum() for character in text[start:])


def _is_abbreviation(text: str, stop: int) -> bool:
    """Return whether the mark at `stop` belongs to the word before it."""
    if text[stop] != "." or text[stop + 1 : stop + 2] == ".":
        return False
    before = text[max(0, stop - LONGEST_ABBREVIATION - 1) : stop]
    word = before.split()[-1].lstrip("(\"'\u201c") if before.strip() and not before[-1].isspace() else ""
    if word.lower() in _ABBREVIATIONS:
        return True
    initial = len(word) == 1 and word.isupper() and word != "I"
    return initial or (word.isdigit() and len(word) <= 2 and _begins_line(text, stop - len(word)))


def _begins_line(text: str, place: int) -> bool:
    return place == 0 or text[place - 1] == "\n"


def capital_words(text: str) -> int:
    """Return the words all of whose letters are capitals; "I" and "A" are such words, as in IFEval."""
    return sum(word[0].isupper() for word in _CAPITAL_WORD.finditer(text))


def bullets(text: str) -> int:
    """Return the lines that begin with `-`, or with one `*` and something behind it."""
    lines = (line.lstrip() for line in text.split("\n"))
    return sum(line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*")) for line in lines)


def highlights(text: str) -> int:
    """Return the stretches of a line between single or double asterisks that are not blank."""
    return sum(bool((found[1] or found[2] or "").strip()) for found in _HIGHLIGHT.finditer(text))


def placeholders(text: str) -> int:
    """Return the pairs of square brackets that open and close on one line."""
    return sum(1 for line in text.split("\n") for _ in _bracketed(line))


def _bracketed(line: str) -> Iterator[str]:
    start = line.find("[")
    while start >= 0 and (end := line.find("]", start)) >= 0:
        yield line[start + 1 : end]
        start = line.find("[", end)


def sections(text: str, mark: str) -> int:
    """Return how often the mark stands before a number, as in `Section 2`."""
    return sum(1 for _ in re.finditer(rf"{re.escape(mark)}\s?\d+", text))


def divided(text: str, divider: str) -> list[str] | None:
    """Return the parts between dividers, stripped; None where one that is not at an end of the text is blank."""
    parts = [part.strip() for part in text.split(divider)]
    inner = parts[1:-1]
    return [part for part in parts if part] if all(inner) else None


def paragraphs(text: str) -> list[str]:
    """Return what two line ends part, stripped, without what is blank."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def first_word(text: str) -> str:
    """Return the first word in small letters, without quotation marks before it and what follows a mark in it."""
    word = text.split(maxsplit=1)[0].lstrip("'\"\u201c\u2018*_#") if text.strip() else ""
    return re.split(r"[.,?!:;'\"\u201d\u2019*]", word, maxsplit=1)[0].lower()


def titles(text: str) -> int:
    """Return the lines on which something that is not blank stands between `<<` and `>>`."""
    return sum(_has_title(line) for line in text.split("\n"))


def _has_title(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    return 0 <= start < end and bool(line[start:end].strip("<> \t"))
