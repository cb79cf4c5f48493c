"""Find the answer in a response: an ordered list of rules, the first that applies decides.

Pure text work, linear in the response; knows nothing of equality. A rule that applies but finds nothing usable
(an empty tag, an unclosed box) ends the search: a later rule never rescues an explicit answer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Profile = Literal["r1_zero", "boxed", "gsm8k", "math", "choice", "lenient"]

# Strict profiles know one format; the others try theirs in order. Each begins behind the thinking.
RULES: dict[Profile, tuple[str, ...]] = {
    "boxed": ("boxed",),
    "gsm8k": ("hashes",),
    "math": ("answer_tag", "boxed", "phrase"),
    "choice": ("answer_tag", "boxed", "phrase", "letter"),
    "lenient": ("answer_tag", "boxed", "hashes", "phrase", "letter", "last_number"),
}


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a rule found: `text` is None where the response holds no usable answer, and `reason` says why."""

    rule: str | None
    text: str | None
    span: tuple[int, int] | None = None
    reason: str = ""


NOTHING = Extraction(None, None, reason="no answer found")

_R1_ZERO = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_BOX_JOINTS = {",", "and", "or", ", and", ", or"}
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####")
_PHRASE = re.compile(r"\banswer(?: is(?=\b|n['\N{RIGHT SINGLE QUOTATION MARK}]t\b)|[*_ ]*:)[*_:\s]*", re.IGNORECASE)
_LINE = re.compile(r"[^\n]*?(?=\.\s+[A-Z]|\n|\Z)")
_REFUSAL = re.compile(r"(?:n['\N{RIGHT SINGLE QUOTATION MARK}]t|not|never|neither|wrong|unknown)\b", re.IGNORECASE)
_MARKDOWN = " \t\r*`_"
_LETTER = re.compile(r"\s*\(?([A-J])(?:[).:]+)?\s*")
_NUMBER = re.compile(r"(?<![0-9])-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?(?:\\?%)?")


def extract(
    response: str,
    *,
    profile: Profile,
    truncated: bool = False,
    letter: bool = False,
    inside_thinking: bool = False,
    last_number: bool = False,
) -> Extraction:
    """Return the answer of `response` under `profile`, with its offsets; the first rule that applies decides.

    A lone choice letter counts only where `letter`: the gold is one. The last number counts only where it is switched
    on, and never where `truncated`. `inside_thinking`: a thought that never closes is read as if it were none.
    """
    if profile == "r1_zero":
        return _r1_zero(response)
    start = _after_thinking(response)
    if start is None:
        if not inside_thinking:
            return Extraction(None, None, reason="<think> is never closed")
        start = response.rindex("<think>") + len("<think>")
    searches: dict[str, Callable[[], Extraction | None]] = {
        "answer_tag": lambda: _answer_tag(response, start),
        "boxed": lambda: _boxed(response, start),
        "hashes": lambda: _hashes(response, start, truncated),
        "phrase": lambda: _phrase(response, start, truncated),
        "letter": lambda: _letter(response, start) if letter else None,
        "last_number": lambda: _last_number(response, start) if last_number and not truncated else None,
    }
    return next((found for rule in RULES[profile] if (found := searches[rule]()) is not None), NOTHING)


def has_r1_zero_format(response: str) -> bool:
    """Return whether `response` is one thought and one answer: `[<think>] ... </think> <answer>...</answer>`."""
    return _r1_zero(response).text is not None


def gold_text(gold: str) -> str:
    """Return the answer of a gold column: after the last `####` (GSM8K), in the last box (MATH), or all of it."""
    found = _hashes(gold, 0, False) or _boxed(gold, 0)
    return found.text if found is not None and found.text is not None else gold


def _r1_zero(response: str) -> Extraction:
    tags = [response.count(tag) for tag in ("</think>", "<answer>", "</answer>")]
    opened = response.count("<think>")
    if tags != [1, 1, 1] or opened > 1 or (opened and not response.lstrip().startswith("<think>")):
        return Extraction(None, None, reason="not in the form ... </think> <answer>...</answer>")
    match = _R1_ZERO.fullmatch(response, response.index("</think>") + len("</think>"))
    if match is None:
        return Extraction(None, None, reason="text stands outside the think and answer tags")
    return _inside_tag("r1_zero", response, match.start(1), match.end(1))


