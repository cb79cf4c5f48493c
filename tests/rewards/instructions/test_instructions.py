"""Every kind of instruction on texts that follow it and on texts that do not; built texts; hostile ones."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rewards.instructions import INSTRUCTIONS, counting
from posttrain.rewards.instructions.arguments import count, flag, language, one_character, relation, text, texts

AT_LEAST, LESS = "at least", "less than"
GERMAN = "Der Hund läuft am Morgen über die Wiese und bellt laut."

# name, arguments, texts that follow it, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["rain", "Sun"]},
        ["The SUN after rain.", "sunny rainbows"],
        ["only rain", "s un r ain"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": AT_LEAST},
        ["War and war", "warm wars", "warwar"],
        ["war", "w a r"],
    ),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": LESS}, ["a cat", "none"], ["cat, Cat"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "new york"]},
        ["rocky rocks", "new  york", "newyork"],
        ["Rock!", "in New York."],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Z", "let_frequency": 3, "let_relation": AT_LEAST},
        ["zzz", "Zebra zoo pizza"],
        ["zebra z"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": LESS},
        ["none"],
        ["one #tag"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN], ["The dog runs over the meadow in the morning."]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": AT_LEAST},
        ["One. Two! Three?", "One.\nTwo...\nand three", 'She said "No." He left. They slept.'],
        ["One. Two.", "Dr. J. Smith met Mr. Hill. He ran.", "It costs 3.50, e.g. at 5.10. Fine.", "1. Milk\n2. Bread"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS}, ["One"], ["One. Two."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***\na\n***\nb\n***"],
        ["a", "a\n***\n***\nb", "a***b***c"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": AT_LEAST}, ["one two three"], ["one, two!"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["one two", "- -"], ["don't go"]),
    (
        "length_constraints:exact_words",
        {"num_words": 5},
        ["A friend who always listens.", "Don't fear well-known sea - storms!"],
        ["A friend who listens.", "A friend who always really listens."],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["First.\n\nthen, it ended.", "First.\n\n\n\n“Then!” she said.", "First.\n\n**Then** more"],
        ["Then.\n\nLast.", "First.\n\nThen.\n\nLast.", "First.\nThen."],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
        [],
        ["a", "a\n\na"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name], [your address]", "[a][b] [c]"],
        ["[name", "[name]", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. Write!", "bye p. s. write"],
        ["Bye. PS Write"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye\nP.P.S Write", "p.p.s."], ["P.S. Write"]),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["note: x"], ["note x"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["Here:\n* a\n* b", "- a\n  - b", "*a\n- b\n**bold**"],
        ["* a", "* a\n* b\n* c", "+ a\n+ b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe."],
        ["my answer is yes.", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two**", "*one* *two* *three*"],
        ["*one*", "* *  ** ** *x*", "*one\ntwo* *three*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section 22 Section 3"],
        ["Section 1", "SECTION 1 SECTION 2", "Section one Section two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n[]\n```", "3"],
        ["{a: 1}", 'Here: {"a": 1}', ""],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Joy>>\ntext", "a << b >> c"],
        ["<<>>", "<< >>", ">>Joy<<", "<<Joy\n>>", "<Joy>"],
    ),
    (
        "combination:two_responses",
        {},
        ["a******b", "******\na\n******\nb"],
        ["a", "a******a", "a******b******c", "a************b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Name a river. "},
        [" name a river. The Nile."],
        ["The Nile. Name a river."],
    ),
    ("startend:end_checker", {"end_phrase": "Bees work hard."}, ['"So bees work hard."'], ["Bees work hard. Yes."]),
    ("startend:quotation", {}, [' "all of it" '], ['"half" of it', '"', ""]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        ["I SAY so", "WELL-KNOWN U.S. law", "I'm in the UX/UI team"],
        ["I say so", "NASA-led team, 42"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": LESS},
        ["no capitals, 42"],
        ["NO"],
    ),
    ("change_case:english_capital", {}, ["THE CAT SAT ON THE MAT."], ["THE cAT SAT.", GERMAN.upper(), "42"]),
    ("change_case:english_lowercase", {}, ["the cat sat on the mat."], ["The cat sat.", GERMAN.lower(), "42"]),
    ("punctuation:no_comma", {}, ["one; two"], ["one, two"]),
]


def test_every_kind_has_cases() -> None:
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 26


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_what_follows_and_what_does_not(
    name: str, arguments: dict[str, Any], right: Sequence[str], wrong: Sequence[str]
) -> None:
    kind = INSTRUCTIONS[name]
    assert kind.arguments.keys() == arguments.keys()
    assert [each for each in right if not kind.follows(each, **arguments)] == []
    assert [each for each in wrong if kind.follows(each, **arguments)] == []


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=12)


@settings(deadline=None)
@given(WORDS)
def test_a_built_text_has_the_counts_that_it_was_built_with(words: list[str]) -> None:
    size = len(words)
    assert counting.count_words(", ".join(words)) == len(counting.spaced_words(" - ".join(words))) == size
    assert counting.count_sentences(" ".join(f"And {word} it is." for word in words)) == size
    assert counting.bullets("Here:\n" + "\n".join(f"* {word}" for word in words)) == size
    assert counting.highlights(" ".join(f"*{word}* x **{word}**" for word in words)) == 2 * size
    assert counting.placeholders(" ".join(f"[{word}]" for word in words)) == size
    assert counting.sections(" ".join(f"Part {place} {word}" for place, word in enumerate(words)), "Part") == size
    assert counting.divided(" *** ".join(words), "***") == counting.paragraphs("\n\n".join(words)) == words
    assert counting.capital_words(" ".join(word.upper() for word in words)) == size
    assert counting.titles("\n".join(f"<<{word}>>" for word in words)) == size


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Fail after so many seconds of this process's own CPU time: what is quadratic would need minutes."""

    def fail(*_: Any) -> None:
        raise AssertionError(f"took more than {seconds} s of CPU")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


