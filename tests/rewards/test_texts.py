"""Rewards for what a text is made of, worked by hand."""

import pytest

from posttrain.rewards.texts import avoids, contains, language_consistency, repetition
from posttrain.settings.rewards import (
    AvoidsOptions,
    ContainsOptions,
    LanguageConsistencyOptions,
    RepetitionOptions,
)


@pytest.mark.parametrize(
    ("text", "size", "score"),
    [
        ("a b c d e", 3, 0.0),
        ("a b a b", 2, -1 / 3),  # ab, ba, ab
        ("go Go GO go", 1, -0.75),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition(text: str, size: int, score: float) -> None:
    assert repetition(RepetitionOptions(ngram_size=size), ["p"], [text]) == [pytest.approx(score)]


@pytest.mark.parametrize(
    ("language", "text", "score"),
    [
        ("en", "two and two make four", 1.0),
        ("en", "so 答案 is four", 0.6),  # each Chinese character is a word
        ("zh", "答案 is 四", 0.75),
        ("zh", r"答案是 $x = \frac{1}{2}$", 1.0),  # variables and commands are on no side
        ("ru", "ответ four", 0.5),
        ("ja", "カタカナ", 1.0),
        ("en", "naïve café", 1.0),
        ("en", "12 + 3 = 15", 0.0),
        ("en", "", 0.0),
    ],
)
def test_language_consistency(language: str, text: str, score: float) -> None:
    assert language_consistency(LanguageConsistencyOptions(language=language), ["p"], [text]) == [pytest.approx(score)]


def test_phrases() -> None:
    texts = ["Sorry, as an AI model", "The straße", ""]
    wanted = ContainsOptions(phrases=["sorry", "an ai"])
    assert contains(wanted, ["p"] * 3, texts) == [1.0, 0.0, 0.0]
    assert contains(ContainsOptions(phrases=["SORRY", "never"]), ["p"] * 3, texts) == [0.5, 0.0, 0.0]
    assert avoids(AvoidsOptions(phrases=["STRASSE"]), ["p"] * 3, texts) == [1.0, 0.0, 1.0]
