"""Instructions that a program can check: every kind that a row may name, with its arguments and its check.

The 25 kinds of IFEval (Zhou et al. 2023, arXiv 2311.07911) under their names there, and one of our own,
`length_constraints:exact_words`. A row names them in `instruction_id_list` and gives each one's arguments in `kwargs`,
as google/IFEval has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.rewards.instructions import checks
from posttrain.rewards.instructions.arguments import count, language, one_character, relation, text, texts


@dataclass(frozen=True, slots=True)
class InstructionKind:
    """A kind of instruction: how to check it, and how to read each of its arguments."""

    follows: Callable[..., bool]  # of the text, and the arguments by name
    arguments: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)  # readers, which raise ValueError


INSTRUCTIONS: dict[str, InstructionKind] = {
    "keywords:existence": InstructionKind(checks.has_keywords, {"keywords": texts}),
    "keywords:frequency": InstructionKind(
        checks.keyword_frequency, {"keyword": text, "frequency": count, "relation": relation}
    ),
    "keywords:forbidden_words": InstructionKind(checks.avoids_words, {"forbidden_words": texts}),
    "keywords:letter_frequency": InstructionKind(
        checks.letter_frequency, {"letter": one_character, "let_frequency": count, "let_relation": relation}
    ),
    "language:response_language": InstructionKind(checks.in_language, {"language": language}),
    "length_constraints:number_sentences": InstructionKind(
        checks.number_of_sentences, {"num_sentences": count, "relation": relation}
    ),
    "length_constraints:number_paragraphs": InstructionKind(checks.number_of_paragraphs, {"num_paragraphs": count}),
    "length_constraints:number_words": InstructionKind(
        checks.number_of_words, {"num_words": count, "relation": relation}
    ),
    "length_constraints:exact_words": InstructionKind(checks.exact_words, {"num_words": count}),
    "length_constraints:nth_paragraph_first_word": InstructionKind(
        checks.nth_paragraph_first_word, {"num_paragraphs": count, "nth_paragraph": count, "first_word": text}
    ),
    "detectable_content:number_placeholders": InstructionKind(
        checks.number_of_placeholders, {"num_placeholders": count}
    ),
    "detectable_content:postscript": InstructionKind(checks.has_postscript, {"postscript_marker": text}),
    "detectable_format:number_bullet_lists": InstructionKind(checks.number_of_bullets, {"num_bullets": count}),
    "detectable_format:constrained_response": InstructionKind(checks.constrained_response),
    "detectable_format:number_highlighted_sections": InstructionKind(
        checks.number_of_highlights, {"num_highlights": count}
    ),
    "detectable_format:multiple_sections": InstructionKind(
        checks.number_of_sections, {"section_spliter": text, "num_sections": count}
    ),
    "detectable_format:json_format": InstructionKind(checks.is_json),
    "detectable_format:title": InstructionKind(checks.has_title),
    "combination:two_responses": InstructionKind(checks.two_responses),
    "combination:repeat_prompt": InstructionKind(checks.repeats_prompt, {"prompt_to_repeat": text}),
    "startend:end_checker": InstructionKind(checks.ends_with, {"end_phrase": text}),
    "startend:quotation": InstructionKind(checks.is_quoted),
    "change_case:capital_word_frequency": InstructionKind(
        checks.capital_word_frequency, {"capital_frequency": count, "capital_relation": relation}
    ),
    "change_case:english_capital": InstructionKind(checks.english_capital),
    "change_case:english_lowercase": InstructionKind(checks.english_lowercase),
    "punctuation:no_comma": InstructionKind(checks.no_comma),
}
