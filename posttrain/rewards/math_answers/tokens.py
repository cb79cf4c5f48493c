"""Cut an answer into tokens: numbers, names, words, operators and brackets; what only sets the look is dropped.

One pass over the text, linear, without a grammar.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from posttrain.rewards.math_answers.limits import MAX_LITERAL, GaveUp, Unreadable
from posttrain.rewards.math_answers.spelling import spell
from posttrain.rewards.math_answers.units import SCALES, is_unit_word, singular
from posttrain.rewards.math_answers.vocabulary import (
    ACCENTS,
    BIG,
    CLOSING,
    CONSTANTS,
    CURRENCIES,
    FUNCTION_NAMES,
    FUNCTIONS,
    GREEK,
    IGNORED,
    OPENING,
    OPERATORS,
    PREFIXES,
    WORDS,
)


class Token(NamedTuple):
    """A piece of the text.

    Kinds: number, name (one variable), word, run (letters that are a unit or else variables), constant, function,
    prefix, accent, big, operator, open, close, bar, begin, end, currency.
    """

    kind: str
    text: str


_STYLE = (
    r"(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|cal|frak|scr)|mbox|hbox"
    r"|operatorname\*?|boldsymbol|bm|emph)"
)
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9]*[.A-Za-z]))?"
_PATTERNS = {
    "space": r"(?:\s|~|\\[,;:!> \n]|\\\$(?!\s*[0-9.])|\$|\\[()]|\\\[|\\\]|\\(?:left|right)\s*\.)+",
    "thousands": r"[0-9]{1,3}(?:(?:,\\!\s*|\{,\}|\\,)[0-9]{3})+(?![0-9])(?:\.[0-9]+)?",
    "commas": r"[0-9]+(?:,[0-9]+)+(?:\.[0-9]+)?",
    "repeating": r"[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s*(?:\{\s*[0-9]+\s*\}|[0-9])",
    "number": _NUMBER,
    "degree": r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))",
    "matrix": r"\\(?:begin|end)\s*\{\s*(?:[pbBvV]|small)?matrix\s*\}|\\(?:begin|end)\s*\{(?:array|cases)\}",
    "columns": r"(?<=\{array\})\s*\{[lcr|\s]*\}",
    "styled": rf"\\{_STYLE}\s*\{{[^{{}}\\]*\}}",
    "reals": r"\\mathbb\s*\{?\s*R\s*\}?|\\R(?![A-Za-z])|\\Reals?(?![A-Za-z])",
    "currency": r"\\\$|[€£¥]",
    "sided": r"\\(?:left|right)\s*\\?\|",
    "operator": r"\*\*|==|<=|>=|!=|\+/-|->|\\\\|\\[%#]|[-+*/^_!%'=<>:;,&#]",
    "bracket": r"\\[{}|]|[(){}\[\]|]",
    "command": r"\\[A-Za-z]+",
    "letters": r"[A-Za-z]+",
}
_TOKEN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _PATTERNS.items()))
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_WORD = re.compile(r"[A-Za-z](?:[A-Za-z'-]*[A-Za-z])?")
_LETTER_CONSTANTS = ("e", "i")


def clean(text: str) -> str:
    """Return the answer without what may stand around it: space, dollars, punctuation at the end."""
    text = text.strip()
    while text:
        if text[-1] in ".,;: \n\t":
            text = text[:-1]
            if text.endswith("\\") and not text.endswith("\\\\"):  # it was the space \, or \;
                text = text[:-1]
        elif len(text) > 1 and text[0] == text[-1] == "$" and text[-2] != "\\":
            text = text[1:-1].strip()
        elif text.startswith((r"\(", r"\[")) and text.endswith((r"\)", r"\]")) and len(text) > 3:
            text = text[2:-2].strip()
        else:
            break
    # A lone dollar sign opens no mathematics: it is a currency.
    return "\\" + text if text.startswith("$") and text.count("$") == 1 else text


def tokenize(text: str) -> list[Token]:
    """Return the tokens of an answer; raises Unreadable for a character that mathematics does not know."""
    tokenizer = _Tokenizer()
    tokenizer.run(spell(clean(text)))
    return tokenizer.tokens


class _Tokenizer:
    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.brackets = 0  # open ones in which a comma always separates

    def run(self, text: str) -> None:
        at, end = 0, len(text)
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                raise Unreadable(f"the character {text[at]!r}")
            kind = str(match.lastgroup)
            if kind in _READERS:
                _READERS[kind](self, match)
            at = match.end()

    def put(self, kind: str, text: str) -> None:
        self.tokens.append(Token(kind, text))

    def thousands(self, match: re.Match[str]) -> None:
        self.literal(re.sub(r"[^0-9.]", "", match[0]))

    def commas(self, match: re.Match[str]) -> None:
        """Digits with commas: one number where the groups are of three and no bracket is open, else a list."""
        if self.brackets == 0 and _THOUSANDS.fullmatch(match[0]):
            self.literal(match[0].replace(",", ""))
            return
        for index, part in enumerate(match[0].split(",")):
            if index:
                self.put("operator", ",")
            self.literal(part)

    def repeating(self, match: re.Match[str]) -> None:
        r"""A decimal whose last digits repeat, 0.1\overline{6}, as 0.1(6)."""
        plain, _, period = match[0].partition("\\")
        self.literal(f"{plain}({re.sub('[^0-9]', '', period)})")

    def number(self, match: re.Match[str]) -> None:
        before = [token.kind for token in self.tokens[-2:]]
        glued = match.start() > 0 and match.string[match.start() - 1].isalpha() and match[0].isdigit()
        taken = len(before) > 1 and (before[0] in ("prefix", "accent") or self.tokens[-2].text in ("^", "_"))
        if glued and before and before[-1] == "name" and not taken:
            self.put("operator", "_")  # x1 is one name, as x_1 is
        self.literal(match[0])

    def literal(self, digits: str) -> None:
        if len(digits) > MAX_LITERAL:
            raise GaveUp(f"a number of {len(digits)} digits")
        self.put("number", digits)

    def degree(self, match: re.Match[str]) -> None:
        self.put("operator", "degree")

    def matrix(self, match: re.Match[str]) -> None:
        name = match[0][match[0].index("{") + 1 : -1].strip()
        self.put("begin" if match[0].startswith(r"\begin") else "end", name)

    def styled(self, match: re.Match[str]) -> None:
        """Text in a style: its words are words, all else is read as if it stood there plainly."""
        content = match[0][match[0].index("{") + 1 : -1].replace("$", " ").rstrip(". ")
        at = 0
        for word in _WORD.finditer(content):
            self.run(content[at : word.start()])
            self.word(word[0])
            at = word.end()
        self.run(content[at:])

    def word(self, word: str) -> None:
        lower = word.casefold()
        if lower in ("and", "or"):
            self.put("operator", lower)
        elif lower == "percent":
            self.put("operator", "%")
        elif word in FUNCTION_NAMES and word not in ("min", "deg"):
            self.put("function", FUNCTION_NAMES[word])
        else:
            self.put("word", word)

    def reals(self, match: re.Match[str]) -> None:
        self.put("constant", "reals")

    def currency(self, match: re.Match[str]) -> None:
        self.put("currency", CURRENCIES[match[0]])

    def sided(self, match: re.Match[str]) -> None:
        self.put("open" if match[0].startswith(r"\left") else "close", "|")

    def operator(self, match: re.Match[str]) -> None:
        self.put("operator", OPERATORS.get(match[0], match[0]))

    def bracket(self, match: re.Match[str]) -> None:
        text = match[0]
        if text in ("|", r"\|"):
            self.put("bar", "|")
        elif text in ("(", "[", "{", r"\{"):
            self.open("{set" if text == r"\{" else text)
        else:
            self.close("}set" if text == r"\}" else text)

    def open(self, text: str) -> None:
        self.brackets += text != "{"
        self.put("open", text)

    def close(self, text: str) -> None:
        self.brackets -= text != "}"
        self.put("close", text)

    def command(self, match: re.Match[str]) -> None:
        command, name = match[0], match[0][1:]
        if name in IGNORED:
            return
        for kind, table in (("operator", OPERATORS), ("prefix", PREFIXES), ("accent", ACCENTS), ("big", BIG)):
            if command in table:
                self.put(kind, table[command])
                return
        if command in OPENING:
            self.open("{set" if OPENING[command] == "{" else OPENING[command])
        elif command in CLOSING:
            self.close("}set" if CLOSING[command] == "}" else CLOSING[command])
        elif name in FUNCTIONS:
            self.put("function", FUNCTION_NAMES[name])
        elif name in CONSTANTS and len(name) > 1:
            self.put("constant", CONSTANTS[name])
        elif name in ("emptyset", "varnothing"):
            self.open("{set")
            self.close("}set")
        elif name in ("vert", "Vert"):
            self.put("bar", "|")
        else:
            self.put("name", f"\\{name.removeprefix('var')}")

    def letters(self, match: re.Match[str]) -> None:
        """Letters without a style: functions, words and units by their names, else one variable each."""
        run = match[0]
        lower = run.casefold()
        if len(run) == 1:
            self.variables(run)
        elif run in FUNCTION_NAMES and run not in ("min", "deg"):
            self.put("function", FUNCTION_NAMES[run])
        elif run in CONSTANTS:
            self.put("constant", CONSTANTS[run])
        elif run in GREEK:
            self.put("name", f"\\{run}")
        elif run == "in" and self.tokens and self.tokens[-1].kind == "name" and _set_follows(match):
            self.put("operator", "in")
        elif is_unit_word(lower) and len(run) <= 3 and singular(lower) == lower:
            self.put("run", run)
        elif lower in ("and", "or", "percent") or lower in WORDS or lower in SCALES or is_unit_word(lower):
            self.word(run)
        elif function := _leading_function(run):
            self.put("function", FUNCTION_NAMES[function])
            self.variables(run[len(function) :])
        elif len(run) >= 4:
            self.put("word", run)
        else:
            self.variables(run)

    def variables(self, run: str) -> None:
        for letter in run:
            self.put("constant" if letter in _LETTER_CONSTANTS else "name", letter)


def _set_follows(match: re.Match[str]) -> bool:
    """Whether a bracket or a command stands behind: `x in [0, 1]`, not `5x in`."""
    return match.string[match.end() :].lstrip().startswith(("(", "[", "\\{", "\\left", "\\mathbb"))


def _leading_function(run: str) -> str | None:
    """The function that begins a run with at most two variables behind it: sinx, lnab."""
    for length in (len(run) - 1, len(run) - 2):
        if (
            length >= 2
            and run[:length] in FUNCTION_NAMES
            and run[:length] in ("ln", "log", "sin", "cos", "tan", "sqrt")
        ):
            return run[:length]
    return None


_READERS: dict[str, Callable[[_Tokenizer, re.Match[str]], None]] = {
    "thousands": _Tokenizer.thousands,
    "commas": _Tokenizer.commas,
    "repeating": _Tokenizer.repeating,
    "number": _Tokenizer.number,
    "degree": _Tokenizer.degree,
    "matrix": _Tokenizer.matrix,
    "styled": _Tokenizer.styled,
    "reals": _Tokenizer.reals,
    "currency": _Tokenizer.currency,
    "sided": _Tokenizer.sided,
    "operator": _Tokenizer.operator,
    "bracket": _Tokenizer.bracket,
    "command": _Tokenizer.command,
    "letters": _Tokenizer.letters,
}  # the other kinds, space and columns, say nothing
