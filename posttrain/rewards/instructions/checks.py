"""Whether a text follows one instruction: a function for each kind, given the text and the kind's arguments.

Pure; linear in the text. The definitions are those of "Instruction-Following Evaluation for Large Language Models"
(Zhou et al. 2023, arXiv 2311.07911), table 1; keywords are taken as words, not as regular expressions.
"""

import json
import re
from collections.abc import Sequence

from posttrain.data.filters import language_identifier
from posttrain.rewards.instructions import counting

CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
LEAST_PROBABILITY = 0.001  # of English, below which a text is surely in another language
READ_CHARACTERS = 20_000  # of a text whose language is asked: more tells no more

_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)


def compares(count: int, relation: str, bound: int) -> bool:
    """Return whether a count is "at least" or "less than" a bound."""
    return count >= bound if relation == "at least" else count < bound


# --- keywords --------------------------------------------------------------------------------------------------


def has_keywords(text: str, *, keywords: Sequence[str]) -> bool:
    """Return whether every keyword is somewhere in the text, as a part of a word too."""
    folded = text.lower()
    return all(keyword.lower() in folded for keyword in keywords)


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """Return whether a keyword is there so often, as a part of words too."""
    return compares(text.lower().count(keyword.lower()), relation, frequency)


def avoids_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """Return whether none of the words is there; "thinking" does not hold "think"."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Return whether a letter, small or capital, is there so often."""
    return compares(text.lower().count(letter.lower()), let_relation, let_frequency)


# --- language and length ---------------------------------------------------------------------------------------


def in_language(text: str, *, language: str) -> bool:
    """Return whether the text is likelier in this language than in any other, by py3langid."""
    return str(language_identifier().classify(text[:READ_CHARACTERS])[0]) == language


def number_of_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """Return whether there are so many sentences."""
    return compares(counting.count_sentences(text), relation, num_sentences)


def number_of_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Return whether the divider `***` makes exactly so many parts, none of them blank."""
    parts = counting.divided(text, "***")
    return parts is not None and len(parts) == num_paragraphs


def number_of_words(text: str, *, num_words: int, relation: str) -> bool:
    """Return whether there are so many words."""
    return compares(counting.count_words(text), relation, num_words)


def exact_words(text: str, *, num_words: int) -> bool:
    """Return whether there are exactly so many words, as people count them: "don't" and "well-known" are one each."""
    return len(counting.spaced_words(text)) == num_words


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Return whether blank lines make exactly so many paragraphs, and the nth begins with the word."""
    found = counting.paragraphs(text)
    if len(found) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    return counting.first_word(found[nth_paragraph - 1]) == first_word.lower()


# --- content and format ----------------------------------------------------------------------------------------


def number_of_placeholders(text: str, *, num_placeholders: int) -> bool:
    """Return whether there are at least so many placeholders such as `[name]`."""
    return counting.placeholders(text) >= num_placeholders


def has_postscript(text: str, *, postscript_marker: str) -> bool:
    """Return whether the marker is there; of `P.S.` and `P.P.S` in small letters and with a space within, too."""
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = spaced.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(pattern, text.lower()) is not None


def number_of_bullets(text: str, *, num_bullets: int) -> bool:
    """Return whether there are exactly so many bullet points."""
    return counting.bullets(text) == num_bullets


def constrained_response(text: str) -> bool:
    """Return whether one of the three answers that were offered is in the text."""
    return any(answer in text for answer in CONSTRAINED_RESPONSES)


def number_of_highlights(text: str, *, num_highlights: int) -> bool:
    """Return whether at least so many stretches are highlighted by asterisks."""
    return counting.highlights(text) >= num_highlights


def number_of_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """Return whether at least so many sections are marked, as in `Section 1`."""
    return counting.sections(text, section_spliter) >= num_sections


def is_json(text: str) -> bool:
    """Return whether the text is JSON, alone or in a fence."""
    text = text.strip()
    if fence := _FENCE.match(text):
        text = text[fence.end() :].removesuffix("```")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str) -> bool:
    """Return whether there is a title such as `<<joy>>`."""
    return counting.titles(text) > 0


# --- combination, start and end, case, punctuation -------------------------------------------------------------


def two_responses(text: str) -> bool:
    """Return whether the divider `******` makes two different parts."""
    parts = counting.divided(text, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """Return whether the text begins with the request; capitals do not matter."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, *, end_phrase: str) -> bool:
    """Return whether the text ends with the phrase, quotation marks around the text aside; capitals do not matter."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def is_quoted(text: str) -> bool:
    """Return whether the whole text is between double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Return whether so many words are written in capitals."""
    return compares(counting.capital_words(text), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """Return whether the text is in capitals alone, and not surely in another language than English."""
    return text.isupper() and _may_be_english(text)


def english_lowercase(text: str) -> bool:
    """Return whether the text has no capital, and is not surely in another language than English."""
    return text.islower() and _may_be_english(text)


def no_comma(text: str) -> bool:
    """Return whether there is no comma."""
    return "," not in text


def _may_be_english(text: str) -> bool:
    probabilities = dict(language_identifier().rank(text[:READ_CHARACTERS].lower()))
    return bool(probabilities["en"] >= LEAST_PROBABILITY)