def _after_thinking(response: str) -> int | None:
    closed = response.rfind("</think>")
    start = 0 if closed < 0 else closed + len("</think>")
    return None if response.find("<think>", start) >= 0 else start


def _inside_tag(rule: str, response: str, start: int, end: int) -> Extraction:
    boxed = _boxed(response, start, end)
    if boxed is not None:
        return Extraction(rule, boxed.text, boxed.span, boxed.reason)
    return _trimmed(rule, response, start, end)


def _trimmed(rule: str, response: str, start: int, end: int) -> Extraction:
    text = response[start:end]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        return Extraction(rule, None, (start, start), "the answer is empty")
    return Extraction(rule, text, (start, start + len(text)))


def _answer_tag(response: str, start: int) -> Extraction | None:
    end = response.rfind("</answer>", start)
    opened = response.rfind("<answer>", start, end) if end >= 0 else -1
    return _inside_tag("answer_tag", response, opened + len("<answer>"), end) if opened >= 0 else None


def _boxed(response: str, start: int, end: int | None = None) -> Extraction | None:
    """The last outermost box; boxes joined only by commas, "and" or "or" make one list."""
    end = len(response) if end is None else end
    openings = [match for match in _BOX.finditer(response, start, end) if match.end() < end]
    if not openings:
        return None
    closing = _matching_braces(response, openings[0].end(), end)
    boxes: list[tuple[int, int, int]] = []  # of the box, of its content, of the closing brace
    for match in openings:
        if match.end() not in closing:
            if match is openings[-1]:
                return Extraction("boxed", None, (match.start(), end), "the box is never closed")
        elif not boxes or match.start() > boxes[-1][2]:
            boxes.append((match.start(), match.end() + 1, closing[match.end()]))
    first = len(boxes) - 1
    while first > 0 and _joined(response[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    contents = [response[inner:close].strip() for _, inner, close in boxes[first:]]
    span = (boxes[first][1], boxes[-1][2])
    if not all(contents):
        return Extraction("boxed", None, span, "the box is empty")
    return Extraction("boxed", ", ".join(contents), span)


def _joined(between: str) -> bool:
    return " ".join(between.replace("$", " ").split()) in _BOX_JOINTS


def _matching_braces(text: str, start: int, end: int) -> dict[int, int]:
    """Offsets of opening braces to those of their closing ones, in one pass; unbalanced ones are absent."""
    stack: list[int] = []
    closing: dict[int, int] = {}
    for match in _BRACE.finditer(text, start, end):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            closing[stack.pop()] = match.start()
    return closing


def _hashes(response: str, start: int, truncated: bool) -> Extraction | None:
    return _line("hashes", response, _last(_HASHES, response, start), truncated)


def _phrase(response: str, start: int, truncated: bool) -> Extraction | None:
    return _line("phrase", response, _last(_PHRASE, response, start), truncated)


def _line(rule: str, response: str, match: re.Match[str] | None, truncated: bool) -> Extraction | None:
    """The sentence or line after the match, without Markdown; one that the token limit cut off is no answer."""
    if match is None:
        return None
    line = _LINE.match(response, match.end())
    assert line is not None  # the pattern matches the empty string
    start, end = line.span()
    if truncated and end == len(response):
        return Extraction(rule, None, (start, end), "the answer was cut off")
    text = response[start:end].rstrip(_MARKDOWN + ".")
    start += len(text) - len(text.lstrip(_MARKDOWN))
    if _REFUSAL.match(response, start):
        return Extraction(rule, None, (start, end), "the answer is denied")
    return _trimmed(rule, response, start, start + len(text.lstrip(_MARKDOWN)))


def _letter(response: str, start: int) -> Extraction | None:
    match = _LETTER.fullmatch(response, start)
    return Extraction("letter", match[1], match.span(1)) if match else None


def _last_number(response: str, start: int) -> Extraction | None:
    match = _last(_NUMBER, response, start)
    return Extraction("last_number", match[0], match.span()) if match else None


def _last(pattern: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text, start):  # noqa: B007 - the last match is the result
        pass
    return last
