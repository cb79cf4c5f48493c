"""Rewards for what a text is made of: repeated pieces, the script of its words, phrases.

Pure and linear in the text; no gold answer.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from posttrain.rewards.arguments import completion_text
from posttrain.settings.rewards import (
    AvoidsOptions,
    ContainsOptions,
    LanguageConsistencyOptions,
    RepetitionOptions,
)

SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("cs", "da", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "no"), frozenset({"LATIN"})),
    **dict.fromkeys(("pl", "pt", "ro", "sv", "sw", "tr", "vi"), frozenset({"LATIN"})),
    "ar": frozenset({"ARABIC"}),
    "bg": frozenset({"CYRILLIC"}),
    "el": frozenset({"GREEK"}),
    "fa": frozenset({"ARABIC"}),
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}),
    "ru": frozenset({"CYRILLIC"}),
    "th": frozenset({"THAI"}),
    "uk": frozenset({"CYRILLIC"}),
    "zh": frozenset({"CJK"}),
}
"""Scripts by language; the names are the first words of Unicode's names of letters."""
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI"}  # each letter counts as a word
_LETTERS = re.compile(r"\\?[^\W\d_]+")


def repetition(
    options: RepetitionOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """0 without a repeated piece of words, towards -1 the more of the pieces are repeats.

    1 minus the share of different n-grams, negated: "Demystifying Long Chain-of-Thought Reasoning in LLMs"
    (arXiv 2502.03373), appendix, whose strength is the weight here.
    """
    return [_repetition(completion_text(completion), options.ngram_size) for completion in completions]


def language_consistency(
    options: LanguageConsistencyOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Share of the words that are in the language's script (DeepSeek-R1, arXiv 2501.12948, section 2.3.2).

    It tells Chinese or Russian from English, not German from English. Single Latin letters, which are variables, and
    words after a backslash count on neither side; without words the score is 0.
    """
    wanted = SCRIPTS[options.language]
    scores: list[float | None] = []
    for completion in completions:
        total = right = 0
        for script, words in _scripts(completion_text(completion)):
            total += words
            right += words if script in wanted else 0
        scores.append(right / total if total else 0.0)
    return scores


def contains(
    options: ContainsOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Share of the phrases that the completion says."""
    return [_share(completion_text(completion), options.phrases) for completion in completions]


def avoids(
    options: AvoidsOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 for a completion that says none of the phrases, else 0."""
    return [float(_share(completion_text(completion), options.phrases) == 0) for completion in completions]


def _repetition(text: str, size: int) -> float:
    words = text.lower().split()
    pieces = list(zip(*(words[start:] for start in range(size)), strict=False))
    return len(set(pieces)) / len(pieces) - 1.0 if pieces else 0.0


def _scripts(text: str) -> Iterator[tuple[str, int]]:
    """Yield the script of each stretch of letters, and how many words it is."""
    for match in _LETTERS.finditer(text):
        if match[0].startswith("\\") or (len(match[0]) == 1 and match[0].isascii()):
            continue
        for script, letters in groupby(match[0], _script):
            yield script, sum(1 for _ in letters) if script in _UNSPACED else 1


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].partition("-")[0]


def _share(text: str, phrases: Sequence[str]) -> float:
    folded = text.casefold()
    return sum(phrase.casefold() in folded for phrase in phrases) / len(phrases) if phrases else 0.0