HOSTILE = [
    piece * (100_000 // len(piece)) + tail
    for piece in (
        "[",
        "]",
        "*",
        "* ",
        "**a",
        "<<",
        "<<a",
        "\n",
        " ",
        "\n ",
        ".",
        ".'",
        "!?",
        "...x",
        "-",
        "a",
        "A ",
        '"',
    )
    for tail in ("", "x")
] + ["1" * 100_000, "{" * 100_000, '{"a":' * 20_000, "Section " * 12_500, "```json" * 14_000, "P. " * 33_000]


@pytest.mark.parametrize("name", list(INSTRUCTIONS))
def test_hostile_texts_cost_no_more_than_their_length(name: str) -> None:
    with cpu_limit(20.0):
        for own, arguments, *_ in CASES:
            if own == name:
                for hostile in HOSTILE:
                    assert INSTRUCTIONS[name].follows(hostile, **arguments) in (True, False)


def test_the_limit_of_cpu_time_catches_what_is_quadratic() -> None:
    def quadratic(size: int) -> int:
        return sum(1 for _ in range(size) for _ in range(size))

    with pytest.raises(AssertionError, match="of CPU"), cpu_limit(0.2):
        quadratic(100_000)


@pytest.mark.parametrize(
    ("read", "value", "found"),
    [
        (count, 3, 3),
        (count, 3.0, 3),
        (text, " a", " a"),
        (texts, ("a", "b"), ("a", "b")),
        (one_character, "#", "#"),
        (relation, "less than", "less than"),
        (language, "kn", "kn"),
        (flag, False, False),
    ],
)
def test_arguments_are_read(read: Callable[[Any], Any], value: Any, found: Any) -> None:
    assert read(value) == found


@pytest.mark.parametrize(
    ("read", "value", "why"),
    [
        (count, 2.5, "must be a whole number, not 2.5"),
        (count, float("nan"), "must be a whole number, not nan"),
        (count, -1, "whole number"),
        (count, True, "whole number"),
        (count, "3", "whole number"),
        (text, " ", "must be a text, not ' '"),
        (texts, "ab", "must be a list of texts, not 'ab'"),
        (texts, [], "list of texts"),
        (texts, ["a", None], "must be a text, not None"),
        (one_character, "ab", "single letter"),
        (relation, "exactly", "must be 'at least' or 'less than', not 'exactly'"),
        (language, "xx", "must be one of .*, de, .*, not 'xx'"),
        (flag, "false", "must be true or false, not 'false'"),
    ],
)
def test_other_arguments_are_refused(read: Callable[[Any], Any], value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(value)
