"""Strict and loose verdicts, and rows whose instructions cannot be read."""

from types import MappingProxyType
from typing import Any

import pytest

from posttrain.rewards.instructions.verdicts import (
    Instruction,
    followed_loosely,
    followed_strictly,
    read_instructions,
)

NO_COMMA = Instruction("punctuation:no_comma", {})
JSON = Instruction("detectable_format:json_format", {})
TWO_BULLETS = Instruction("detectable_format:number_bullet_lists", {"num_bullets": 2})


@pytest.mark.parametrize(
    ("text", "instruction", "strict", "loose"),
    [
        ("one two", NO_COMMA, True, True),
        ("Sure, here it is:\none two", NO_COMMA, False, True),
        ("one two\nBye, now", NO_COMMA, False, True),
        ("Sure, here:\none two\nBye, now", NO_COMMA, False, True),
        ("one, two\nthree, four\nfive, six", NO_COMMA, False, False),
        ("**[1, 2]**", JSON, False, True),
        ("Sure:\n[1]\nDone.", JSON, False, True),
        ("* a\n* b", TWO_BULLETS, True, True),
        ("- a\n- b\n- c", TWO_BULLETS, False, True),  # without its last line: the loose verdict errs this way
        ("", NO_COMMA, False, False),
        (" \n ", NO_COMMA, False, False),
    ],
)
def test_the_loose_verdict_looks_at_variants(text: str, instruction: Instruction, strict: bool, loose: bool) -> None:
    assert followed_strictly(text, [instruction]) == [strict]
    assert followed_loosely(text, [instruction]) == [loose]


def test_a_row_as_the_hub_has_it_is_read() -> None:
    row = MappingProxyType(
        {
            "key": 1000,
            "instruction_id_list": ("punctuation:no_comma", "length_constraints:number_words"),
            "kwargs": (
                MappingProxyType({"num_words": None, "relation": None, "keywords": None}),
                MappingProxyType({"num_words": 300.0, "relation": "at least", "keywords": None}),
            ),
        }
    )
    assert read_instructions(row) == (
        NO_COMMA,
        Instruction("length_constraints:number_words", {"num_words": 300, "relation": "at least"}),
    )
    assert read_instructions({"answer": "42"}) == ()
    assert read_instructions({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}) == (NO_COMMA,)


@pytest.mark.parametrize(
    ("names", "arguments", "why"),
    [
        (
            ["punctuation:no_coma"],
            [{}],
            "no instruction 'punctuation:no_coma' is known, the nearest is punctuation:no_",
        ),
        ("punctuation:no_comma", [{}], "instruction_id_list must be a list of instructions"),
        ([], [], "instruction_id_list must be a list of instructions"),
        (["punctuation:no_comma"], [], "kwargs must be a list as long as instruction_id_list, 1, not 0"),
        (["punctuation:no_comma"], None, "kwargs must be a list as long as instruction_id_list, 1, not no list"),
        (["punctuation:no_comma"], ["x"], "the kwargs of punctuation:no_comma must be an object, not 'x'"),
        (
            ["keywords:existence"],
            [{"keywords": None}],
            "keywords:existence needs keywords among its kwargs",
        ),
        (
            ["length_constraints:number_words"],
            [{"num_words": 3, "relation": "about"}],
            "relation of length_constraints:number_words must be 'at least' or 'less than', not 'about'",
        ),
    ],
)
def test_what_cannot_be_checked_is_said(names: Any, arguments: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_instructions({"instruction_id_list": names, "kwargs": arguments})
